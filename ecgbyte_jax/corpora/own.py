"""Your own data: WFDB records below a folder, and a table of questions about them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ecgbyte_jax.corpora.example import Example, Rejected, record_path, split_of
from ecgbyte_jax.corpora.tables import read_csv, read_jsonl
from ecgbyte_jax.errors import CorpusError, ExampleError

_FIELDS = ("record", "question", "answer", "patient")


def read_table(path: Path, root: Path) -> Iterator[Example | Rejected]:
    """Every row of a CSV or JSONL file (by its ending) with the fields record, question, answer, patient, and maybe split, id.

    record: a path below `root`, with or without extension; in JSONL also a list of two, for a comparison. split: train, valid
    or test; where the field is missing or empty, patients are split by a hash (`split_of`). id: the line's number where there
    is none. Other fields go into `meta`. Raises CorpusError where the file or a column is missing.
    """
    if path.suffix.lower() not in (".csv", ".jsonl") or not path.is_file():
        raise CorpusError(f"data.table: no .csv or .jsonl file '{path}'; fields {list(_FIELDS)}, and split where you have one")
    if not root.is_dir():
        raise CorpusError(f"data.root: no folder '{root}', that of the WFDB records wanted")
    rows = read_csv(path, set(_FIELDS)) if path.suffix.lower() == ".csv" else read_jsonl(path)
    seen: set[bytes] = set()
    for line, row in rows:
        id = f"line {line}" if isinstance(row, str) else str(row.get("id") or f"line {line}")
        try:
            if isinstance(row, str):
                raise ExampleError(row)
            example = _example(id, row, root)
            key = hashlib.sha256(repr((example.records, example.question, example.answer)).encode()).digest()[:16]
            if key in seen:
                raise ExampleError("the same record, question and answer stand in a row before it")
            seen.add(key)
            yield example
        except ExampleError as error:
            yield Rejected(id, str(path), f"line {line}: {error}")


def _example(id: str, row: dict, root: Path) -> Example:
    missing = [name for name in _FIELDS if row.get(name) in (None, "", [])]
    if missing:
        raise ExampleError(f"fields {missing} are missing or empty")
    names = row["record"] if isinstance(row["record"], list) else [row["record"]]
    if not all(isinstance(value, str) for value in (*names, row["question"], row["answer"])) or len(names) > 2:
        raise ExampleError("record (one, or a list of two), question and answer as texts wanted")
    patient = str(row["patient"])
    records = tuple(record_path(root, name) for name in names)
    meta = {k: v for k, v in row.items() if k not in (*_FIELDS, "split", "id")}
    return Example(id, patient, row.get("split") or split_of(patient), records, row["question"], row["answer"], meta)
