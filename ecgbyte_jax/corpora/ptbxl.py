"""PTB-XL (Wagner et al. 2020): one example a recording, the cardiologist's report as the answer."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ecgbyte_jax.corpora.example import Example, Rejected
from ecgbyte_jax.errors import CorpusError, ExampleError

DATABASE = "ptbxl_database.csv"
_COLUMNS = {"ecg_id", "patient_id", "report", "strat_fold", "filename_lr", "filename_hr"}
_WHERE_TO_GET = (
    "PTB-XL 1.0.3 (CC BY 4.0, 1.7 GB to download, 3.0 GB unpacked) is at https://physionet.org/content/ptb-xl/1.0.3/; "
    "set --config.data.root to the folder that holds ptbxl_database.csv. "
    "--config=experiments/demo.py needs no download"
)


@dataclass(frozen=True)
class Recording:
    """One row of the database; record is the WFDB path without extension."""

    patient: str
    split: str
    record: Path
    report: str


def read_reports(root: Path, sample_rate: int, question: str) -> Iterator[Example | Rejected]:
    """Every row of the database as an example, in the file's order, from the recordings at `sample_rate` Hz."""
    for id, found in read_database(root, sample_rate):
        if isinstance(found, Rejected):
            yield found
            continue
        try:
            yield Example(id, found.patient, found.split, found.record, question, found.report)
        except ExampleError as error:
            yield Rejected(id, str(root / DATABASE), str(error))


def read_database(root: Path, sample_rate: int) -> Iterator[tuple[str, Recording | Rejected]]:
    """(ecg_id, recording) for every row, or what is wrong with the row. Folds 1-8 train, 9 valid, 10 test: by patient.

    Raises CorpusError where the folder, the file or a column is missing.
    """
    path = root / DATABASE
    if not path.is_file():
        raise CorpusError(f"data.root: no {DATABASE} in '{root}'. {_WHERE_TO_GET}")
    if sample_rate not in (100, 500):
        raise CorpusError(f"data.sample_rate: {sample_rate} found, 100 or 500 (Hz) wanted")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = sorted(_COLUMNS - set(rows.fieldnames or ()))
            if missing:
                raise CorpusError(f"{path}: columns {missing} are missing")
            for row in rows:
                yield _recording(row, rows.line_num, root, "filename_hr" if sample_rate == 500 else "filename_lr")
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{path}: not readable as CSV in UTF-8: {error}") from error


def _recording(row: dict[str, str], line: int, root: Path, column: str) -> tuple[str, Recording | Rejected]:
    id = row["ecg_id"] or f"line {line}"
    try:
        fold = int(row["strat_fold"])
    except (TypeError, ValueError) as error:
        return id, Rejected(id, str(root / DATABASE), f"line {line}, strat_fold: {error}")
    patient = (row["patient_id"] or "").strip().removesuffix(".0")  # the official file writes 15709.0
    if not 1 <= fold <= 10 or not row[column] or not patient:
        reason = f"line {line}: strat_fold {fold}, patient_id {patient!r}, {column} {row[column]!r}"
        return id, Rejected(id, str(root / DATABASE), reason)
    split = "train" if fold <= 8 else "valid" if fold == 9 else "test"
    return id, Recording(patient, split, root / row[column], row["report"] or "")
