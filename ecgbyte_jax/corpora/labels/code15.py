"""CODE-15% (Ribeiro et al. 2021): recordings as rows of HDF5 files, with six labels, age and sex in one table.

Axes: N recordings of a part, T samples (4096), L leads (12).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ecgbyte_jax.corpora.example import Example, Rejected, split_of
from ecgbyte_jax.corpora.labels.questions import Labelled, ask
from ecgbyte_jax.corpora.source import file_fingerprint
from ecgbyte_jax.corpora.tables import read_csv
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.errors import ConfigError, CorpusError, RecordError

if TYPE_CHECKING:
    import h5py

EXAMS = "exams.csv"
SAMPLE_RATE = 400.0  # Hz
_LABELS = {
    "1dAVb": "first degree atrioventricular block",
    "RBBB": "right bundle branch block",
    "LBBB": "left bundle branch block",
    "SB": "sinus bradycardia",
    "ST": "sinus tachycardia",
    "AF": "atrial fibrillation",
}
_COLUMNS = {"exam_id", "age", "is_male", "patient_id", "trace_file", *_LABELS}
_UNITS = {"1e-4 V": 0.1, "mV": 1.0}  # mV in one; documented is the first
# From the lowest to the highest value of a lead, mV: over 400 recordings of PTB-XL and CPSC 2018 the median of a recording's
# leads is 1.34 in the median, and that of 16 random recordings 0.98 to 1.90. Units are ten times apart.
_SPAN = 0.42, 4.2
_SPANS = 16  # recordings of a part that its unit is found by
_BLOCK_BYTES = 1 << 26  # of a compressed part, at most, in memory at once
_WHERE_TO_GET = (
    "CODE-15% (CC BY 4.0) is at https://zenodo.org/records/4916206; set --config.data.root to the folder of exams.csv and "
    "the unpacked exams_part0.hdf5 to exams_part17.hdf5"
)


@dataclass(frozen=True, slots=True)
class Part:
    """An HDF5 file: `millivolts` is 1 of its unit; `rows` of it are read together, as it is compressed in such blocks."""

    root: Path
    name: str
    millivolts: float
    rows: int


@dataclass(frozen=True, slots=True)
class Tracing:
    """A recording: a row of a part."""

    part: Part
    row: int
    exam: str

    def __str__(self) -> str:
        return f"{self.part.root / self.name}"

    @property
    def root(self) -> Path:
        """The folder of the parts."""
        return self.part.root

    @property
    def name(self) -> str:
        """The part's name and the exam's."""
        return f"{self.part.name}#{self.exam}"

    def fingerprint(self, times: bool) -> list[object]:
        """Of the part, and which row of it is read in which unit."""
        return [file_fingerprint(self.part.root / self.part.name, times), self.row, self.part.millivolts]

    def read(self) -> Record:
        """Reads the row alone, in mV and without the zeros on both sides; raises RecordError."""
        path, rows = self.part.root / self.part.name, self.part.rows
        try:
            block = _read_block(path, self.row // rows * rows, rows, str(file_fingerprint(path, times=True)))
            signal = _without_padding(block[self.row % rows])
        except (OSError, KeyError, IndexError) as error:
            raise RecordError(f"{self}: cannot be read: {error}") from error
        if not len(signal):
            raise RecordError(f"{self}: zeros alone found, an ECG expected")
        return Record((signal.T * self.part.millivolts).astype(np.float32), SAMPLE_RATE, LEADS)


class _Exam(NamedTuple):
    """What exams.csv tells of a recording."""

    patient: str
    labels: tuple[str, ...]
    age: int
    sex: str

    @classmethod
    def of(cls, row: dict[str, str]) -> "_Exam":
        labels = tuple(name for column, name in _LABELS.items() if row[column] == "True")
        age = int(row["age"]) if re.fullmatch(r"\d{1,3}", row["age"], re.ASCII) else -1
        return cls(row["patient_id"].strip(), labels, age, "male" if row["is_male"] == "True" else "female")


@lru_cache(maxsize=1)
def _read_block(path: Path, first: int, rows: int, version: str) -> np.ndarray:
    """[rows, T, L] of a part; neighbours in a compressed block are read one after the other."""
    import h5py

    with h5py.File(path, "r") as file:
        return file["tracings"][first : first + rows]


def _without_padding(tracing: np.ndarray) -> np.ndarray:
    """[T', L] between the first and the last sample that is not 0 in all leads."""
    places = np.flatnonzero(tracing.any(axis=1))
    return tracing[places[0] : places[-1] + 1] if len(places) else tracing[:0]


def read_exams(root: Path, question_types: tuple[str, ...]) -> Iterator[Example | Rejected]:
    """Yields questions of the given types (all if empty) about the exams of exams.csv, part by part in the order of rows.

    Raises CorpusError and ConfigError as `read_labelled` does.
    """
    recordings: list[Labelled] = []
    for item in read_labelled(root):
        if isinstance(item, Rejected):
            yield item
        else:
            recordings.append(item)
    yield from ask(recordings, question_types, (*_LABELS.values(),))


def read_labelled(root: Path) -> Iterator[Labelled | Rejected]:
    """Yields the exams of exams.csv, part by part in the order of rows, or what is wrong with them.

    Patients are split by a hash (`split_of`). All exams of a part that is missing, truncated, of another shape or of an unknown
    unit are rejected. Raises CorpusError if exams.csv or a column of it is missing, ConfigError without h5py.
    """
    path = root / EXAMS
    if not path.is_file():
        raise CorpusError(f"data.root: no {EXAMS} in '{root}'. {_WHERE_TO_GET}")
    if find_spec("h5py") is None:
        raise ConfigError("data.corpus 'code15' needs h5py: install the extra, pip install -e '.[code15]'")
    exams: dict[str, dict[str, _Exam]] = {}  # by part and exam_id
    seen: set[str] = set()
    for line, row in read_csv(path, _COLUMNS):
        fault = row if isinstance(row, str) else _fault(row, seen)
        if isinstance(row, str) or fault:
            yield Rejected(f"line {line}", str(path), f"line {line}: {fault}")
        else:
            seen.add(row["exam_id"])
            exams.setdefault(row["trace_file"], {})[row["exam_id"]] = _Exam.of(row)
    for name in sorted(exams, key=lambda name: (len(name), name)):
        try:
            part, rows = _open(root, name)
        except CorpusError as error:
            yield from (Rejected(exam, str(root / name), str(error)) for exam in exams[name])
            continue
        for exam in sorted(exams[name], key=lambda exam: rows.get(exam, -1)):
            if rows.get(exam, -1) < 0:
                reason = "the exam_id is there twice" if exam in rows else "no such exam_id"
                yield Rejected(exam, str(root / name), f"{reason}; one row of it expected")
            else:
                patient, labels, age, sex = exams[name][exam]
                source = Tracing(part, rows[exam], exam)
                yield Labelled(exam, patient, split_of(patient), source, labels, age, sex)


def _fault(row: dict[str, str], seen: set[str]) -> str:
    """What is wrong with a row of exams.csv; "" if nothing is."""
    if not re.fullmatch(r"\d{1,18}", row["exam_id"], re.ASCII) or not row["patient_id"].strip():
        return f"exam_id {row['exam_id']!r} and patient_id {row['patient_id']!r} found, a number and a name expected"
    if not re.fullmatch(r"[\w-]+\.(hdf5|h5)", row["trace_file"], re.ASCII):
        return f"trace_file {row['trace_file']!r} found, the name of a part (exams_part0.hdf5) expected"
    wrong = {name: row[name] for name in ("is_male", *_LABELS) if row[name] not in ("True", "False")}
    if wrong:
        return f"{wrong} found, True or False expected"
    return "the exam_id is in an earlier row" if row["exam_id"] in seen else ""


def _open(root: Path, name: str) -> tuple[Part, dict[str, int]]:
    """A part, and the row of each exam, -1 for one that has several; raises CorpusError if it cannot be used."""
    import h5py

    if not (root / name).is_file():
        raise CorpusError("no such part; download it, or let data.max_bad_fraction allow its share of the exams")
    try:
        with h5py.File(root / name, "r") as file:
            tracings, ids = file.get("tracings"), file.get("exam_id")
            if not isinstance(tracings, h5py.Dataset) or not isinstance(ids, h5py.Dataset):
                raise CorpusError(f"datasets {sorted(file)} found, tracings and exam_id expected")
            shape, kind = tracings.shape, tracings.dtype.kind
            if len(shape) != 3 or shape[2] != len(LEADS) or ids.shape != shape[:1] or kind not in "fiu":
                found = f"tracings {tracings.dtype}{list(shape)} and exam_id {list(ids.shape)}"
                raise CorpusError(f"{found} found, numbers [N, 4096, 12] and [N] expected")
            part = Part(root, name, _millivolts(tracings), _rows(tracings))
            exams = [str(exam) for exam in ids[:].tolist()]
    except OSError as error:
        raise CorpusError(f"not readable as HDF5, or truncated: {error}") from error
    rows: dict[str, int] = {}
    for row, exam in enumerate(exams):
        rows[exam] = -1 if exam in rows else row
    return part, rows


def _rows(tracings: "h5py.Dataset") -> int:
    """How many rows are decompressed together."""
    rows = tracings.chunks[0] if tracings.chunks else 1
    return max(1, min(rows, _BLOCK_BYTES // (tracings.dtype.itemsize * tracings.shape[1] * tracings.shape[2])))


def _millivolts(tracings: "h5py.Dataset") -> float:
    """How many mV 1 is, by the height of a few recordings; raises CorpusError if no unit fits."""
    drawn = {int(row) for row in np.linspace(0, len(tracings) - 1, _SPANS)} if len(tracings) else set()
    signals = [_without_padding(tracings[row]) for row in sorted(drawn)]
    spans = [np.median(np.ptp(signal, axis=0)) for signal in signals if len(signal)]
    if not spans:
        raise CorpusError("no recording found, one that is not zeros alone expected")
    found = float(np.median(spans))
    fitting = [millivolts for millivolts in _UNITS.values() if _SPAN[0] <= found * millivolts < _SPAN[1]]
    if not fitting:
        raise CorpusError(
            f"leads that span {found:.3g} found in the median, {' or '.join(_UNITS)} expected, in which they span "
            f"{' or '.join(f'{_SPAN[0] / one:g} to {_SPAN[1] / one:g}' for one in _UNITS.values())}"
        )
    return fitting[0]
