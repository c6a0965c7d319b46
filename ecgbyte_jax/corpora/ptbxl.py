"""PTB-XL (Wagner et al. 2020): one example per recording, with the cardiologist's report as the answer."""

import re
from collections.abc import Iterator
from pathlib import Path

from ecgbyte_jax.corpora.example import Example, Recording, Rejected, Stratum, wfdb_record
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.corpora.tables import read_csv
from ecgbyte_jax.errors import CorpusError, ExampleError

DATABASE = "ptbxl_database.csv"
STATEMENTS = "scp_statements.csv"
_COLUMNS = {"ecg_id", "patient_id", "report", "strat_fold", "filename_lr", "filename_hr"}
_WHERE_TO_GET = (
    "PTB-XL 1.0.3 (CC BY 4.0, 1.7 GB to download, 3.0 GB unpacked) is at https://physionet.org/content/ptb-xl/1.0.3/; "
    "set --config.data.root to the folder that holds ptbxl_database.csv. "
    "--config=experiments/demo.py needs no download"
)


def read_reports(
    root: Path, sample_rate: int, question: str, translations: Path | None = None, published_split: bool = False
) -> Iterator[Example | Rejected]:
    """Yields every row of the database as an example, in file order, with the recordings at `sample_rate` Hz.

    translations: a CSV file with the columns ecg_id and report, whose reports replace the German ones. Raises CorpusError like
    `read_database`, or if the translations are missing.
    """
    reports = _read_translations(translations) if translations else None
    seen: set[SignalSource] = set()
    for id, recording in read_database(root, sample_rate, published_split):
        if isinstance(recording, Rejected):
            yield recording
        elif recording.record in seen:
            yield Rejected(id, str(root / DATABASE), f"recording '{recording.record.name}' is in an earlier row")
        elif reports is not None and id not in reports:
            yield Rejected(id, str(translations), "no report with this ecg_id")
        else:
            report = recording.report if reports is None else reports[id]
            try:
                about = recording.patient, recording.split, (recording.record,)
                yield Example(id, *about, question, report, strata=(recording.stratum,))
                seen.add(recording.record)
            except ExampleError as error:
                yield Rejected(id, str(translations or root / DATABASE), str(error))


def read_database(root: Path, sample_rate: int, published_split: bool = False) -> Iterator[tuple[str, Recording | Rejected]]:
    """Yields (ecg_id, recording) for every row, or what is wrong with it.

    Folds 1-8 are train, 9 valid, 10 test, by patient; `published_split` uses 1-7, 8 and 9-10, also by patient, and rejects
    recordings without a diagnostic superclass. Raises CorpusError if the folder, a file or a column is missing.
    """
    path = root / DATABASE
    if not path.is_file():
        raise CorpusError(f"data.root: no {DATABASE} in '{root}'. {_WHERE_TO_GET}")
    if sample_rate not in (100, 500):
        raise CorpusError(f"data.sample_rate: {sample_rate} found, 100 or 500 (Hz) expected")
    column = "filename_hr" if sample_rate == 500 else "filename_lr"
    last_train = 7 if published_split else 8
    diagnostic = _read_diagnostic_codes(root / STATEMENTS) if published_split else None
    for line, row in read_csv(path, _COLUMNS | ({"scp_codes"} if published_split else set())):
        if isinstance(row, str):
            yield f"line {line}", Rejected(f"line {line}", str(path), f"line {line}: {row}")
        elif diagnostic is not None and diagnostic.isdisjoint(codes_of(row)):
            id = row["ecg_id"] or f"line {line}"
            reason = "no diagnostic superclass, which data.published_split requires"
            yield id, Rejected(id, str(path), f"line {line}: {reason}")
        else:
            yield _recording(row, line, root, column, last_train)


def _recording(row: dict[str, str], line: int, root: Path, column: str, last_train: int) -> tuple[str, Recording | Rejected]:
    id, file = row["ecg_id"] or f"line {line}", str(root / DATABASE)
    try:
        fold = int(row["strat_fold"])
    except ValueError as error:
        return id, Rejected(id, file, f"line {line}, strat_fold: {error}")
    patient = row["patient_id"].strip().removesuffix(".0")  # the official file writes 15709.0
    if not 1 <= fold <= 10 or not row[column] or not patient:
        reason = f"line {line}: strat_fold {fold}, patient_id {patient!r}, {column} {row[column]!r}"
        return id, Rejected(id, file, reason)
    split = "train" if fold <= last_train else "valid" if fold == last_train + 1 else "test"
    try:
        return id, Recording(patient, split, wfdb_record(root, row[column]), row["report"], Stratum(codes_of(row), fold))
    except ExampleError as error:
        return id, Rejected(id, file, f"line {line}: {error}")


def codes_of(row: dict[str, str]) -> tuple[str, ...]:
    """The SCP-ECG statements that a row of the database lists, whatever their likelihood; () if it has no such column."""
    return tuple(re.findall(r"'([^']+)'\s*:", row.get("scp_codes", "")))


def _read_diagnostic_codes(path: Path) -> set[str]:
    """The SCP-ECG statements that belong to a diagnostic superclass."""
    rows = (row for _, row in read_csv(path, {"", "diagnostic", "diagnostic_class"}) if not isinstance(row, str))
    return {row[""] for row in rows if row["diagnostic"] in ("1.0", "1") and row["diagnostic_class"]}


def _read_translations(path: Path) -> dict[str, str]:
    """ecg_id -> report; unreadable rows are skipped, so that their recordings are rejected."""
    if not path.is_file():
        raise CorpusError(f"data.translations: no file '{path}', a CSV file with the columns ecg_id and report expected")
    return {row["ecg_id"]: row["report"] for _, row in read_csv(path, {"ecg_id", "report"}) if not isinstance(row, str)}
