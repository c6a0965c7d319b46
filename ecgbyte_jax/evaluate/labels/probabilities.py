"""The probabilities of candidate answers: all of an ECG after one prefill, on any mesh and any number of processes.

Axes: B rows of a batch, C candidates of a row, N tokens of one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jax.experimental import multihost_utils

from ecgbyte_jax.evaluate.answers import Answerer
from ecgbyte_jax.evaluate.generations import OTHER, OWN, append, keep_whole_batches, parse
from ecgbyte_jax.evaluate.labels.candidates import Asked, make_texts
from ecgbyte_jax.evaluate.questions import in_batches
from ecgbyte_jax.inputs.batches import prompt_batch
from ecgbyte_jax.inputs.prepared import Prepared
from ecgbyte_jax.inputs.prompt import Dialogue
from ecgbyte_jax.model.generate import score_candidates
from ecgbyte_jax.model.sharding import batch_parts, put_whole
from ecgbyte_jax.run.console import progress
from ecgbyte_jax.run.processes import agree, leads

_DECIMALS = 6  # of a log-probability in nats
_MOST = 16  # candidates of a row
_FIELDS = {"split", "id", "segment", "question", "first", "patient", "reference", "candidates", "log_probs"}


@dataclass(frozen=True, eq=False)
class _Row:
    """A row of a batch: the candidates of a question from number `first` on, with their tokens."""

    asked: Asked
    first: int
    candidates: tuple[str, ...]
    tokens: tuple[np.ndarray, ...]

    @property
    def key(self) -> tuple:
        sequence = self.asked.item.sequence
        return self.asked.split, sequence.id, sequence.segment, sequence.question, self.first


def _key(line: dict) -> tuple:
    return line["split"], line["id"], line["segment"], line["question"], line["first"]


@dataclass(frozen=True, eq=False)
class _Batch:
    """Rows that are computed together, `each` of them for every ECG; most: the candidates that a row has room for.

    max_length: of the prompts, which leave room for the longest candidate of all.
    """

    rows: list[_Row]
    each: int
    most: int
    max_length: int


def read_probabilities(path: Path) -> list[dict]:
    """The lines that `write_probabilities` wrote; raises ScoresError where one is damaged."""
    return parse(path, _FIELDS)


def write_probabilities(answerer: Answerer, asked: list[Asked], path: Path) -> None:
    """Adds lines of log-probabilities, batch by batch, after the whole batches that are there already.

    The candidates of a question are in one line or in several ones, by number. Questions of the evaluated split are also asked
    of another patient's ECG. Where a question has earlier turns, it follows their reference answers.
    """
    batches = _in_batches(answerer, asked)
    keys = [[row.key for row in batch.rows] for batch in batches]
    done = agree(keep_whole_batches(path, keys, _FIELDS, _key) if leads() else 0)
    written, total = (sum(len(batch.rows) for batch in some) for some in (batches[:done], batches))
    with progress("label", total, written) as report:
        for batch in batches[done:]:
            lines = _lines(answerer, batch)
            if leads():
                append(path, lines)
            written += len(lines)
            report(written, f"after {done} batches of an earlier run" if done else "")


def _in_batches(answerer: Answerer, asked: list[Asked]) -> list[_Batch]:
    """Split by split; the rows about an ECG together."""
    size, parts = answerer.settings.eval.batch_size, batch_parts(answerer.mesh)
    tokens = _tokens(answerer.prepared, asked)
    count = _candidates_of_a_row(asked)
    longest = max(len(candidate) for candidates in tokens.values() for candidate in candidates)
    max_length = min(answerer.settings.prompt.max_length, answerer.model.config.max_positions - longest + 1)
    batches: list[_Batch] = []
    for split in dict.fromkeys(one.split for one in asked):
        rows = [row for one in asked if one.split == split for row in _rows(one, tokens, count)]
        in_order = iter(rows)
        for batch in in_batches([row.asked.item for row in rows], size, parts):
            batches.append(_Batch([*islice(in_order, len(batch.items))], batch.each, count, max_length))
    return batches


def _tokens(prepared: Prepared, asked: list[Asked]) -> dict[tuple[int, str], list[np.ndarray]]:
    """By number of ECGs and question: what a model has to write after the prompt for each candidate, to the answer's end."""
    tokens: dict[tuple[int, str], list[np.ndarray]] = {}
    for one in asked:
        key = len(one.item.sequence.ecgs), one.item.sequence.question
        if key not in tokens:
            texts = make_texts(prepared, [Dialogue(key[0], ((key[1], candidate),)) for candidate in one.candidates])
            tokens[key] = [text.ids[text.prompt : np.flatnonzero(text.answers)[-1] + 1] for text in texts]
    return tokens


def _candidates_of_a_row(asked: list[Asked]) -> int:
    """The power of two with which the fewest candidates, and copies of the questions in front of them, are computed."""
    counts = np.array([len(one.candidates) for one in asked])
    question = float(np.mean([len(one.item.sequence.prompt) for one in asked]))
    sizes = [2**power for power in range(1, _MOST.bit_length())]
    return min(sizes, key=lambda size: int((-(-counts // size)).sum()) * (question + 4 * size))


def _rows(one: Asked, tokens: dict[tuple[int, str], list[np.ndarray]], count: int) -> Iterator[_Row]:
    ids = tokens[len(one.item.sequence.ecgs), one.item.sequence.question]
    for first in range(0, len(ids), count):
        yield _Row(one, first, one.candidates[first : first + count], tuple(ids[first : first + count]))


def _lines(answerer: Answerer, batch: _Batch) -> list[dict]:
    evaluated = batch.rows[0].asked.split == answerer.settings.eval.split
    fields = {OWN: "log_probs"} | ({OTHER: "log_probs_to_other_ecg"} if evaluated else {})
    found = {field: _log_probs(answerer, batch, view) for view, field in fields.items()}
    lines = []
    for place, row in enumerate(batch.rows):
        sequence = row.asked.item.sequence
        values = {field: [round(float(v), _DECIMALS) for v in rows[place][: len(row.tokens)]] for field, rows in found.items()}
        line = {"split": row.asked.split, "id": sequence.id, "segment": sequence.segment, "question": sequence.question}
        line |= {"first": row.first, "patient": sequence.patient, "reference": sequence.answer.strip()}
        lines.append(line | {"candidates": row.candidates} | values)
    return lines


def _log_probs(answerer: Answerer, batch: _Batch, view: str) -> np.ndarray:
    """Those of each row's candidates, float32 [rows, C], shown the ECGs of this view."""
    ids, settings = answerer.prepared.ids, answerer.settings
    prompts = [(answerer.ecgs(row.asked.item, view), row.asked.item.sequence.prompt) for row in batch.rows]
    inputs, places = prompt_batch(ids, prompts, settings.eval.batch_size, batch.max_length, batch.each)
    longest = max(len(candidate) for row in batch.rows for candidate in row.tokens)
    shape = settings.eval.batch_size, batch.most, max(4, 1 << (longest - 1).bit_length())  # few lengths: each is a program
    candidates, there = np.full(shape, ids.pad, np.int32), np.zeros(shape, bool)
    for place, row in zip(places, batch.rows):
        for number, tokens in enumerate(row.tokens):
            candidates[place, number, shape[2] - len(tokens) :] = tokens
            there[place, number, shape[2] - len(tokens) :] = True
    inputs, candidates, there = put_whole((inputs, candidates, there), answerer.mesh)
    found = score_candidates(answerer.model, **inputs, candidates=candidates, candidates_mask=there)
    return np.asarray(multihost_utils.process_allgather(found, tiled=True))[places]
