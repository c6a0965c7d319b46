"""CPSC 2018 (Liu et al. 2018) in its first release: MATLAB files without headers, and a table of their labels by number.

A0001.mat holds a struct ECG with sex ("Male"), age in years and data [12, N] in mV at 500 Hz, leads I to V6 in the usual order;
REFERENCE.csv has the columns Recording, First_label, Second_label and Third_label, the last two mostly empty.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.corpora.example import Rejected, split_of
from ecgbyte_jax.corpora.labels.questions import Labelled
from ecgbyte_jax.corpora.source import file_fingerprint
from ecgbyte_jax.corpora.tables import read_csv
from ecgbyte_jax.ecg.formats.matlab import read_fields, read_matlab
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.errors import RecordError

REFERENCE = "REFERENCE.csv"
_SAMPLE_RATE = 500.0  # Hz
_LABELS = ("Normal", "AF", "I-AVB", "LBBB", "RBBB", "PAC", "PVC", "STD", "STE")  # 1 to 9
_COLUMNS = ("First_label", "Second_label", "Third_label")  # early tables have the first alone


@dataclass(frozen=True, slots=True)
class MatlabFile:
    """A recording: `name` is the path of its file in `root`."""

    root: Path
    name: str

    def __str__(self) -> str:
        return f"{self.root / self.name}"

    def read(self) -> Record:
        """Reads the file; raises RecordError, naming it."""
        signal, leads = read_matlab(self.root / self.name, LEADS)
        return Record(np.ascontiguousarray(signal, np.float32), _SAMPLE_RATE, leads)

    def fingerprint(self, times: bool) -> list[object]:
        """Of the file."""
        return [file_fingerprint(str(self), times)]


def read_first_release(
    root: Path, recordings: re.Pattern[str], tables: list[Path], names: Mapping[str, str]
) -> Iterator[Labelled | Rejected]:
    """Yields every recording of the tables, by name, or what is wrong with it; recordings without a row are rejected.

    recordings: of their names; names: of labels by abbreviation. Patients are as in `challenge.read_labelled`. Raises
    CorpusError as `read_csv` does.
    """
    labels: dict[str, tuple[str, ...]] = {}
    files: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.mat")):
        if recordings.fullmatch(path.stem):
            files.setdefault(path.stem, []).append(path)
    for table in tables:
        for line, row in read_csv(table, {"Recording", _COLUMNS[0]}):
            found = row if isinstance(row, str) else _labels(row)
            name = f"line {line}" if isinstance(row, str) else row["Recording"].strip()
            if isinstance(found, tuple) and labels.get(name, found) != found:
                found = f"labels {found} found, and {labels[name] or 'unusable ones'} in an earlier row"
            if isinstance(found, str):
                labels[name] = ()
                yield Rejected(name, str(table), f"line {line}: {found}")
            else:
                labels.setdefault(name, found)
    for name in sorted(files.keys() | {name for name, found in labels.items() if found}):
        paths = files.get(name, [])
        if not paths or name not in labels:
            reason = f"no row in {REFERENCE}" if paths else f"no file {name}.mat"
            yield Rejected(name, str(paths[0] if paths else root), reason)
        elif labels[name]:
            yield _labelled(root, paths[0], tuple(names[label] for label in labels[name]))
        for path in paths[1:]:
            yield Rejected(name, str(path), f"a recording of this name is also at '{paths[0]}'")


def _labels(row: dict[str, str]) -> tuple[str, ...] | str:
    """The abbreviations of a row's labels, or what is wrong with them."""
    numbers = [number for column in _COLUMNS if (number := row.get(column, "").strip())]
    wrong = [number for number in numbers if not re.fullmatch(r"[1-9]", number, re.ASCII)]
    if wrong or not numbers:
        return f"labels {wrong or numbers} found, numbers from 1 to {len(_LABELS)} expected"
    return tuple(dict.fromkeys(_LABELS[int(number) - 1] for number in numbers))


def _labelled(root: Path, path: Path, labels: tuple[str, ...]) -> Labelled:
    try:
        about = read_fields(path)
    except RecordError:
        about = {}  # the recording itself is set aside where it is read
    age, sex = about.get("age"), str(about.get("sex", "")).lower()
    return Labelled(
        id=path.stem,
        patient=path.stem,
        split=split_of(path.stem),
        record=MatlabFile(root, str(path.relative_to(root))),
        labels=labels,
        age=int(age) if isinstance(age, float) and 0 <= age < 1000 else -1,
        sex=sex if sex in ("male", "female") else "",
    )
