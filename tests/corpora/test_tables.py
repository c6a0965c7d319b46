import json
import math

import pytest

from ecgbyte_jax.corpora.tables import read_csv, read_json_list, read_jsonl
from ecgbyte_jax.errors import CorpusError


def test_bad_rows_of_a_csv_are_reported_and_the_others_read(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'a,b\n1,"x\ny"\n2\n3,4,5\n6,\xff\n7,\xc3\xa4\n')
    assert list(read_csv(tmp_path / "t.csv", {"a"})) == [
        (3, {"a": "1", "b": "x\ny"}),
        (4, "1 fields found, 2 expected"),
        (5, "3 fields found, 2 expected"),
        (6, "the row is not UTF-8"),
        (7, {"a": "7", "b": "ä"}),
    ]


def test_a_field_that_is_too_long_affects_only_its_row(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3," + "x" * 131_073 + "\n5,6\n")
    assert list(read_csv(tmp_path / "t.csv", {"a"})) == [
        (2, {"a": "1", "b": "2"}),
        (3, "not readable as CSV: field larger than field limit (131072)"),
        (4, {"a": "5", "b": "6"}),
    ]


@pytest.mark.parametrize("rest", ["3,4\n" * 20, "3,4\n" * 50_000])
def test_a_quote_that_is_not_closed_is_refused_and_swallows_no_rows(tmp_path, rest):
    (tmp_path / "t.csv").write_text('a,b\n1,2\n5,"6\n' + rest)
    with pytest.raises(CorpusError, match=r"t\.csv: lines 3 to \d+: .*is a quote not closed"):
        list(read_csv(tmp_path / "t.csv", {"a"}))


def test_duplicate_columns_and_fields_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(CorpusError, match=r"columns \['a'\] are there twice"):
        list(read_csv(tmp_path / "t.csv", {"a"}))
    (tmp_path / "t.jsonl").write_text('{"a": 1, "a": 2}\n{"a": 1}\n{"b": {"c": 1, "c": 1}}')
    first, second, third = (row for _, row in read_jsonl(tmp_path / "t.jsonl"))
    assert "fields ['a'] are there twice" in first and second == {"a": 1} and "['c'] are there twice" in third


def test_a_number_of_thousands_of_digits_is_infinite(tmp_path):
    number = "9" * 5000
    (tmp_path / "t.jsonl").write_text(f'{{"a": {number}}}\n{{"a": -{number}}}\n{{"a": {number[:15]}}}')
    rows = [row for _, row in read_jsonl(tmp_path / "t.jsonl")]
    assert rows == [{"a": math.inf}, {"a": -math.inf}, {"a": int(number[:15])}]
    (tmp_path / "t.json").write_text(f"[{number}, 1]")
    assert list(read_json_list(tmp_path / "t.json", 4)) == [math.inf, 1]


def test_missing_columns_and_files_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(CorpusError, match=r"\['c'\] are missing; found \['a', 'b'\]"):
        list(read_csv(tmp_path / "t.csv", {"a", "c"}))
    with pytest.raises(CorpusError, match="No such file"):
        list(read_csv(tmp_path / "u.csv", {"a"}))


def test_bad_lines_of_jsonl_are_reported_and_the_others_read(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'{"a": 1}\n\n{"a": \n[1]\n"\xff"\n{"a": 2}')
    rows = dict(read_jsonl(tmp_path / "t.jsonl"))
    assert rows[1] == {"a": 1} and rows[6] == {"a": 2} and rows[4] == "a JSON object expected"
    assert rows[5] == "the line is not UTF-8" and "not readable as JSON" in rows[3] and 2 not in rows


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_is_read_piece_by_piece(tmp_path, chunk, indent):
    items = [{"a": [1, 2, {"b": "]},{"}]}, 12, "x" * 50, [], None, 3.5]
    (tmp_path / "t.json").write_text(json.dumps(items, indent=indent))
    assert list(read_json_list(tmp_path / "t.json", chunk)) == items


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize(
    "text", ["[1 2]", '[{"a": 1} {"a": 2}]', "[1,, 2]", "[, 1]", "[1, 2,]", "[1\n\n2]", "[1] 2", "[1, 2]]", "[],"]
)
def test_a_json_list_with_wrong_commas_or_something_after_its_end_is_refused(tmp_path, text, chunk):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(CorpusError, match=r"t\.json: (a comma|an item|nothing|damaged)"):
        list(read_json_list(tmp_path / "t.json", chunk))


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_whitespace_around_a_json_list_and_an_empty_list_are_read(tmp_path, chunk):
    (tmp_path / "t.json").write_text(" \n[ 1 ,\n2 ] \n")
    assert list(read_json_list(tmp_path / "t.json", chunk)) == [1, 2]
    (tmp_path / "t.json").write_text("[ ]\n")
    assert list(read_json_list(tmp_path / "t.json", chunk)) == []


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a"', '[{"a": 1}', "[1, 2", "[", "{}", ""])
def test_a_truncated_json_list_is_refused(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(CorpusError, match=r"truncated|JSON list expected"):
        list(read_json_list(tmp_path / "t.json", 4))
