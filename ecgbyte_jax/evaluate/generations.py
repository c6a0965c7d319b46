"""The file of generations: one line a sequence and seed, written batch by batch, and continued where a run was killed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ecgbyte_jax.errors import ScoresError
from ecgbyte_jax.evaluate.votes import DECIMALS
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.inputs.shards import Sequence

OWN, OTHER = "", "other"  # ECGs that a question is asked of
FIELDS = {
    "id",
    "segment",
    "seed",
    "patient",
    "question",
    "reference",
    "answer",
    "answer_to_other_ecg",
    "commonest_answer",
    "meta",
}


class Key(NamedTuple):
    """What identifies a line."""

    id: str
    segment: int
    seed: int


class Answer(NamedTuple):
    """A model's answer to one prompt: its text, its tokens including eos, the sum of their log-probabilities in nats."""

    text: str
    tokens: list[int]
    log_prob: float


def make_row(
    sequence: Sequence,
    other: Sequence,
    seed: int,
    answers: dict[str, Answer],
    commonest: str,
    history: tuple[tuple[str, str], ...] = (),
) -> dict:
    """A line; answers: to the sequence's own ECG (OWN), to the other one's (OTHER), and to its own perturbed ones (by name).

    history: the questions and answers before the question in the prompt about its own ECG.
    """
    answer, to_other = answers[OWN], answers[OTHER]
    perturbed = {name: given.text for name, given in answers.items() if name not in (OWN, OTHER)}
    return {
        **{"id": sequence.id, "segment": sequence.segment, "seed": seed, "patient": sequence.patient},
        **{"question": sequence.question, "reference": sequence.answer.strip()},
        **{"answer": answer.text, "log_prob": round(answer.log_prob, DECIMALS), "tokens": answer.tokens},
        **{"answer_to_other_ecg": to_other.text, "log_prob_to_other_ecg": round(to_other.log_prob, DECIMALS)},
        **{"other_ecg": other.id, "other_segment": other.segment},
        **{"commonest_answer": commonest, "meta": sequence.meta},
        **({"answers_perturbed": perturbed} if perturbed else {}),
        **({"history": history} if history else {}),
    }


def read_rows(path: Path) -> list[dict]:
    """The complete lines; raises ScoresError where the file is missing, a line is not an evaluation's, or is there twice."""
    if not path.is_file():
        raise ScoresError(f"{path}: no such file; run --stage=eval first")
    rows = parse(path)
    first: dict[Key, int] = {}
    for number, row in enumerate(rows, start=1):
        if first.setdefault(_key(row), number) != number:
            raise ScoresError(
                f"{path}: line {number} has the same example, segment and seed as line {first[_key(row)]}; "
                "move the file away and run --stage=eval"
            )
    return rows


def _key(row: dict) -> tuple:
    return Key(row["id"], row["segment"], row["seed"])


def parse(path: Path, fields: set[str] = FIELDS) -> list[dict]:
    """The complete lines; raises ScoresError where one is damaged, or without one of the fields."""
    rows = []
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            row = json.loads(line)
            if not set(row) >= fields:
                raise ValueError(f"the fields {sorted(fields - set(row))} are missing")
        except (ValueError, TypeError) as error:
            raise ScoresError(f"{path}: line {number} is damaged ({error}); move the file away and run --stage=eval") from error
        rows.append(row)
    return rows


def _whole_lines(path: Path) -> list[bytes]:
    """All but what follows the last line end: nothing, or a line that was cut short."""
    return path.read_bytes().split(b"\n")[:-1]


def keep_whole_batches(path: Path, batches: list[list], fields: set[str] = FIELDS, key: Callable[[dict], tuple] = _key) -> int:
    """How many of the batches, from the first one, are in the file; lines after them are removed.

    batches: the keys of each one's lines; fields, key: those that a line has, and its key.
    """
    keys = [key(row) for row in parse(path, fields)] if path.is_file() else []
    done = kept = 0
    for batch in batches:
        if keys[kept : kept + len(batch)] != batch:
            break
        done, kept = done + 1, kept + len(batch)
    write_whole(path, [line + b"\n" for line in _whole_lines(path)[:kept]] if kept else [])
    return done


def append(path: Path, rows: list[dict]) -> None:
    """Adds lines at the end."""
    try:
        with path.open("ab") as file:
            file.write("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
    except OSError as error:
        error.filename = str(path)  # a failed write names no file
        raise
