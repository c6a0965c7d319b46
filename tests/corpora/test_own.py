import json

import pytest

from ecgbyte_jax.corpora.example import Example, Rejected, split_of
from ecgbyte_jax.corpora.own import read_table
from ecgbyte_jax.errors import CorpusError
from tests.corpora.layouts import write_csv

GOOD = {"record": "a/r1.hea", "question": "why?", "answer": "so", "patient": "P7", "split": "valid"}


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_table(path, path.parent))


def test_csv_and_jsonl_give_the_same_examples(tmp_path):
    write_csv(tmp_path / "t.csv", [GOOD])
    (found,) = read_table(tmp_path / "t.csv", tmp_path)
    assert found == Example("line 2", "P7", "valid", (tmp_path / "a/r1",), "why?", "so")
    (same,) = jsonl(tmp_path / "t.jsonl", GOOD | {"id": "line 2"})
    assert same == found


def test_without_a_split_patients_are_split_by_a_hash_and_other_fields_are_kept(tmp_path):
    row = {k: v for k, v in GOOD.items() if k != "split"} | {"age": 60}
    (found,) = jsonl(tmp_path / "t.jsonl", row)
    assert found.split == split_of("P7") and found.meta == {"age": 60}


def test_two_records_are_a_comparison(tmp_path):
    (found,) = jsonl(tmp_path / "t.jsonl", GOOD | {"record": ["r1", "r2"]})
    assert found.records == (tmp_path / "r1", tmp_path / "r2")


@pytest.mark.parametrize(
    "bad, reason",
    [
        (GOOD | {"answer": ""}, r"['answer'] are missing or empty"),
        ({k: v for k, v in GOOD.items() if k != "answer"}, "['answer'] are missing or empty"),
        (GOOD | {"answer": 7}, "as texts wanted"),
        (GOOD | {"record": ["a", "b", "c"]}, "as texts wanted"),
        (GOOD | {"record": "../../etc/passwd"}, "inside the data's root"),
        (GOOD | {"split": "dev"}, "split 'dev' found"),
        (GOOD | {"id": "again"}, "stand in a row before it"),
    ],
)
def test_a_bad_row_is_rejected_and_the_rest_goes_on(tmp_path, bad, reason):
    first, second, third = jsonl(tmp_path / "t.jsonl", GOOD, bad, GOOD | {"question": "what?"})
    assert (
        isinstance(first, Example) and isinstance(third, Example) and isinstance(second, Rejected) and reason in second.reason
    )


def test_another_ending_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"no \.csv or \.jsonl file"):
        list(read_table(tmp_path / "t.xlsx", tmp_path))
    write_csv(tmp_path / "t.csv", [GOOD])
    with pytest.raises(CorpusError, match="no folder"):
        list(read_table(tmp_path / "t.csv", tmp_path / "nowhere"))
