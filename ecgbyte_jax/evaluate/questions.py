"""The questions that are answered: which, of which other patient's ECG too, and in which batches."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby

import grain
import numpy as np

from ecgbyte_jax.errors import ConfigError, ScoresError
from ecgbyte_jax.inputs.batches import key_of, open_ecgs, open_outlines
from ecgbyte_jax.inputs.controls import open_shown
from ecgbyte_jax.inputs.prepared import Prepared
from ecgbyte_jax.inputs.shards import Sequence, read_manifest
from ecgbyte_jax.inputs.signals import open_signals
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings

_NEIGHBOURS = 32  # ECGs of similar length that another patient's is drawn from


@dataclass(frozen=True, eq=False)
class Item:
    """A question's sequence, the other patient's sequence whose ECGs it is also asked of, its index in the split."""

    sequence: Sequence
    other: Sequence
    place: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Items that are answered together, `each` rows for every ECG (or for every two that are compared)."""

    items: list[Item]
    each: int


def choose(settings: Settings, prepared: Prepared) -> list[Item]:
    """The questions to be answered, those with the shortest ECGs first and all about the same ECGs together.

    They show what `eval.ecg` says in place of their own ECGs.
    Raises ScoresError for one without a reference, ConfigError for one whose ECGs no other patient's can replace.
    """
    dataset = _open_asked(settings, prepared, settings.eval.split)
    groups = _draw(settings, prepared, settings.eval.split, dataset)
    others = _other_patients([group[0][1] for group in groups], settings.data_seed, dataset)
    return [Item(sequence, other, place) for group, other in zip(groups, others) for place, sequence in group]


def choose_alone(settings: Settings, prepared: Prepared, split: str) -> list[Item]:
    """As `choose`, of another split, where no other patient's ECG is asked about: `other` is the sequence itself."""
    groups = _draw(settings, prepared, split, _open_asked(settings, prepared, split))
    return [Item(sequence, sequence, place) for group in groups for place, sequence in group]


def _open_asked(settings: Settings, prepared: Prepared, split: str) -> grain.MapDataset:
    return open_shown(prepared, split, settings.eval.ecg, settings.signal.segment_length, settings.data_seed)


def _draw(settings: Settings, prepared: Prepared, split: str, dataset: grain.MapDataset) -> list[list[tuple[int, Sequence]]]:
    """The drawn sequences with their indices in the split, in groups about the same ECGs, the shortest ECGs first."""
    count = min(settings.eval.max_sequences or len(dataset), len(dataset))
    places = np.sort(np.random.default_rng(settings.data_seed).choice(len(dataset), count, replace=False))
    sequences = _sharing_ecgs(dataset[int(place)] for place in places)
    empty = [sequence.id for sequence in sequences if not sequence.answer.strip()]
    if empty:
        raise ScoresError(
            f"{prepared.shards}: {len(empty)} of {len(sequences)} references of split '{split}' are empty, for "
            f"example that of {empty[0]!r}; nothing to score answers against: run --stage=prepare again"
        )
    by_ecgs: dict[tuple[str, tuple[bytes, ...]], list[tuple[int, Sequence]]] = {}
    for place, sequence in zip(places, sequences):
        by_ecgs.setdefault((sequence.patient, key_of(sequence.ecgs)), []).append((int(place), sequence))
    return sorted(by_ecgs.values(), key=lambda group: sum(map(len, group[0][1].ecgs)))


def _sharing_ecgs(sequences: Iterable[Sequence]) -> list[Sequence]:
    """The sequences with one array for each ECG, of which there are far fewer: a signal of 2 s takes 24 KB."""
    known: dict[bytes, np.ndarray] = {}
    return [
        replace(sequence, ecgs=tuple(known.setdefault(ecg.tobytes(), ecg) for ecg in sequence.ecgs)) for sequence in sequences
    ]


def _other_patients(sequences: list[Sequence], seed: int, split: grain.MapDataset | tuple = ()) -> list[Sequence]:
    """For every sequence, in order of length, one with as many ECGs, of none of its patients, and nearly as long.

    It is drawn from about 32, so that its length tells a model nothing and a batch needs no more room for it; where these share
    a patient, it is the nearest one, or the first one of the whole split. In a mixture it is of the same set of recordings
    where there is one: a model may tell the sets apart and still read nothing. Raises ConfigError where there is none.
    """
    rng = np.random.default_rng(seed)
    patients = [_patients(sequence) for sequence in sequences]
    kinds = [(len(sequence.ecgs), sequence.source) for sequence in sequences]
    others: dict[int, Sequence] = {}
    for kind in sorted({*kinds}):
        places = [place for place, found in enumerate(kinds) if found == kind]
        for place, near in ((place, group) for group in _neighbours(places, patients) for place in group):
            foreign = [other for other in near if patients[place].isdisjoint(patients[other])]
            if foreign:
                others[place] = sequences[foreign[rng.integers(len(foreign))]]
                continue
            nearest = sorted(places, key=lambda other, place=place: abs(other - place))
            source = sequences[place].source
            alike = (other for other in _all_of(split) if other.source == source)
            others[place] = _first_foreign(sequences[place], chain((sequences[n] for n in nearest), alike, _all_of(split)))
    return [others[place] for place in range(len(sequences))]


def _all_of(split: grain.MapDataset | tuple) -> Iterator[Sequence]:
    return (split[number] for number in range(len(split)))


def _neighbours(places: list[int], patients: list[frozenset[str]]) -> list[list[int]]:
    """Consecutive places in groups of at least 32 and of different patients, where there are so many."""
    groups: list[list[int]] = [[]]
    for place in places:
        if len(groups[-1]) >= _NEIGHBOURS and len({patients[other] for other in groups[-1]}) > 1:
            groups.append([])
        groups[-1].append(place)
    if len(groups) > 1 and len({patients[other] for other in groups[-1]}) == 1:
        last = groups.pop()
        groups[-1] += last
    return groups


def _first_foreign(sequence: Sequence, others: Iterable[Sequence]) -> Sequence:
    for other in others:
        if len(other.ecgs) == len(sequence.ecgs) and _patients(sequence).isdisjoint(_patients(other)):
            return other
    raise ConfigError(
        f"eval.split: question {sequence.id!r} shows {len(sequence.ecgs)} ECG(s), and no other question about as many is of "
        "other patients; one patient alone cannot be evaluated, since every question is also asked of another patient's ECG"
    )


def _patients(sequence: Sequence) -> frozenset[str]:
    """Everyone whose ECG the sequence shows."""
    return frozenset(sequence.meta.get("patients", (sequence.patient,)))


def in_batches(items: list[Item], size: int, parts: int) -> list[Batch]:
    """The items in their order in batches of at most `size` rows, which a mesh splits into `parts`.

    Rows per ECG are a power of two that minimises computed tokens; busy ECGs take several slots, others leave rows empty.
    """
    groups = by_ecgs(items)
    counts = np.array([len(group) for group in groups])
    ecg = np.mean([sum(map(len, item.sequence.ecgs)) for item in items])
    question = np.mean([len(item.sequence.prompt) for item in items])
    choices = [2**power for power in range(size.bit_length()) if size // parts % 2**power == 0]
    each = min(choices, key=lambda each: (-(-counts // each)).sum() * (ecg + each * question))
    batches: list[Batch] = []
    slots_left = 0
    for group in groups:
        for start in range(0, len(group), each):
            if slots_left == 0:
                batches.append(Batch([], each))
                slots_left = size // each
            batches[-1].items.extend(group[start : start + each])
            slots_left -= 1
    return batches


def by_ecgs(items: list[Item]) -> list[list[Item]]:
    """The items in groups of consecutive ones that ask about the same ECGs."""
    return [list(group) for _, group in groupby(items, key=lambda item: key_of(item.sequence.ecgs))]


def find_sequences(workdir: Workdir, split: str, rows: list[dict], *, signals: bool = False) -> dict[tuple[str, int], Sequence]:
    """The shards' sequences of evaluated rows, by id and segment; raises ConfigError where one is missing.

    signals: their ECGs are the clean signals, for a model that reads vectors of these.
    """
    missing = {(row["id"], row["segment"]) for row in rows}
    sequences: dict[tuple[str, int], Sequence] = {}
    manifest = read_manifest(workdir.shards)
    if split not in manifest.splits:
        raise ConfigError(
            f"{workdir.results}: split {split!r} found, one of {list(manifest.splits)} expected; run --stage=eval again"
        )
    read = open_signals(workdir.signals).__getitem__ if signals else open_ecgs(workdir.shards, manifest, split)
    for outline in open_outlines(workdir.shards, manifest, split):
        key = outline.id, outline.segment
        if key in missing:
            missing.remove(key)
            sequences[key] = replace(outline, ecgs=tuple(read(int(place)) for place in outline.ecgs))
            if not missing:
                return sequences
    raise ConfigError(f"{workdir.shards}: no {sorted(missing)[:3]}, found in {workdir.generations}; run --stage=eval again")
