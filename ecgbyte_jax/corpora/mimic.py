"""MIMIC-IV-ECG (Gow et al. 2023): one example per recording, with the machine's report as the answer."""

from collections.abc import Iterator
from pathlib import Path

from ecgbyte_jax.corpora.example import Example, Recording, Rejected, split_of, wfdb_record
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.corpora.tables import read_csv
from ecgbyte_jax.errors import CorpusError, ExampleError

RECORD_LIST = "record_list.csv"
MEASUREMENTS = "machine_measurements.csv"
_LINES = [f"report_{number}" for number in range(18)]
_WHERE_TO_GET = (
    "MIMIC-IV-ECG 1.0 (Open Database License, 33.8 GB to download, 90.4 GB unpacked) is at "
    "https://physionet.org/content/mimic-iv-ecg/1.0/; set --config.data.root to the folder that holds record_list.csv"
)


def read_reports(root: Path, question: str) -> Iterator[Example | Rejected]:
    """Yields every row of record_list.csv as an example, in file order; the lines of its report are joined by ". ".

    Raises CorpusError if a file or column is missing.
    """
    _find(root, RECORD_LIST)
    reports = _read_measurements(root)
    seen: set[SignalSource] = set()
    for id, recording in read_record_list(root):
        if isinstance(recording, Rejected):
            yield recording
        elif recording.record in seen:
            yield Rejected(id, str(root / RECORD_LIST), f"recording '{recording.record.name}' is in an earlier row")
        elif id not in reports:
            yield Rejected(id, str(root / MEASUREMENTS), "no row with this study_id")
        else:
            try:
                yield Example(id, recording.patient, recording.split, (recording.record,), question, reports[id])
                seen.add(recording.record)
            except ExampleError as error:
                yield Rejected(id, str(root / MEASUREMENTS), str(error))


def read_record_list(root: Path) -> Iterator[tuple[str, Recording | Rejected]]:
    """Yields (study_id, recording without its report) for every row, or what is wrong with it.

    The data set has no split of its own: patients are split by a hash of their subject_id (`split_of`).
    """
    path = _find(root, RECORD_LIST)
    for line, row in read_csv(path, {"subject_id", "study_id", "path"}):
        if isinstance(row, str):
            yield f"line {line}", Rejected(f"line {line}", str(path), f"line {line}: {row}")
            continue
        id, patient = row["study_id"].strip() or f"line {line}", row["subject_id"].strip()
        try:
            if not patient:
                raise ExampleError("the subject_id is empty")
            yield id, Recording(patient, split_of(patient), wfdb_record(root, row["path"]), "")
        except ExampleError as error:
            yield id, Rejected(id, str(path), f"line {line}: {error}")


def _read_measurements(root: Path) -> dict[str, str]:
    """study_id -> report; unreadable rows are skipped, so that their recordings are rejected."""
    path = _find(root, MEASUREMENTS)
    rows = (row for _, row in read_csv(path, {"study_id", "report_0"}) if not isinstance(row, str))
    return {row["study_id"].strip(): _report(row) for row in rows}


def _find(root: Path, name: str) -> Path:
    if not (root / name).is_file():
        raise CorpusError(f"data.root: no {name} in '{root}'. {_WHERE_TO_GET}")
    return root / name


def _report(row: dict[str, str]) -> str:
    lines = (row.get(name, "").strip().rstrip(".") for name in _LINES)
    return ". ".join(line for line in lines if line)
