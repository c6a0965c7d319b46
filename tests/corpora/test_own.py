import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from ecgbyte_jax.corpora.example import Example, Rejected, split_of
from ecgbyte_jax.corpora.own import read_table
from ecgbyte_jax.corpora.source import OwnFile, WfdbRecord
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.synthetic import random_heart, synthesize
from ecgbyte_jax.errors import CorpusError
from ecgbyte_jax.inputs.prompt import Text
from ecgbyte_jax.inputs.shards import Sequence
from tests.corpora.layouts import write_csv

GOOD = {"record": "a/r1.hea", "question": "why?", "answer": "so", "patient": "P7", "split": "valid"}


def nested(depth: int) -> object:
    return [nested(depth - 1)] if depth else "end"


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_table(path, path.parent))


def test_csv_and_jsonl_give_the_same_examples(tmp_path):
    write_csv(tmp_path / "t.csv", [GOOD])
    (example,) = read_table(tmp_path / "t.csv", tmp_path)
    assert example == Example("line 2", "P7", "valid", (WfdbRecord(tmp_path, "a/r1"),), "why?", "so")
    (same,) = jsonl(tmp_path / "t.jsonl", GOOD | {"id": "line 2"})
    assert same == example


def test_without_a_split_patients_are_split_by_a_hash_and_other_fields_are_kept(tmp_path):
    row = {k: v for k, v in GOOD.items() if k != "split"} | {"age": 60}
    (example,) = jsonl(tmp_path / "t.jsonl", row)
    assert example.split == split_of("P7") and example.meta == {"age": 60}


def test_two_records_are_a_comparison(tmp_path):
    (example,) = jsonl(tmp_path / "t.jsonl", GOOD | {"record": ["r1", "r2"]})
    assert example.records == (WfdbRecord(tmp_path, "r1"), WfdbRecord(tmp_path, "r2"))


def test_a_file_of_another_format_is_read_as_its_row_says(tmp_path):
    signal = synthesize(random_heart(np.random.default_rng(0)), np.random.default_rng(0))
    np.save(tmp_path / "a.npy", signal)
    about = {"record": "a.npy", "sample_rate": "500", "leads": " ".join(LEADS), "units": "uV"}
    write_csv(tmp_path / "t.csv", [GOOD | about])
    (example,) = read_table(tmp_path / "t.csv", tmp_path)
    (file,) = example.records
    assert file == OwnFile(tmp_path, "a.npy", 500.0, LEADS, "uV") and pickle.loads(pickle.dumps(file)) == file
    np.testing.assert_allclose(file.read().signal * 1000, signal, rtol=1e-6)
    marks = [file.fingerprint(True), replace(file, units="mV").fingerprint(True), file.fingerprint(False)]
    np.save(tmp_path / "a.npy", signal[:, :4000])
    marks += [file.fingerprint(True), file.fingerprint(False)]
    assert len({json.dumps(mark) for mark in marks}) == len(marks)
    listed = GOOD | about | {"question": "what?", "leads": [*LEADS], "sample_rate": 500}
    also, good = jsonl(tmp_path / "t.jsonl", GOOD | about, listed)
    assert also.records == good.records == (file,)


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"sample_rate": "fast"}, "sample_rate 'fast' found, a number of Hz expected"),
        ({"sample_rate": [500]}, r"sample_rate [500] found"),
        ({"leads": 12}, "leads 12 found, their names expected"),
        ({"units": "mmHg"}, "units 'mmHg' found"),
        ({"units": "uV"}, "other sample_rate, leads or units than in an earlier row"),
    ],
)
def test_a_row_that_says_otherwise_about_a_file_is_rejected(tmp_path, fields, reason):
    (tmp_path / "a.npy").touch()
    row = GOOD | {"record": "a.npy", "sample_rate": 500}
    first, second = jsonl(tmp_path / "t.jsonl", row, row | {"question": "what?"} | fields)
    assert isinstance(first, Example) and isinstance(second, Rejected) and reason in second.reason


def test_a_dat_or_mat_file_beside_its_header_is_a_wfdb_record(tmp_path):
    for name in ("r.hea", "r.dat", "r.mat"):
        (tmp_path / name).touch()
    for name in ("r", "r.hea", "r.dat", "r.mat"):
        assert jsonl(tmp_path / "t.jsonl", GOOD | {"record": name})[0].records == (WfdbRecord(tmp_path, "r"),)


@pytest.mark.parametrize(
    "bad, reason",
    [
        (GOOD | {"answer": ""}, r"['answer'] are missing or empty"),
        ({k: v for k, v in GOOD.items() if k != "answer"}, "['answer'] are missing or empty"),
        (GOOD | {"answer": 7}, "as texts expected"),
        (GOOD | {"record": ["a", "b", "c"]}, "as texts expected"),
        (GOOD | {"record": "../../etc/passwd"}, "inside the data's root"),
        (GOOD | {"split": "dev"}, "split 'dev' found"),
        (GOOD | {"id": "again"}, "are in an earlier row"),
        (GOOD | {"patient": "  "}, "patient '  ' found"),
        (GOOD | {"patient": True}, "patient True found"),
        (GOOD | {"patient": ["P7"]}, "patient ['P7'] found"),
        (GOOD | {"patients": 5}, "patients 5 found, a list of 1 name"),
        (GOOD | {"patients": "P7"}, "patients 'P7' found, a list"),
        (GOOD | {"patients": ["P7", 8.5]}, "patients ['P7', 8.5] found, a list"),
        (GOOD | {"patients": ["P8"]}, "patients ['P8'] found"),
        (GOOD | {"record": ["r1", "r2"], "patients": ["P7", " "]}, "patients ['P7', ' '] found"),
        (GOOD | {"record": ["r1", "r2"], "patients": ["P7", "P8", "P9"]}, "a list of 1 to 2 names"),
    ],
)
def test_a_bad_row_is_rejected_and_the_others_are_read(tmp_path, bad, reason):
    first, second, third = jsonl(tmp_path / "t.jsonl", GOOD, bad, GOOD | {"question": "what?"})
    assert (
        isinstance(first, Example) and isinstance(third, Example) and isinstance(second, Rejected) and reason in second.reason
    )


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"id": "\ud800"}, "the id holds half a character"),
        ({"id": [1]}, "id [1] found, a text or a whole number"),
        ({"patient": "\udfff"}, "the patient holds half a character"),
        ({"split": ["train"]}, "split ['train'] found"),
        ({"split": 0}, "split 0 found"),
        ({"age": "\ud800"}, "field 'age' holds half a character"),
        ({"\ud800": 1}, "holds half a character"),
        ({"age": [{"x": 2**64}]}, "field 'age' holds a whole number beyond 64 bits"),
        ({"age": -(2**63) - 1}, "field 'age' holds a whole number beyond 64 bits"),
        ({"age": float("nan")}, "field 'age' holds a number that is not finite"),
        ({"age": nested(40)}, "field 'age' is nested more than 32 deep"),
        ({"question_type": 5}, "question_type 5 found, a text expected"),
        ({"attribute_type": ["noise"]}, "attribute_type ['noise'] found, a text expected"),
    ],
)
def test_what_later_stages_cannot_store_is_rejected(tmp_path, fields, reason):
    bad, good = jsonl(tmp_path / "t.jsonl", GOOD | fields, GOOD)
    assert isinstance(bad, Rejected) and reason in bad.reason and isinstance(good, Example)
    json.dumps([bad.id, bad.reason], ensure_ascii=False).encode()


def test_numbers_of_5000_digits_are_rejected(tmp_path):
    rows = [
        json.dumps(GOOD | {name: 1}).replace(f'"{name}": 1', f'"{name}": {"7" * 5000}') for name in ("id", "patient", "age")
    ]
    (tmp_path / "t.jsonl").write_text("\n".join([*rows, json.dumps(GOOD)]))
    *bad, good = read_table(tmp_path / "t.jsonl", tmp_path)
    assert [("inf found" in r.reason, "not finite" in r.reason) for r in bad] == [(True, False), (True, False), (False, True)]
    assert isinstance(good, Example)


def test_the_largest_values_are_kept_and_null_is_not_a_field(tmp_path):
    kept = {"age": 2**64 - 1, "low": -(2**63), "deep": nested(31), "question_type": "single-verify", "ü": 1e300}
    (example,) = jsonl(tmp_path / "t.jsonl", GOOD | kept | {"attribute_type": None})
    assert example.meta == kept
    sequence = Sequence("a", "b", 0, "c", "d", example.meta, (), Text(np.zeros(1, np.int32), np.ones(1, bool), 0))
    assert Sequence.from_bytes(sequence.to_bytes([]), None).meta == kept


def test_names_of_patients_are_stripped_and_numbers_are_names(tmp_path):
    write_csv(tmp_path / "t.csv", [GOOD | {"patient": " P7\u00a0"}])
    (example,) = read_table(tmp_path / "t.csv", tmp_path)
    assert example.patients == ("P7",) and example.split == "valid"
    (example,) = jsonl(tmp_path / "t.jsonl", GOOD | {"patient": 7})
    assert example.patients == ("7",)


def test_the_patients_of_a_comparison_have_their_own_field(tmp_path):
    (example,) = jsonl(tmp_path / "t.jsonl", GOOD | {"record": ["r1", "r2"], "patients": [" P7", "P8 "]})
    assert example.patients == ("P7", "P8") and example.patient == "P7"
    (example,) = jsonl(tmp_path / "t.jsonl", GOOD | {"record": ["r1", "r2"], "patients": ["P7", "P7"]})
    assert example.patients == ("P7",) and example.meta == {}


def test_a_column_patients_does_not_replace_the_patient(tmp_path):
    write_csv(tmp_path / "t.csv", [GOOD | {"patients": "P1"}, GOOD | {"patients": "", "question": "what?"}])
    bad, good = read_table(tmp_path / "t.csv", tmp_path)
    assert isinstance(bad, Rejected) and "patients 'P1' found, a list" in bad.reason
    assert good.patients == ("P7",) and good.meta == {}


def test_a_comparison_of_patients_in_different_splits_is_rejected(tmp_path):
    first, second = (next(f"p{n}" for n in range(99) if split_of(f"p{n}") == split) for split in ("train", "test"))
    row = {"record": ["r1", "r2"], "question": "why?", "answer": "so", "patient": first, "patients": [first, second]}
    bad, good = jsonl(tmp_path / "t.jsonl", row, row | {"split": "train"})
    assert isinstance(bad, Rejected) and "are split into ['test', 'train']" in bad.reason and good.split == "train"


def test_a_wrong_extension_and_a_missing_file_or_folder_are_named(tmp_path):
    with pytest.raises(CorpusError, match=r"no \.csv or \.jsonl file"):
        list(read_table(tmp_path / "t.xlsx", tmp_path))
    write_csv(tmp_path / "t.csv", [GOOD])
    with pytest.raises(CorpusError, match="no folder"):
        list(read_table(tmp_path / "t.csv", tmp_path / "nowhere"))
