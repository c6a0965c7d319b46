"""The answers of a model to a split's questions: batched generation on any mesh and any number of processes.

Axes: B rows of a batch, T places of a prompt, N new tokens.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ConfigError, ScoresError
from ecgbyte_jax.inputs.batches import open_split, prompt_batch
from ecgbyte_jax.inputs.shards import Sequence
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.run.distributed import agree, leads
from ecgbyte_jax.run.generations import OTHER, OWN, Answer, Key, append, keep_whole_batches, make_row
from ecgbyte_jax.run.logbook import progress
from ecgbyte_jax.run.perturb import perturb
from ecgbyte_jax.run.prepare import Prepared
from ecgbyte_jax.run.sharding import batch_sharding, put_batch

Prompt = tuple[tuple[np.ndarray, ...], np.ndarray]  # ECGs' compact ids, question ids


@dataclass(frozen=True, eq=False)
class Item:
    """A sequence to be answered for, the one of another patient whose ECG it is shown too, and its place in the split."""

    sequence: Sequence
    other: Sequence
    place: int


def choose(config: ConfigDict, prepared: Prepared) -> list[Item]:
    """The sequences to answer for, those with the shortest prompts first; raises ScoresError for one without a reference."""
    dataset = open_split(prepared.shards, prepared.manifest, config.eval.split)
    wanted = min(config.eval.max_sequences or len(dataset), len(dataset))
    places = np.sort(np.random.default_rng(config.seed).choice(len(dataset), wanted, replace=False))
    sequences = [dataset[int(place)] for place in places]
    empty = [sequence.id for sequence in sequences if not sequence.answer.strip()]
    if empty:
        raise ScoresError(
            f"{prepared.shards}: {len(empty)} of {len(sequences)} references of split '{config.eval.split}' are empty, say "
            f"that of {empty[0]!r}; nothing to score answers against: run --stage=prepare again"
        )
    others = _other_patients(sequences, config.seed)
    order = np.argsort([sum(map(len, s.ecgs)) + len(s.question_ids) for s in sequences], kind="stable")
    return [Item(sequences[i], others[i], int(places[i])) for i in order]


def _other_patients(sequences: list[Sequence], seed: int) -> list[Sequence]:
    """For every sequence one of another patient, drawn at random; raises ConfigError where there is but one patient."""
    _, patients = np.unique([s.patient for s in sequences], return_inverse=True)
    sizes = np.bincount(patients)
    if len(sizes) < 2:
        raise ConfigError("eval.split: sequences of one patient alone found; at least two wanted, to swap their ECGs")
    order, starts = np.argsort(patients, kind="stable"), np.cumsum(sizes) - sizes
    drawn = np.random.default_rng(seed).integers(len(sequences) - sizes[patients])  # of those that are not the patient's
    drawn += np.where(drawn >= starts[patients], sizes[patients], 0)
    return [sequences[i] for i in order[drawn]]


@dataclass(frozen=True, eq=False)
class Answerer:
    """A model on its mesh, and what its prompts are made of."""

    config: ConfigDict
    prepared: Prepared
    tokenizer: ECGTokenizer
    model: Decoder
    mesh: Mesh

    def write(self, items: list[Item], path: Path) -> None:
        """Adds a line for every item and seed to the file, batch by batch, going on behind what stands there whole."""
        size, seeds = self.config.eval.batch_size, self.config.eval.seeds
        batches = [(seed, items[start : start + size]) for seed in seeds for start in range(0, len(items), size)]
        keys = [[Key(item.sequence.id, item.sequence.segment, seed) for item in some] for seed, some in batches]
        done = agree(keep_whole_batches(path, keys) if leads() else 0)
        written = sum(len(some) for _, some in batches[:done])
        with progress("answer", len(items) * len(seeds)) as report:
            for seed, some in batches[done:]:
                rows = self.rows(some, seed)
                if leads():
                    append(path, rows)
                written += len(some)
                report(written, f"from {done} batches on" if done else "")

    def rows(self, items: list[Item], seed: int) -> list[dict]:
        """The lines of at most `eval.batch_size` items."""
        views = (OWN, OTHER, *self.config.eval.perturb)
        places = [item.place for item in items]
        answers = {view: self.answer([self.prompt(item, view) for item in items], seed, places) for view in views}
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
        sequence, rate = item.sequence, self.config.signal.target_rate
        if view in (OWN, OTHER):
            return (sequence if view == OWN else item.other).ecgs, sequence.question_ids
        name = f"{sequence.id} {sequence.segment}"
        ecgs = (
            perturb(view, ecg, self.tokenizer, rate, self.config.seed, f"{name} {number}")
            for number, ecg in enumerate(sequence.ecgs)
        )
        return tuple(ecgs), sequence.question_ids

    def answer(self, prompts: list[Prompt], seed: int = 0, places: list[int] | None = None) -> list[Answer]:
        """What the model gives to at most `eval.batch_size` prompts; a row's draws follow from the seed and its place alone."""
        cfg, ids, size = self.config.eval, self.prepared.ids, self.config.eval.batch_size
        here = _local_rows(self.mesh, size)
        batch = prompt_batch(ids, prompts, size, self.config.prompt.max_length)
        batch = put_batch({name: rows[here] for name, rows in batch.items()}, self.mesh)
        key = None
        if cfg.temperature > 0:
            numbers = np.resize(np.array(places or range(len(prompts)), np.int32), size)
            numbers = put_batch({"places": numbers[here]}, self.mesh)["places"]
            key = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
        tokens, log_probs = generate(
            self.model,
            **batch,
            max_new_tokens=cfg.max_new_tokens,
            stop_ids=(ids.eos,),
            pad_id=ids.pad,
            temperature=cfg.temperature,
            top_k=cfg.top_k,
            top_p=cfg.top_p,
            key=key,
            return_log_probs=True,
        )
        tokens, log_probs = multihost_utils.process_allgather((tokens, log_probs), tiled=True)
        ends = _ends(tokens, ids.eos)[: len(prompts)]
        kept = [row[:end].tolist() for row, end in zip(tokens, ends)]
        texts = self.prepared.text_tokenizer.batch_decode(kept, skip_special_tokens=True)
        return [Answer(text.strip(), row, float(total)) for text, row, total in zip(texts, kept, log_probs.sum(axis=1))]


def _ends(tokens: np.ndarray, eos: int) -> np.ndarray:
    """How many tokens of each row [B, N] are the answer's, with its eos where it has one."""
    stops = tokens == eos
    return np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, tokens.shape[1])


def _local_rows(mesh: Mesh, rows: int) -> slice:
    """Which rows of a batch lie on this process' devices: one stretch, as the mesh keeps a process' devices together."""
    places = [index[0].indices(rows) for index in batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()]
    return slice(min(start for start, _, _ in places), max(stop for _, stop, _ in places))
