"""One corpus out of several: unique ids, one name for each patient, and no patient or recording in two splits.

A recording that two corpora have is known by its set and its name there (PTB-XL's ecg_id), or as the same file; its patients
are then one. A patient whose corpora disagree on the split is in the most held out of theirs: test, else valid, else train.
"""

import os
import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from ecgbyte_jax.corpora.conversations import RECORD_NAMES
from ecgbyte_jax.corpora.example import PART, Example, Rejected
from ecgbyte_jax.corpora.measured.read import Unmeasured
from ecgbyte_jax.corpora.measured.spoilt import Spoilt
from ecgbyte_jax.corpora.read import SEVERAL
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.settings import SPLITS

Item = TypeVar("Item", Example, Rejected, Unmeasured)
_OWN = "own/"  # how the patients of a table of one's own begin
_real = cache(os.path.realpath)


@dataclass(frozen=True)
class Part:
    """One corpus of a mixture: its name there, the set of its recordings (`About.recordings`), their folder, its examples."""

    name: str
    recordings: str
    root: Path
    examples: list[Example]
    rejected: list[Rejected]


class Mixed(NamedTuple):
    """The examples and rejected ones of all parts; how many were moved, by (part, split, new split).

    shared: the recordings that several parts have.
    """

    examples: list[Example]
    rejected: list[Rejected]
    moved: Counter[tuple[str, str, str]]
    shared: int


def mix(parts: list[Part]) -> Mixed:
    """Puts parts, each by itself without a patient in two splits, together.

    Ids begin with the name of the part, patients with that of their set. A comparison of patients who are in different splits
    now is rejected.
    """
    people, recordings = _Groups(), _Recordings()
    owners = [[_patients(part, example, parts) for example in part.examples] for part in parts]
    for part, names in zip(parts, owners):
        for example, patients in zip(part.examples, names):
            for record, patient in zip(example.records, patients if len(patients) > 1 else patients * len(example.records)):
                for key in recordings.keys(part, record):
                    people.join(patient, key)
    named = people.names()
    splits: dict[str, str] = {}
    for part, names in zip(parts, owners):
        for example, patients in zip(part.examples, names):
            for patient in patients:
                splits[named[patient]] = max(splits.get(named[patient], ""), example.split, key=_held_out)
    mixed = Mixed([], [], Counter(), recordings.shared())
    for part, names in zip(parts, owners):
        mixed.rejected.extend(rename(rejected, part.name) for rejected in part.rejected)
        for example, patients in zip(part.examples, names):
            example = rename(example, part.name)
            patients = tuple(dict.fromkeys(named[patient] for patient in patients))
            own_splits = {splits[patient] for patient in patients}
            if len(own_splits) > 1:
                reason = f"its patients {list(patients)} are in different splits of the mixture, {sorted(own_splits)}"
                mixed.rejected.append(Rejected(example.id, str(example.records[0]), reason))
                continue
            (split,) = own_splits
            if split != example.split:
                mixed.moved[part.name, example.split, split] += 1
            meta = {name: value for name, value in example.meta.items() if name != "patients"} | {PART: part.name}
            meta |= {"patients": list(patients)} if len(patients) > 1 else {}
            records = tuple(recordings.first(part, record) for record in example.records)
            mixed.examples.append(replace(example, patient=patients[0], split=split, records=records, meta=meta))
    return mixed


def rename(item: Item, part: str) -> Item:
    """The item with the id that it has in a mixture."""
    if not isinstance(item, Example):
        return replace(item, id=f"{part}:{item.id}")
    return replace(item, id=f"{part}:{item.id}", previous=f"{part}:{item.previous}" if item.previous else "")


def _held_out(split: str) -> int:
    return SPLITS.index(split) if split else -1


def _patients(part: Part, example: Example, parts: list[Part]) -> tuple[str, ...]:
    """The names of an example's patients in the mixture, those of one set alike."""
    if part.recordings == SEVERAL:  # named by their sets already
        names = example.patients
    elif part.recordings:
        names = tuple(f"{part.recordings} {patient}" for patient in example.patients)
    else:  # tables about the same folder speak of the same patients
        first = next(other for other in parts if not other.recordings and _real(other.root) == _real(part.root))
        return tuple(f"{_OWN}{first.name} {patient}" for patient in example.patients)
    return tuple(re.sub(r"^mimic p(?=\d+$)", "mimic ", name) for name in names)  # as some have them by their folders


@dataclass
class _Recordings:
    """What the parts' recordings are known by, and the first of those that are the same files."""

    _keys: dict[tuple[str, SignalSource], tuple[Hashable, ...]] = field(default_factory=dict)
    _first: dict[Hashable, SignalSource] = field(default_factory=dict)
    _same: dict[SignalSource, SignalSource] = field(default_factory=dict)
    _parts: dict[Hashable, set[str]] = field(default_factory=dict)

    def keys(self, part: Part, record: SignalSource) -> tuple[Hashable, ...]:
        """Its file, wherever links lead to it, and its set with its name there, where these are known; a copy has its own's."""
        if isinstance(record, Spoilt):
            return self.keys(part, record.source)
        keys = self._keys.get((part.recordings, record))
        if keys is None:
            keys = ((_real(record.root), record.name),)
            known = record.root.name if part.recordings == SEVERAL else part.recordings
            if known in RECORD_NAMES and (match := RECORD_NAMES[known].fullmatch(record.name.rpartition("#")[2])):
                keys += ((known, match[1]),)
            self._keys[part.recordings, record] = keys
        for key in keys:
            self._parts.setdefault(key, set()).add(part.name)
        return keys

    def first(self, part: Part, record: SignalSource) -> SignalSource:
        """The first recording that has a key and the name of this one, and files of the same sizes: one need be cleaned."""
        if record not in self._same:
            others = [self._first.setdefault((key, record.name), record) for key in self.keys(part, record)]
            alike = (o for o in others if o != record and o.fingerprint(False) == record.fingerprint(False))
            self._same[record] = next(alike, record)
        return self._same[record]

    def shared(self) -> int:
        """How many recordings several parts have."""
        of_sets = {keys[0] for keys in self._keys.values() if len(keys) > 1}
        distinct = {keys[-1]: keys for keys in self._keys.values() if len(keys) > 1 or keys[0] not in of_sets}
        return sum(any(len(self._parts[key]) > 1 for key in keys) for keys in distinct.values())


@dataclass
class _Groups:
    """Names of patients, and keys of recordings, in groups that are each one patient's."""

    _parents: dict[Hashable, Hashable] = field(default_factory=dict)

    def join(self, patient: str, key: Hashable) -> None:
        """Says that they belong together."""
        self._parents[self._find(key)] = self._find(patient)

    def names(self) -> dict[str, str]:
        """For the name of every patient, the one of its group that is a set's and the first in the alphabet."""
        groups: dict[Hashable, list[str]] = {}
        for name in self._parents:
            if isinstance(name, str):
                groups.setdefault(self._find(name), []).append(name)
        return {name: min(names, key=lambda name: (name.startswith(_OWN), name)) for names in groups.values() for name in names}

    def _find(self, item: Hashable) -> Hashable:
        parents = self._parents
        parents.setdefault(item, item)
        while parents[item] != item:
            parents[item] = parents[parents[item]]
            item = parents[item]
        return item
