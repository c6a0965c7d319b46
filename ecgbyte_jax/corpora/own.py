"""Your own data: WFDB records in a folder, and a table of questions about them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ecgbyte_jax.corpora.example import Example, Rejected, is_text, record_path, split_of
from ecgbyte_jax.corpora.tables import read_csv, read_jsonl
from ecgbyte_jax.errors import CorpusError, ExampleError

_FIELDS = ("record", "question", "answer", "patient")


def read_table(path: Path, root: Path) -> Iterator[Example | Rejected]:
    """Yields the rows of a CSV or JSONL file (by extension): record, question, answer, patient, optionally split, id.

    record: a path in `root`, with or without extension; in JSONL also a list of two, for a comparison, whose patients are
    listed in the field patients if they differ. split: train, valid or test; if missing or empty, patients are split by a hash
    (`split_of`). id: by default the line's number. Other fields go into `meta`. Raises CorpusError if the file or a column is
    missing.
    """
    if path.suffix.lower() not in (".csv", ".jsonl") or not path.is_file():
        raise CorpusError(f"data.table: no .csv or .jsonl file '{path}'; fields {list(_FIELDS)}, and split if you have one")
    if not root.is_dir():
        raise CorpusError(f"data.root: no folder '{root}', that of the WFDB records expected")
    rows = read_csv(path, set(_FIELDS)) if path.suffix.lower() == ".csv" else read_jsonl(path)
    seen: set[bytes] = set()
    for line, row in rows:
        id = f"line {line}"
        try:
            if isinstance(row, str):
                raise ExampleError(row)
            id = _id(row) or id
            example = _example(id, row, root)
            key = hashlib.sha256(repr((example.records, example.question, example.answer)).encode()).digest()[:16]
            if key in seen:
                raise ExampleError("the same record, question and answer are in an earlier row")
            seen.add(key)
            yield example
        except ExampleError as error:
            yield Rejected(id, str(path), f"line {line}: {error}")


def _id(row: dict) -> str:
    """The row's own id; "" if it has none."""
    value = row.get("id")
    if value is None:
        return ""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ExampleError(f"id {value!r} found, a text or a whole number expected")
    if not is_text(str(value)):
        raise ExampleError("the id holds half a character or bytes that are not UTF-8")
    return str(value)


def _example(id: str, row: dict, root: Path) -> Example:
    missing = [name for name in _FIELDS if row.get(name) in (None, "", [])]
    if missing:
        raise ExampleError(f"fields {missing} are missing or empty")
    names = row["record"] if isinstance(row["record"], list) else [row["record"]]
    if not all(isinstance(value, str) for value in (*names, row["question"], row["answer"])) or len(names) > 2:
        raise ExampleError("record (one, or a list of two), question and answer as texts expected")
    records = tuple(record_path(root, name) for name in names)
    patients = _patients(row, len(records))
    split = _common_split(patients) if row.get("split") in (None, "") else row["split"]
    meta = {k: v for k, v in row.items() if k not in (*_FIELDS, "patients", "split", "id") and v is not None}
    meta |= {"patients": patients} if len(patients) > 1 else {}
    return Example(id, patients[0], split, records, row["question"], row["answer"], meta)


def _patients(row: dict, recordings: int) -> list[str]:
    """The names of the recordings' patients, in their order, without surrounding whitespace."""
    patient = _name(row["patient"])
    if patient is None:
        raise ExampleError(f"patient {row['patient']!r} found, a name (a text or a whole number) expected")
    listed = row.get("patients")
    if listed in (None, ""):
        return [patient]
    names = [_name(name) for name in listed] if isinstance(listed, list) else []
    if not 1 <= len(names) <= recordings or names[0] != patient or None in names:
        count = "1 name" if recordings == 1 else f"1 to {recordings} names"
        raise ExampleError(f"patients {listed!r} found, a list of {count} that begins with patient {patient!r} expected")
    return list(dict.fromkeys(name for name in names if name))


def _name(value: object) -> str | None:
    """The name of a patient; None if `value` is not one."""
    return str(value).strip() or None if isinstance(value, str | int) and not isinstance(value, bool) else None


def _common_split(patients: list[str]) -> str:
    splits = sorted({split_of(patient) for patient in patients})
    if len(splits) > 1:
        raise ExampleError(f"its patients {patients} are split into {splits}; the field split expected")
    return splits[0]
