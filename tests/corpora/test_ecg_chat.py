import json

import pytest

from ecgbyte_jax.corpora.ecg_chat import read_conversations
from ecgbyte_jax.corpora.example import Example, Rejected, split_of
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.errors import CorpusError
from tests.corpora.layouts import write_json

ECG = "p1000/p10000032/s40689238/40689238"


def entry(*turns, ecg=ECG):
    speakers = ["human", "gpt"] * len(turns)
    return {"ecg": ecg, "conversations": [{"from": who, "value": value} for who, value in zip(speakers, turns)]}


def read(tmp_path, *entries):
    write_json(tmp_path / "c.json", list(entries))
    return list(read_conversations(tmp_path / "c.json", tmp_path))


@pytest.mark.parametrize("prefix", ["", "files/"])
def test_a_conversation_becomes_an_example(tmp_path, prefix):
    (example,) = read(tmp_path, entry("What is this?\n<ecg>", "Sinus rhythm.\n", ecg=prefix + ECG))
    assert example == Example(
        "0/0", "p10000032", split_of("p10000032"), (WfdbRecord(tmp_path, f"files/{ECG}"),), "What is this?", "Sinus rhythm.",
        {"conversation": "0", "turn": 0},
    )  # fmt: skip


def test_a_line_break_becomes_a_space_or_is_dropped_as_published(tmp_path):
    write_json(tmp_path / "c.json", [entry("<ecg>\nWhat\nis this? ", "Sinus rhythm.\n")])
    (ours,) = read_conversations(tmp_path / "c.json", tmp_path)
    (theirs,) = read_conversations(tmp_path / "c.json", tmp_path, published=True)
    assert (ours.question, ours.answer) == ("What is this?", "Sinus rhythm.")
    assert (theirs.question, theirs.answer) == ("Whatis this? ", "Sinus rhythm.\n")


def test_later_turns_include_the_previous_ones(tmp_path):
    _, second, third = read(tmp_path, entry("<ecg>\nWhat?", "This.", "Why?", "So.", "Sure?", "Yes."))
    assert (second.id, second.question, second.answer) == ("0/1", "Why?", "So.")
    assert (second.history, second.previous) == ((("What?", "This."),), "0/0")
    assert (third.id, third.question, third.answer) == ("0/2", "Sure?", "Yes.")
    assert (third.history, third.previous) == ((("What?", "This."), ("Why?", "So.")), "0/1")


@pytest.mark.parametrize(
    "bad, reason",
    [
        ("text", "an object with the fields"),
        ({"ecg": ECG}, "an object with the fields"),
        (entry("What?", ""), "answer is empty"),
        (entry("<ecg>", "This."), "question is empty"),
        ({"ecg": ECG, "conversations": entry("What?", "This.", "Why?", "")["conversations"][:3]}, "alternating texts"),
        (entry(), "the conversation is empty"),
        (entry("What?", "This.", ecg="../../etc/passwd"), "inside the data's root"),
        (entry("What?", "This.", ecg="a/b"), "through the patient's folder"),
        ({"ecg": ECG, "conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]}, "alternating texts"),
    ],
)
def test_a_bad_entry_is_rejected_and_the_others_are_read(tmp_path, bad, reason):
    first, second = read(tmp_path, bad, entry("What?", "This."))
    assert isinstance(first, Rejected) and reason in first.reason and first.id == "0" and isinstance(second, Example)


def test_a_truncated_or_missing_file_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"no file .*c\.json"):
        list(read_conversations(tmp_path / "c.json", tmp_path))
    (tmp_path / "c.json").write_text('[{"ecg": "a"')
    with pytest.raises(CorpusError, match=r"c\.json: damaged or truncated after 0 items"):
        list(read_conversations(tmp_path / "c.json", tmp_path))


@pytest.mark.parametrize("old, broken", [(b"What?", b"What\xff?"), (b"This.", b"\\ud800")])
def test_an_entry_that_is_not_utf_8_is_rejected_and_the_others_are_read(tmp_path, old, broken):
    text = json.dumps([entry("What?", "This."), entry("What?", "This.")]).encode()
    (tmp_path / "c.json").write_bytes(text.replace(old, broken, 1))
    first, second = read_conversations(tmp_path / "c.json", tmp_path)
    assert isinstance(first, Rejected) and "not UTF-8" in first.reason and isinstance(second, Example)


def test_a_path_that_is_not_utf_8_is_rejected(tmp_path):
    (example,) = read(tmp_path, entry("What?", "This.", ecg=f"{ECG}\udcff"))
    assert isinstance(example, Rejected) and "not UTF-8" in example.reason
