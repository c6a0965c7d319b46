"""Your own data: recordings in a folder, and a table of questions or conversations about them."""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ecgbyte_jax.corpora.example import Example, Rejected, inside, is_text, split_of, wfdb_record
from ecgbyte_jax.corpora.source import OwnFile, SignalSource
from ecgbyte_jax.corpora.tables import read_csv, read_jsonl
from ecgbyte_jax.ecg.formats.leads import UNITS
from ecgbyte_jax.ecg.formats.own import wfdb_stem
from ecgbyte_jax.errors import CorpusError, ExampleError

_FIELDS = ("record", "question", "answer", "patient")
_OF_CONVERSATIONS = ("record", "messages", "patient")
_ROLES = ("user", "assistant")


def read_table(path: Path, root: Path) -> Iterator[Example | Rejected]:
    """Yields the rows of a CSV or JSONL file (by extension): record, question, answer, patient, optionally split, id.

    In place of question and answer a row may have `messages`, a conversation as [{"role": "user", "content": ...}, {"role":
    "assistant", ...}, ...] (in CSV as JSON): each answer is an example, with the turns before it as its history and the number
    of its turn added to its id ("line 2/0").

    record: the path in `root` of a WFDB record, with or without extension, or of a file of another format (`own.read_own`);
    in JSONL also a list of two, for a comparison, whose patients are listed in the field patients if they differ. Files that do
    not say it have fields sample_rate (Hz), leads (names, as a list or separated by spaces) and units. split: train, valid or
    test; if missing or empty, patients are split by a hash (`split_of`). id: by default the line's number. Other fields go into
    `meta`. Raises CorpusError if the file or a column is missing.
    """
    if path.suffix.lower() not in (".csv", ".jsonl") or not path.is_file():
        raise CorpusError(f"data.table: no .csv or .jsonl file '{path}'; fields {list(_FIELDS)}, and split if you have one")
    if not root.is_dir():
        raise CorpusError(f"data.root: no folder '{root}', that of the recordings expected")
    rows = read_csv(path, set(_FIELDS), set(_OF_CONVERSATIONS)) if path.suffix.lower() == ".csv" else read_jsonl(path)
    seen: set[bytes] = set()
    files: dict[str, OwnFile] = {}
    for line, row in rows:
        id = f"line {line}"
        try:
            if isinstance(row, str):
                raise ExampleError(row)
            id = _id(row) or id
            examples = _examples(id, row, root, files)
            key = hashlib.sha256(repr((examples[-1].records, examples[-1].turns)).encode()).digest()[:16]
            if key in seen:
                raise ExampleError("the same record, questions and answers are in an earlier row")
            seen.add(key)
            yield from examples
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


def _examples(id: str, row: dict, root: Path, files: dict[str, OwnFile]) -> list[Example]:
    """One example, or one for each answer of a conversation."""
    if row.get("messages") in (None, "", []):
        return [_example(id, row, root, files)]
    asked = [name for name in ("question", "answer") if row.get(name) not in (None, "")]
    if asked:
        raise ExampleError(f"messages and {asked} found, one of them expected")
    turns = _turns(row["messages"])
    ids = ["", *(f"{id}/{number}" for number in range(len(turns)))]
    examples = [_example(ids[i + 1], row | {"question": q, "answer": a}, root, files) for i, (q, a) in enumerate(turns)]
    return [replace(example, history=tuple(turns[:i]), previous=ids[i]) for i, example in enumerate(examples)]


def _turns(messages: object) -> list[tuple[str, str]]:
    """(question, answer) pairs of a conversation, which may be JSON text."""
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError as error:
            raise ExampleError(f"messages: not JSON ({error})") from error
    turns = messages if isinstance(messages, list) else []
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
    if "system" in roles:
        raise ExampleError("messages: a system turn found; remove it, prompt.system is that of all conversations")
    if not turns or tuple(roles) != _ROLES * (len(turns) // 2):
        raise ExampleError(f"messages: turns of {roles} found, a list of alternating ones of user and assistant expected")
    texts = [turn.get("content") for turn in turns]
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ExampleError(f"messages: content {text!r:.40} found in turn {number}, a text expected")
    return list(zip(texts[::2], texts[1::2]))


def _example(id: str, row: dict, root: Path, files: dict[str, OwnFile]) -> Example:
    missing = [name for name in _FIELDS if row.get(name) in (None, "", [])]
    if missing:
        raise ExampleError(f"fields {missing} are missing or empty")
    names = row["record"] if isinstance(row["record"], list) else [row["record"]]
    if not all(isinstance(value, str) for value in (*names, row["question"], row["answer"])) or len(names) > 2:
        raise ExampleError("record (one, or a list of two), question and answer as texts expected")
    records = tuple(_source(root, name, row, files) for name in names)
    patients = _patients(row, len(records))
    split = _common_split(patients) if row.get("split") in (None, "") else row["split"]
    meta = {k: v for k, v in row.items() if k not in (*_FIELDS, "messages", "patients", "split", "id") and v is not None}
    meta |= {"patients": patients} if len(patients) > 1 else {}
    return Example(id, patients[0], split, records, row["question"], row["answer"], meta)


def _source(root: Path, name: str, row: dict, files: dict[str, OwnFile]) -> SignalSource:
    """Where the signal of a recording is; `files` has those of earlier rows, which must be read alike."""
    path = inside(name)
    stem = wfdb_stem(root / path)
    if stem:
        return wfdb_record(root, str(stem.relative_to(root)))
    file = OwnFile(root, path, _rate(row.get("sample_rate")), _leads(row.get("leads")), _units(row.get("units")))
    if files.setdefault(path, file) != file:
        raise ExampleError(
            f"record {name!r}: other sample_rate, leads or units than in an earlier row found, the same expected"
        )
    return file


def _rate(value: object) -> float:
    try:
        rate = float(value or 0) if isinstance(value, str | int | float | None) else math.nan
    except (ValueError, OverflowError):
        rate = math.nan
    if not math.isfinite(rate):
        raise ExampleError(f"sample_rate {value!r:.40} found, a number of Hz expected")
    return rate


def _leads(value: object) -> tuple[str, ...]:
    names = re.split(r"[\s,;]+", value.strip()) if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ExampleError(f"leads {value!r:.40} found, their names expected")
    return tuple(filter(None, names))


def _units(value: object) -> str:
    if value not in (None, "", *UNITS):
        raise ExampleError(f"units {value!r:.40} found, one of {tuple(UNITS)} expected")
    return str(value or "")


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
