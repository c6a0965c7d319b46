"""The answers of a model to a split's questions: batched generation on any mesh and any number of processes.

Axes: B rows of a batch, T places of a prompt, N new tokens.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ConfigError, ScoresError
from ecgbyte_jax.inputs.batches import key_of, open_split, prompt_batch
from ecgbyte_jax.inputs.shards import Sequence
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.run.distributed import agree, leads
from ecgbyte_jax.run.generations import OTHER, OWN, Answer, Key, append, keep_whole_batches, make_row
from ecgbyte_jax.run.logbook import progress
from ecgbyte_jax.run.perturb import perturb
from ecgbyte_jax.run.prepare import Prepared
from ecgbyte_jax.run.sharding import batch_parts, put_whole

_NEAR = 32  # ECGs of like length

Prompt = tuple[tuple[np.ndarray, ...], np.ndarray]  # ECGs' compact ids, question ids


@dataclass(frozen=True, eq=False)
class Item:
    """A sequence to be answered for, the one of other patients whose ECGs it is shown too, and its place in the split."""

    sequence: Sequence
    other: Sequence
    place: int


def choose(config: ConfigDict, prepared: Prepared) -> list[Item]:
    """The sequences to answer for, those with the shortest ECGs first and all about the same ECGs together.

    Raises ScoresError for one without a reference, ConfigError for one that no other patient's ECGs can be swapped with.
    """
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
    by_ecgs: dict[tuple[str, tuple[bytes, ...]], list[int]] = {}
    for i, sequence in enumerate(sequences):
        by_ecgs.setdefault((sequence.patient, key_of(sequence.ecgs)), []).append(i)
    groups = sorted(by_ecgs.values(), key=lambda some: sum(map(len, sequences[some[0]].ecgs)))
    others = _other_patients([sequences[some[0]] for some in groups], config.seed, dataset)
    return [Item(sequences[i], other, int(places[i])) for some, other in zip(groups, others) for i in some]


def _other_patients(sequences: list[Sequence], seed: int, split: grain.MapDataset | tuple = ()) -> list[Sequence]:
    """For every sequence, sorted by length, one about as many ECGs, of none of its patients, and nearly as long.

    It is drawn at random from about 32, so that its length tells a model nothing and a batch needs no more room for it; where
    these share a patient, it is the nearest one, or the first one of the whole split. Raises ConfigError where there is none.
    """
    rng = np.random.default_rng(seed)
    whose = [_patients(sequence) for sequence in sequences]
    others: dict[int, Sequence] = {}
    for count in sorted({len(sequence.ecgs) for sequence in sequences}):
        places = [place for place, sequence in enumerate(sequences) if len(sequence.ecgs) == count]
        for near in _neighbours(places, whose):
            for one in near:
                foreign = [other for other in near if whose[one].isdisjoint(whose[other])]
                if foreign:
                    others[one] = sequences[foreign[rng.integers(len(foreign))]]
                else:
                    nearest = sorted(places, key=lambda place, one=one: abs(place - one))
                    elsewhere = (split[place] for place in range(len(split)))
                    others[one] = _first_foreign(sequences[one], chain((sequences[place] for place in nearest), elsewhere))
    return [others[place] for place in range(len(sequences))]


def _neighbours(places: list[int], whose: list[frozenset[str]]) -> list[list[int]]:
    """Consecutive places, at least 32 and of different patients where there are so many."""
    near: list[list[int]] = [[]]
    for place in places:
        if len(near[-1]) >= _NEAR and len({whose[other] for other in near[-1]}) > 1:
            near.append([])
        near[-1].append(place)
    if len(near) > 1 and len({whose[other] for other in near[-1]}) == 1:
        alone = near.pop()
        near[-1] += alone
    return near


def _first_foreign(one: Sequence, others: Iterable[Sequence]) -> Sequence:
    for other in others:
        if len(other.ecgs) == len(one.ecgs) and _patients(one).isdisjoint(_patients(other)):
            return other
    raise ConfigError(
        f"eval.split: question {one.id!r} shows {len(one.ecgs)} ECG(s), and no other question about as many is of other "
        "patients; one patient alone cannot be evaluated, since every question is also asked of another patient's ECG"
    )


def _patients(sequence: Sequence) -> frozenset[str]:
    """Everyone whose ECG it shows."""
    return frozenset(sequence.meta.get("patients", (sequence.patient,)))


@dataclass(frozen=True, eq=False)
class Batch:
    """Items that are answered together, `each` rows behind an ECG (or behind two that are compared)."""

    items: list[Item]
    each: int


def in_batches(items: list[Item], size: int, parts: int) -> list[Batch]:
    """The items in their order in batches of at most `size` rows, which a mesh splits in `parts`.

    By 1, 2, 4, ... the rows share an ECG, whichever leaves the least tokens to compute: an ECG with more questions stands there
    several times, one with fewer leaves rows empty.
    """
    groups = _same_ecgs(items)
    counts = np.array([len(some) for some in groups])
    ecg = np.mean([sum(map(len, item.sequence.ecgs)) for item in items])
    question = np.mean([len(item.sequence.question_ids) for item in items])
    choices = [2**power for power in range(size.bit_length()) if size // parts % 2**power == 0]
    each = min(choices, key=lambda each: (-(-counts // each)).sum() * (ecg + each * question))
    batches: list[Batch] = []
    room = 0
    for some in groups:
        for start in range(0, len(some), each):
            if room == 0:
                batches.append(Batch([], each))
                room = size // each
            batches[-1].items.extend(some[start : start + each])
            room -= 1
    return batches


def _same_ecgs(items: list[Item]) -> list[list[Item]]:
    """The items that follow one another and ask about the same ECGs."""
    return [list(some) for _, some in groupby(items, key=lambda item: key_of(item.sequence.ecgs))]


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
        seeds, size = self.config.eval.seeds, self.config.eval.batch_size
        batches = [(seed, batch) for seed in seeds for batch in in_batches(items, size, batch_parts(self.mesh))]
        keys = [[Key(item.sequence.id, item.sequence.segment, seed) for item in batch.items] for seed, batch in batches]
        done = agree(keep_whole_batches(path, keys) if leads() else 0)
        written = sum(len(batch.items) for _, batch in batches[:done])
        with progress("answer", len(items) * len(seeds)) as report:
            for rows in self.rows_of(batches[done:]):
                if leads():
                    append(path, rows)
                written += len(rows)
                report(written, f"from {done} batches on" if done else "")

    def rows_of(self, batches: list[tuple[int, Batch]]) -> Iterator[list[dict]]:
        """The lines of every batch (with its seed), in order; on a single device the next batch is under way meanwhile.

        Several devices have to be given the same work in the same order by every process.
        """

        def rows(seed: int, batch: Batch) -> list[dict]:
            with jax.set_mesh(self.mesh):  # a thread's own
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
        views, items = (OWN, OTHER, *self.config.eval.perturb), batch.items
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
        sequence, rate = item.sequence, self.config.signal.target_rate
        if view in (OWN, OTHER):
            return (sequence if view == OWN else item.other).ecgs, sequence.question_ids
        ecgs = (perturb(view, ecg, self.tokenizer, rate, self.config.seed) for ecg in sequence.ecgs)
        return tuple(ecgs), sequence.question_ids

    def answer(self, prompts: list[Prompt], seed: int = 0, places: list[int] | None = None, each: int = 1) -> list[Answer]:
        """What the model gives to the prompts of a batch; a row's draws follow from the seed and its place alone.

        `each`: as `inputs.batches.prompt_batch` has it.
        """
        cfg, ids, size = self.config.eval, self.prepared.ids, self.config.eval.batch_size
        batch, rows = prompt_batch(ids, prompts, size, self.config.prompt.max_length, each)
        numbers = np.zeros(size, np.int32)
        numbers[rows] = places or range(len(prompts))
        batch, numbers = put_whole((batch, numbers), self.mesh)
        tokens, log_probs = generate(
            self.model,
            **batch,
            max_new_tokens=cfg.max_new_tokens,
            stop_ids=(ids.eos,),
            pad_id=ids.pad,
            temperature=cfg.temperature,
            top_k=cfg.top_k,
            top_p=cfg.top_p,
            key=jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers),
            return_log_probs=True,
        )
        tokens, log_probs = multihost_utils.process_allgather((tokens, log_probs), tiled=True)
        tokens, log_probs = tokens[rows], log_probs[rows]
        ends = _ends(tokens, ids.eos)
        kept = [row[:end].tolist() for row, end in zip(tokens, ends)]
        texts = self.prepared.text_tokenizer.batch_decode(kept, skip_special_tokens=True)
        return [Answer(text.strip(), row, float(total)) for text, row, total in zip(texts, kept, log_probs.sum(axis=1))]


def _ends(tokens: np.ndarray, eos: int) -> np.ndarray:
    """How many tokens of each row [B, N] are the answer's, with its eos where it has one."""
    stops = tokens == eos
    return np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, tokens.shape[1])
