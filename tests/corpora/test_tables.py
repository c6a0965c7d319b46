import json

import pytest

from ecgbyte_jax.corpora.tables import read_csv, read_json_list, read_jsonl
from ecgbyte_jax.errors import CorpusError


def test_bad_rows_of_a_csv_are_told_and_the_others_read(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'a,b\n1,"x\ny"\n2\n3,4,5\n6,\xff\n7,\xc3\xa4\n')
    assert list(read_csv(tmp_path / "t.csv", {"a"})) == [
        (3, {"a": "1", "b": "x\ny"}),
        (4, "1 fields found, 2 wanted"),
        (5, "3 fields found, 2 wanted"),
        (6, "the row is not UTF-8"),
        (7, {"a": "7", "b": "ä"}),
    ]


def test_missing_columns_and_files_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(CorpusError, match=r"\['c'\] are missing; found \['a', 'b'\]"):
        list(read_csv(tmp_path / "t.csv", {"a", "c"}))
    with pytest.raises(CorpusError, match="No such file"):
        list(read_csv(tmp_path / "u.csv", {"a"}))


def test_bad_lines_of_jsonl_are_told_and_the_others_read(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'{"a": 1}\n\n{"a": \n[1]\n"\xff"\n{"a": 2}')
    found = dict(read_jsonl(tmp_path / "t.jsonl"))
    assert found[1] == {"a": 1} and found[6] == {"a": 2} and found[4] == "a JSON object wanted"
    assert found[5] == "the line is not UTF-8" and "not readable as JSON" in found[3] and 2 not in found


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_is_read_piece_by_piece(tmp_path, chunk, indent):
    items = [{"a": [1, 2, {"b": "]},{"}]}, 12, "x" * 50, [], None, 3.5]
    (tmp_path / "t.json").write_text(json.dumps(items, indent=indent))
    assert list(read_json_list(tmp_path / "t.json", chunk)) == items


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a"', '[{"a": 1}', "[1, 2", "[", "{}", ""])
def test_a_json_list_that_is_cut_short_is_refused(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(CorpusError, match=r"cut short|JSON list wanted"):
        list(read_json_list(tmp_path / "t.json", 4))
