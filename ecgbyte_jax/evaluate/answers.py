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
from ecgbyte_jax.evaluate.generations import OTHER, OWN, Answer, Key, append, keep_whole_batches, make_row
from ecgbyte_jax.evaluate.questions import Batch, Item, in_batches
from ecgbyte_jax.inputs.batches import prompt_batch
from ecgbyte_jax.inputs.prepared import Prepared
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.sharding import batch_parts, put_whole
from ecgbyte_jax.run.console import progress
from ecgbyte_jax.run.processes import agree, leads
from ecgbyte_jax.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Prompt = tuple[tuple[np.ndarray, ...], np.ndarray]  # ECGs' compact ids, question ids


@dataclass(frozen=True, eq=False)
class Answerer:
    """A model on its mesh, and what its prompts are made of."""

    settings: Settings
    prepared: Prepared
    tokenizer: ECGTokenizer
    model: Decoder
    mesh: Mesh

    def write(self, items: list[Item], path: Path) -> None:
        """Adds a line for every item and seed to the file, batch by batch, after the whole batches that are there already."""
        seeds, size = self.settings.eval.seeds, self.settings.eval.batch_size
        batches = [(seed, batch) for seed in seeds for batch in in_batches(items, size, batch_parts(self.mesh))]
        keys = [[Key(item.sequence.id, item.sequence.segment, seed) for item in batch.items] for seed, batch in batches]
        done = agree(keep_whole_batches(path, keys) if leads() else 0)
        written = sum(len(batch.items) for _, batch in batches[:done])
        with progress("answer", len(items) * len(seeds), written) as report:
            for rows in self.rows_of(batches[done:]):
                if leads():
                    append(path, rows)
                written += len(rows)
                report(written, f"after {done} batches of an earlier run" if done else "")

    def rows_of(self, batches: list[tuple[int, Batch]]) -> Iterator[list[dict]]:
        """The lines of every batch (with its seed), in order; on a single device the next batch is computed meanwhile.

        With several devices every process must give them the same work in the same order.
        """

        def rows(seed: int, batch: Batch) -> list[dict]:
            with jax.set_mesh(self.mesh):  # each thread has its own
                return self.rows(batch, seed)

        at_once = 2 if self.mesh.size == 1 else 1
        with ThreadPoolExecutor(at_once) as pool:
            waiting: deque[Future] = deque()
            for batch in batches:
                waiting.append(pool.submit(rows, *batch))
                if len(waiting) == at_once:
                    yield waiting.popleft().result()
            yield from (future.result() for future in waiting)

    def rows(self, batch: Batch, seed: int) -> list[dict]:
        """The lines of a batch."""
        views, items = (OWN, OTHER, *self.settings.eval.perturb), batch.items
        places = [item.place for item in items]
        answers = {view: self.answer([self.prompt(item, view) for item in items], seed, places, batch.each) for view in views}
        commonest = self.prepared.manifest.commonest
        return [
            make_row(
                item.sequence,
                item.other,
                seed,
                {view: answers[view][i] for view in views},
                commonest.get(item.sequence.question, commonest[""]),
            )
            for i, item in enumerate(items)
        ]

    def prompt(self, item: Item, view: str) -> Prompt:
        """The item's question after its own ECGs, after another patient's, or after its own ones perturbed."""
        sequence, rate = item.sequence, self.settings.signal.target_rate
        if view in (OWN, OTHER):
            return (sequence if view == OWN else item.other).ecgs, sequence.question_ids
        ecgs = (perturb(view, ecg, self.tokenizer, rate, self.settings.seed) for ecg in sequence.ecgs)
        return tuple(ecgs), sequence.question_ids

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
            stop_ids=(ids.eos,),
            pad_id=ids.pad,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            key=jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers),
            return_log_probs=True,
        )
        tokens, log_probs = multihost_utils.process_allgather((tokens, log_probs), tiled=True)
        return read_answers(tokens[rows], log_probs[rows], ids.eos, self.prepared.text_tokenizer)


def read_answers(
    tokens: np.ndarray, log_probs: np.ndarray, eos: int, text_tokenizer: "PreTrainedTokenizerFast"
) -> list[Answer]:
    """The answers in generated tokens int32 [B, N] with their log-probabilities float32 [B, N]."""
    kept = [row[:end].tolist() for row, end in zip(tokens, _ends(tokens, eos))]
    texts = text_tokenizer.batch_decode(kept, skip_special_tokens=True)
    return [Answer(text.strip(), row, float(total)) for text, row, total in zip(texts, kept, log_probs.sum(axis=1))]


def _ends(tokens: np.ndarray, eos: int) -> np.ndarray:
    """How many tokens of each row [B, N] belong to the answer, including its eos where it has one."""
    stops = tokens == eos
    return np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, tokens.shape[1])
