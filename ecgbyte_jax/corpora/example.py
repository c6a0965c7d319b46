"""What every corpus yields."""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ecgbyte_jax.corpora.source import SignalSource, WfdbRecord
from ecgbyte_jax.errors import ExampleError
from ecgbyte_jax.settings import SPLITS as SPLITS

_PUBLISHED_SEED = 42
_DEPTH = 32  # of nested lists and objects


class Stratum(NamedTuple):
    """What is known of a recording for cross-validation: its labels, and its fold in its set's own ten; 0: it has none."""

    labels: tuple[str, ...] = ()
    fold: int = 0


_UNKNOWN = Stratum()


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one recording, or comparing two, and its answer.

    id: unique in the corpus; patient: of the (first) recording; split: one of SPLITS; records: where their signals are, in
    prompt order; meta: the corpus' other fields, as JSON values; its "patients" names each recording's
    patient if they differ; history: the questions and answers before it in its conversation, previous: the id of the last of
    those; strata: of each recording, () where nothing is known; segment: the only one of its recordings' segments that it is
    about, -1 for all. Raises ExampleError if a text is empty, the split unknown, there is no recording, or `meta` cannot be
    stored.
    """

    id: str
    patient: str
    split: str
    records: tuple[SignalSource, ...]
    question: str
    answer: str
    meta: dict = field(default_factory=dict)
    history: tuple[tuple[str, str], ...] = ()
    previous: str = ""
    strata: tuple[Stratum, ...] = field(default=(), compare=False)
    segment: int = -1

    def __post_init__(self) -> None:
        for name in ("id", "patient", "question", "answer"):
            if not getattr(self, name).strip():
                raise ExampleError(f"the {name} is empty")
            if not is_text(getattr(self, name)):
                raise ExampleError(f"the {name} holds half a character or bytes that are not UTF-8")
        if self.split not in SPLITS:
            raise ExampleError(f"split {self.split!r} found, one of {SPLITS} expected")
        if not self.records:
            raise ExampleError("no recording found, at least one expected")
        for name in ("question_type", "attribute_type"):
            if not isinstance(self.meta.get(name, ""), str):
                raise ExampleError(f"{name} {self.meta[name]!r} found, a text expected")
        attributes = self.meta.get("attribute", "")
        if not isinstance(attributes, str | list) or not all(isinstance(name, str) for name in attributes):
            raise ExampleError(f"attribute {attributes!r:.60} found, a text or a list of texts expected")
        for name, value in self.meta.items():
            fault = _fault(name) or _fault(value)
            if fault:
                raise ExampleError(f"field {name!r} {fault}")

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """The conversation up to its answer."""
        return (*self.history, (self.question, self.answer))

    @property
    def patients(self) -> tuple[str, ...]:
        """The patients of its recordings."""
        return tuple(self.meta.get("patients", (self.patient,)))

    def owner(self, record: SignalSource) -> str:
        """The patient of one of its recordings."""
        patients = self.patients
        return patients[self.records.index(record) if len(patients) > 1 else 0]


PART = "mixture_part"  # the field of `meta` that names the corpus of a mixture which an example is from
MISSING = "no recording"  # how the reason begins where an example's recording is not there; the file is then its set


@dataclass(frozen=True, slots=True)
class Rejected:
    """An unusable example: its id, the file at fault, and the reason."""

    id: str
    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Recording:
    """A row of a database of recordings."""

    patient: str
    split: str
    record: SignalSource
    report: str
    stratum: Stratum = _UNKNOWN


def wfdb_record(root: Path, name: str) -> WfdbRecord:
    """The WFDB record `name`, with or without extension, in `root`; raises ExampleError as `inside` does."""
    path = inside(name)
    return WfdbRecord(root, path[:-4] if path.endswith((".hea", ".dat")) else path)


def inside(name: str) -> str:
    """A record's path in its root, without detours; raises ExampleError if it is outside or not text."""
    if not is_text(name):
        raise ExampleError(f"record path {name!r} holds half a character or bytes that are not UTF-8")
    path = os.path.normpath(name)
    if not name.strip() or os.path.isabs(path) or path.split(os.sep)[0] in ("..", ".") or "\0" in name:
        raise ExampleError(f"record path {name!r} found, one inside the data's root expected")
    return path


def split_of(patient: str) -> str:
    """A patient's split in a corpus without its own: 80% train, 10% valid, 10% test, by a hash of the name."""
    place = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") % 10
    return "train" if place < 8 else "valid" if place == 8 else "test"


def published_splits(count: int) -> Sequence[str]:
    """ECG-Byte's own split of `count` examples, regardless of patient: 70% train, 12% valid, 18% test at random, seed 42.

    Equal to scikit-learn's `train_test_split(test_size=0.3)` and then `(test_size=0.6)`, with random_state 42.
    """
    drawn = np.random.RandomState(_PUBLISHED_SEED).permutation(count)
    rest = drawn[: math.ceil(0.3 * count)]
    again = np.random.RandomState(_PUBLISHED_SEED).permutation(len(rest))
    splits = np.full(count, "train", dtype="<U5")
    splits[rest] = "valid"
    splits[rest[again[: math.ceil(0.6 * len(rest))]]] = "test"
    return splits.tolist()


def is_text(value: str) -> bool:
    """Whether a text can be written as UTF-8."""
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _fault(value: object, depth: int = _DEPTH) -> str:
    """Why token shards or JSON files cannot hold a JSON value; "" if they can."""
    match value:
        case str():
            return "" if is_text(value) else "holds half a character or bytes that are not UTF-8"
        case int():
            return "" if -(2**63) <= value < 2**64 else "holds a whole number beyond 64 bits"
        case float():
            return "" if math.isfinite(value) else "holds a number that is not finite"
        case list() | dict() if depth == 0:
            return f"is nested more than {_DEPTH} deep"
        case list() | dict():
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            return next(filter(None, (_fault(part, depth - 1) for part in parts)), "")
    return ""
