"""Randomly spoilt tables and lists: every row becomes an example that all stages can store, or is rejected and counted.

Every case has its own seed, which a failure shows as `case`.
"""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_jax.corpora.ecg_chat import read_conversations
from ecgbyte_jax.corpora.ecg_qa import read_published_questions, read_questions
from ecgbyte_jax.corpora.example import Example, Recording, Rejected
from ecgbyte_jax.corpora.own import read_table
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.errors import CorpusError
from ecgbyte_jax.evaluate.generations import Answer, make_row
from ecgbyte_jax.evaluate.metrics import is_closed
from ecgbyte_jax.inputs.prompt import Text
from ecgbyte_jax.inputs.shards import Sequence
from ecgbyte_jax.prepare.corpus import Corpus, Folders

CASES = 3000
ROW = {"id": "a", "record": "a/r1", "question": "why?", "answer": "so", "patient": "P7", "split": "train", "age": 61}
QUESTION = {
    "question_type": "single-verify", "template_id": 3, "attribute_type": "noise", "question": "why?", "answer": ["yes"],
    "ecg_id": [1], "sample_id": 0,
}  # fmt: skip
TALK = {
    "ecg": "p1000/p10000032/s1/1",
    "conversations": [{"from": "human", "value": "<ecg>\nWhat?"}, {"from": "gpt", "value": "This."}],
}
NAMES = ["question_type", "attribute_type", "attribute", "patients", "note", "\ud800", "", "meta", "segment", "a\0"]
RAW = "@raw@"  # marks a value written to the text verbatim
VALUES = [
    None, True, False, 0, -1, 7.5, 2**63, -(2**63) - 1, 2**64, 10**30, math.inf, -math.inf, math.nan, "", " ", "\ud800",
    "\udfff x", "\0", "P7 ", " P7", "train", "test", "é", "e\u0301", "x" * 140_000, "../../etc/passwd", "/etc/passwd", "r1.hea",
    [], {}, [[]], ["r1"], ["r1", "r2"], ["r1", 2], ["P7"], ["P7", "P8"], ["P7", None], [1, 2, 3], {"a": {"b": [2**70]}},
    {"\ud800": 1}, ["\ud800"], RAW + "9" * 5000, RAW + "-" + "9" * 5000, RAW + "1e999", RAW + "[" * 200 + "]" * 200,
    RAW + "[" * 100_000, RAW + '{"a": 1, "a": 2}',
]  # fmt: skip
BYTES = [
    b"\n",
    b"\r",
    b"\0",
    b'"',
    b"\\",
    b",",
    b"[",
    b"]",
    b"{",
    b"}",
    b"\xff",
    b"\xc3",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\\ud800",
]


def pick(rng: np.random.Generator, items: list):
    return items[rng.integers(len(items))]


def to_json(value: object) -> bytes:
    text = json.dumps(value)
    for raw in (value for value in VALUES if isinstance(value, str) and value.startswith(RAW)):
        text = text.replace(json.dumps(raw), raw.removeprefix(RAW))
    return text.encode()


def spoil_fields(rng: np.random.Generator, row: dict) -> dict:
    row = dict(row)
    for _ in range(rng.integers(1, 4)):
        name = pick(rng, [*row, *NAMES])
        if rng.random() < 0.2:
            row.pop(name, None)
        else:
            row[name] = pick(rng, VALUES)
    return row


def spoil_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(data) + 1))
        end = start + int(rng.integers(0, 3)) if rng.random() < 0.8 else len(data)
        data = data[:start] + (pick(rng, BYTES) if rng.random() < 0.8 else b"") + data[end:]
    return data


def spoilt(rng: np.random.Generator, row: dict) -> bytes:
    data = to_json(spoil_fields(rng, row) if rng.random() < 0.7 else row)
    return spoil_bytes(rng, data) if rng.random() < 0.4 else data


def check(items: list[Example | Rejected], tmp_path: Path) -> None:
    """Does everything that later stages do with usable and rejected examples."""
    for item in items:
        if isinstance(item, Example):
            text = Text(np.zeros(1, np.int32), np.ones(1, bool), 0)
            sequence = Sequence(item.id, item.patient, 0, item.question, item.answer, item.meta, (), text)
            assert Sequence.from_bytes(sequence.to_bytes([]), None).meta == item.meta
            line = make_row(sequence, sequence, 0, dict.fromkeys(("", "other"), Answer("", [], 0.0)), "")
            json.dumps(line, ensure_ascii=False, allow_nan=False).encode()
            is_closed(item.meta.get("question_type", ""))
            sorted([item.meta.get("attribute_type", ""), ""])
            assert item.patients and all(patient == patient.strip() != "" for patient in item.patients)
        else:
            assert item.reason and item.id
    try:
        corpus = Corpus.of(items, Folders(tmp_path, tmp_path, tmp_path), tmp_path / "quarantine.jsonl", 1.0)
    except CorpusError as error:
        assert "\n" not in str(error)
        return
    corpus.digest()
    if any(example.split == "train" for example in corpus.examples):
        corpus.set_aside([])
        lines = (tmp_path / "quarantine.jsonl").read_bytes().splitlines()
        assert len(lines) == len(corpus.rejected) == len(items) - len(corpus.examples)
        assert all(set(json.loads(line)) == {"id", "file", "reason"} for line in lines)


def read(items) -> list[Example | Rejected] | None:
    """None if all of it is refused, in one line."""
    try:
        return list(items)
    except CorpusError as error:
        assert "\n" not in str(error)
        return None


@pytest.mark.slow
def test_every_line_of_spoilt_jsonl_is_an_example_or_rejected(tmp_path):
    counts = {Example: 0, Rejected: 0}
    for case in range(CASES):
        rng = np.random.default_rng([1, case])
        good = [json.dumps(ROW | {"id": f"good {n}", "question": f"{n}?"}).encode() for n in range(3)]
        data = b"\n".join([good[0], spoilt(rng, ROW), good[1], spoilt(rng, ROW), good[2]])
        (tmp_path / "t.jsonl").write_bytes(data)
        items = list(read_table(tmp_path / "t.jsonl", tmp_path))
        assert len(items) == sum(bool(line.strip()) for line in data.split(b"\n")), case
        assert {e.id for e in items if isinstance(e, Example)} >= {"good 0", "good 1", "good 2"}, case
        check(items, tmp_path)
        for item in items:
            counts[type(item)] += 1
    assert counts[Example] > 3.3 * CASES and counts[Rejected] > CASES


@pytest.mark.slow
def test_every_row_of_a_spoilt_csv_table_is_an_example_or_rejected_or_the_table_refused(tmp_path):
    refused = 0
    texts = [value for value in VALUES if isinstance(value, str) and not value.startswith(RAW)]
    for case in range(CASES):
        rng = np.random.default_rng([2, case])
        rows = [[*ROW], *([*map(str, (ROW | {"id": n, "question": f"{n}?"}).values())] for n in range(4))]
        row = rows[pick(rng, [0, 1, 1, 2, 2, 3, 3, 4, 4])]
        row[rng.integers(len(row))] = pick(rng, texts)
        data = "\n".join(",".join(row) for row in rows).encode(errors="surrogatepass") + b"\n"
        data = spoil_bytes(rng, data) if rng.random() < 0.7 else data
        (tmp_path / "t.csv").write_bytes(data)
        items = read(read_table(tmp_path / "t.csv", tmp_path))
        if items is None:
            refused += 1
            continue
        if not any(isinstance(item, Rejected) and "not readable" in item.reason for item in items):
            with (tmp_path / "t.csv").open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
                assert len(items) == sum(bool(row) for row in csv.reader(file)) - 1, case
        check(items, tmp_path)
    assert CASES / 10 < refused < CASES / 2


@pytest.mark.slow
@pytest.mark.parametrize("published", [False, True])
def test_every_spoilt_question_of_ecg_qa_is_an_example_or_rejected(tmp_path, published):
    recordings = [
        ("1", Recording("P1", "train", WfdbRecord(tmp_path, "r1"), "")),
        ("2", Recording("P2", "test", WfdbRecord(tmp_path, "r2"), "")),
    ]
    (tmp_path / "template/train").mkdir(parents=True)
    (tmp_path / "paraphrased/train").mkdir(parents=True)
    (tmp_path / "paraphrased/train/00000.json").write_text("[]")
    types = ("single-verify",)
    for case in range(CASES // 3):
        rng = np.random.default_rng([3, case])
        data = b"[" + b",\n".join([to_json(QUESTION), spoilt(rng, QUESTION), to_json(QUESTION)]) + b"]"
        (tmp_path / "template/train/00000.json").write_bytes(data)
        if published:
            items = read(read_published_questions(tmp_path, recordings, types))
        else:
            items = read(read_questions(tmp_path, recordings, "template", types, "folds"))
        if items is not None:
            assert len(items) in (1, 2, 3), case  # a broken file counts as one; questions of other types are skipped
            check(items, tmp_path)
        assert published or items is not None, case


@pytest.mark.slow
def test_every_spoilt_conversation_is_an_example_or_rejected_or_the_file_refused(tmp_path):
    for case in range(CASES // 3):
        rng = np.random.default_rng([4, case])
        data = b"[" + b",\n".join([to_json(TALK), spoilt(rng, TALK), to_json(TALK)]) + b"]"
        (tmp_path / "c.json").write_bytes(data)
        items = read(read_conversations(tmp_path / "c.json", tmp_path, published=case % 2 == 1))
        if items is not None:
            try:
                expected = len(json.loads(data.decode(errors="surrogateescape")))
            except ValueError:
                expected = 3  # a number of thousands of digits
            assert len({item.id.partition("/")[0] for item in items}) == expected, case
            check(items, tmp_path)
