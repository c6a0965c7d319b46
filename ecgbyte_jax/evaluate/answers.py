"""The answers of a model to a split's questions: batched generation on any mesh and any number of processes.

Axes: B rows of a batch, T places of a prompt, N new tokens.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ecgbyte_jax.ecg.perturb import perturb
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ExampleError, ScoresError
from ecgbyte_jax.evaluate.generations import OTHER, OWN, Answer, Key, append, keep_whole_batches, make_row, read_rows
from ecgbyte_jax.evaluate.history import OwnAnswers, Turns, by_turn
from ecgbyte_jax.evaluate.questions import Batch, Item, in_batches
from ecgbyte_jax.inputs.batches import prompt_batch
from ecgbyte_jax.inputs.form import fit
from ecgbyte_jax.inputs.prepared import Prepared
from ecgbyte_jax.inputs.prompt import Dialogue
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.sharding import batch_parts, put_whole
from ecgbyte_jax.run.console import progress
from ecgbyte_jax.run.processes import agree, leads
from ecgbyte_jax.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Prompt = tuple[tuple[np.ndarray, ...], np.ndarray]  # ECGs' compact ids, ids of the text without them


@dataclass(frozen=True, eq=False)
class Answerer:
    """A model on its mesh, and what its prompts are made of."""

    settings: Settings
    prepared: Prepared
    tokenizer: ECGTokenizer
    model: Decoder
    mesh: Mesh

    def write(self, items: list[Item], path: Path) -> None:
        """Adds a line for every item and seed to the file, batch by batch, after the whole batches that are there already.

        Where the model's own answers are the history of later questions, those are asked once the earlier ones are answered.
        """
        seeds, size = self.settings.eval.seeds, self.settings.eval.batch_size
        rounds = by_turn(items) if self.settings.eval.history == "own" else [items]
        cut = [in_batches(part, size, batch_parts(self.mesh)) for part in rounds]
        parts = [[(seed, batch) for batch in batches] for seed in seeds for batches in cut]
        batches = [work for part in parts for work in part]
        keys = [[Key(item.sequence.id, item.sequence.segment, seed) for item in batch.items] for seed, batch in batches]
        done = agree(keep_whole_batches(path, keys) if leads() else 0)
        written = sum(len(batch.items) for _, batch in batches[:done])
        told = OwnAnswers(items) if self.settings.eval.history == "own" else None
        if told and done:
            told.add(read_rows(path))
        left = done
        with progress("answer", len(items) * len(seeds), written) as report:
            for part in parts:
                for rows in self.rows_of(part[left:], told):
                    if leads():
                        append(path, rows)
                    if told:
                        told.add(rows)
                    written += len(rows)
                    report(written, f"after {done} batches of an earlier run" if done else "")
                left = max(0, left - len(part))

    def rows_of(self, batches: list[tuple[int, Batch]], told: OwnAnswers | None = None) -> Iterator[list[dict]]:
        """The lines of every batch (with its seed), in order; on a single device the next batch is computed meanwhile.

        told: the model's own answers to earlier questions, to be their history; None: the reference answers are.

        With several devices every process must give them the same work in the same order.
        """

        def rows(seed: int, batch: Batch) -> list[dict]:
            with jax.set_mesh(self.mesh):  # each thread has its own
                return self.rows(batch, seed, told)

        at_once = 2 if self.mesh.size == 1 else 1
        with ThreadPoolExecutor(at_once) as pool:
            waiting: deque[Future] = deque()
            for batch in batches:
                waiting.append(pool.submit(rows, *batch))
                if len(waiting) == at_once:
                    yield waiting.popleft().result()
            yield from (future.result() for future in waiting)

    def rows(self, batch: Batch, seed: int, told: OwnAnswers | None = None) -> list[dict]:
        """The lines of a batch."""
        views, items = (OWN, OTHER, *self.settings.eval.perturb), batch.items
        places = [item.place for item in items]
        asked = {view: [self.ask(item, view, seed, told) for item in items] for view in views}
        answers = {}
        for view in views:
            prompts = [(self.ecgs(item, view), prompt) for item, (prompt, _) in zip(items, asked[view])]
            answers[view] = self.answer(prompts, seed, places, batch.each)
        commonest = self.prepared.manifest.commonest
        return [
            make_row(
                item.sequence,
                item.other,
                seed,
                {view: answers[view][i] for view in views},
                commonest.get(item.sequence.question, commonest[""]),
                asked[OWN][i][1],
            )
            for i, item in enumerate(items)
        ]

    def ecgs(self, item: Item, view: str) -> tuple[np.ndarray, ...]:
        """The item's own ECGs, another patient's, or its own ones perturbed."""
        rate = self.settings.signal.target_rate
        if view in (OWN, OTHER):
            return (item.sequence if view == OWN else item.other).ecgs
        return tuple(perturb(view, ecg, self.tokenizer, rate, self.settings.data_seed) for ecg in item.sequence.ecgs)

    def ask(self, item: Item, view: str, seed: int, told: OwnAnswers | None) -> tuple[np.ndarray, Turns]:
        """The ids of the item's prompt without its ECGs, and the earlier turns in it."""
        sequence = item.sequence
        if told is None or not sequence.previous:
            return sequence.prompt, sequence.history
        turns = told.before(sequence.id, sequence.segment, seed, view)
        dialogue = Dialogue(len(sequence.ecgs), (*turns, (sequence.question, "")))
        form, fewest = self.prepared.form, self.prepared.ids.fewest(sequence.ecgs)
        ((prompt, left_out),) = fit(form.prompts, [dialogue], self.settings.prompt.max_length - 1, fewest)
        if isinstance(prompt, ExampleError):
            raise ScoresError(
                f"question {sequence.id!r} after the model's own answers: {prompt}; eval.history 'reference' expected"
            )
        return prompt, turns[left_out:]

    def answer(self, prompts: list[Prompt], seed: int = 0, places: list[int] | None = None, each: int = 1) -> list[Answer]:
        """The model's answers to the prompts of a batch; a row's draws follow from the seed and its place alone.

        `each`: as in `inputs.batches.prompt_batch`.
        """
        sampling, ids, size = self.settings.eval, self.prepared.ids, self.settings.eval.batch_size
        batch, rows = prompt_batch(ids, prompts, size, self.settings.prompt.max_length, each)
        numbers = np.zeros(size, np.int32)
        numbers[rows] = places or range(len(prompts))
        batch, numbers = put_whole((batch, numbers), self.mesh)
        tokens, log_probs = generate(
            self.model,
            **batch,
            max_new_tokens=sampling.max_new_tokens,
            stop_ids=self.prepared.form.stops,
            pad_id=ids.pad,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            key=jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers),
            return_log_probs=True,
        )
        tokens, log_probs = multihost_utils.process_allgather((tokens, log_probs), tiled=True)
        return read_answers(tokens[rows], log_probs[rows], self.prepared.form.stops, self.prepared.text_tokenizer)


def read_answers(
    tokens: np.ndarray, log_probs: np.ndarray, stops: tuple[int, ...], text_tokenizer: "PreTrainedTokenizerFast"
) -> list[Answer]:
    """The answers in generated tokens int32 [B, N] with their log-probabilities float32 [B, N]; `stops` end an answer."""
    lengths = _lengths(np.isin(tokens, stops))
    kept = [row[:length].tolist() for row, length in zip(tokens, lengths)]
    spelt = [row[:-1] if row and row[-1] in stops else row for row in kept]
    texts = text_tokenizer.batch_decode(spelt, skip_special_tokens=True)
    return [Answer(text.strip(), row, float(total)) for text, row, total in zip(texts, kept, log_probs.sum(axis=1))]


def _lengths(stops: np.ndarray) -> np.ndarray:
    """How many tokens of each row bool [B, N] belong to the answer, including the one that ends it where there is one."""
    return np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, stops.shape[1])
