"""A run's folder as the report reads it: what must be there, what may be missing, which examples are chosen."""

import json

import pytest

from ecgbyte_jax.errors import ReportError
from ecgbyte_jax.report.folder import choose_examples, read_evaluation, read_lines, set_aside, shared_words


def row(number: int, **changes) -> dict:
    texts = {"question": "Is it?", "reference": "yes it is", "answer": "yes it is"}
    return {"id": f"e{number}", "segment": 0, "patient": f"p{number}", **texts} | changes


def write(folder, rows, results=None):
    (folder / "eval").mkdir(exist_ok=True)
    (folder / "eval/generations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (folder / "eval/results.json").write_text(json.dumps(results or {"scores": {"model": {"exact_match": 0.5}}}))


def read(folder) -> tuple[dict, list[dict]]:
    return read_evaluation(folder / "eval/results.json", folder / "eval/generations.jsonl")


def test_without_an_evaluation_one_line_says_what_to_do(tmp_path):
    with pytest.raises(ReportError, match=r"no finished evaluation .*; add eval to --stage"):
        read(tmp_path)
    write(tmp_path, [row(1)])
    (tmp_path / "eval/results.json").unlink()
    with pytest.raises(ReportError, match="add eval to --stage"):
        read(tmp_path)


def test_damage_is_named_by_file_and_line(tmp_path):
    write(tmp_path, [row(1), {"id": "x"}])
    with pytest.raises(ReportError, match=r"generations.jsonl, line 2: field 'segment'"):
        read(tmp_path)
    path = tmp_path / "eval/generations.jsonl"
    path.write_bytes(b'{"id": 1\n' + path.read_bytes())
    with pytest.raises(ReportError, match="line 1: not readable as JSON"):
        read(tmp_path)
    (tmp_path / "eval/results.json").write_text("[1]")
    with pytest.raises(ReportError, match=r"results.json: no JSON object found, one expected"):
        read(tmp_path)
    path.write_text("")
    (tmp_path / "eval/results.json").write_text('{"scores": {}}')
    with pytest.raises(ReportError, match="no scores, or no answers"):
        read(tmp_path)


def test_a_last_line_that_was_cut_is_left_out(tmp_path):
    (tmp_path / "lines").write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    assert read_lines(tmp_path / "lines") == [{"a": 1}, {"a": 2}]
    assert read_lines(tmp_path / "none") == []


def test_words_shared():
    assert shared_words("a b c", "a b c") == 1 and shared_words("a b", "c") == 0 and shared_words("", "") == 0
    assert shared_words("a a b", "a b b b") == pytest.approx(2 * 2 / 7)  # a once, b once


def test_a_right_and_a_wrong_answer_of_every_question_type_in_turn():
    types = ["verify"] * 100 + ["choose"] * 60 + ["query"] * 2
    answers = ["yes it is", "no"]
    rows = [row(i, answer=answers[i % 2], meta={"question_type": type}) for i, type in enumerate(types)]
    chosen = choose_examples(rows, seed=1)
    kinds = [(one.question_type, one.right) for one in chosen]
    assert kinds == [("verify", True), ("verify", False)] * 3 + [("choose", True), ("choose", False)] * 2 + [
        ("query", True), ("query", False)
    ]  # fmt: skip
    assert len({one.row["id"] for one in chosen}) == 12 and {one.score for one in chosen} == {0, 1}
    assert choose_examples(rows, seed=1) == chosen != choose_examples(rows, seed=2)
    assert len(choose_examples(rows[:2], seed=1)) == 2


def test_of_many_question_types_the_commonest_six_are_shown_right_and_wrong():
    rows = [row(i, answer=a, meta={"question_type": str(t)}) for i, (t, a) in enumerate(
        (t, a) for t in range(9) for _ in range(20 - t) for a in ("no", "yes it is"))]  # fmt: skip
    kinds = [(one.question_type, one.right) for one in choose_examples(rows, seed=0)]
    assert kinds == [(str(t), right) for t in range(6) for right in (True, False)]


def test_without_a_right_answer_wrong_ones_fill_the_page():
    chosen = choose_examples([row(i, answer="no") for i in range(30)], seed=0)
    assert [one.right for one in chosen] == [False] * 12


def test_questions_and_patients_come_up_once_where_there_are_enough():
    rows = [row(i, question=f"q{max(i, 20)}", patient=f"p{min(i, 40)}") for i in range(60)]
    chosen = choose_examples(rows, seed=0)
    assert len({one.row["question"] for one in chosen}) == 12 and len({one.row["patient"] for one in chosen}) >= 11


def test_of_several_seeds_the_first_is_shown():
    rows = [row(i, seed=seed) for seed in (42, 0) for i in range(20)]
    assert {one.row["seed"] for one in choose_examples(rows, 0)} == {42}


def test_reasons_are_counted_without_their_numbers_and_names(tmp_path):
    reasons = ["leads ['V6'] are missing", "leads ['V5'] are missing", "reach 25.0 mV"]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"id": "1", "reason": reason}) + "\n" for reason in reasons))
    assert set_aside(tmp_path / "q.jsonl") == [("leads […] are missing", 2), ("reach … mV", 1)]
