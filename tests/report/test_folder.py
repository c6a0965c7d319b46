"""A run's folder as the report reads it: what must be there, what may be missing, which examples are chosen."""

import json

import numpy as np
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


def test_best_worst_and_random_ones_are_ten_different_rows():
    rng = np.random.default_rng(0)
    rows = [row(i, answer=rng.choice(["yes it is", "yes", "no"]), log_prob=-float(i)) for i in range(200)]
    chosen = choose_examples(rows, seed=1)
    assert [one.why for one in chosen] == ["best"] * 4 + ["worst"] * 3 + ["random"] * 3
    assert len({one.row["id"] for one in chosen}) == 10
    assert all(one.score == 1 for one in chosen[:4]) and all(one.score == 0 for one in chosen[4:7])
    assert choose_examples(rows, seed=1) == chosen and choose_examples(rows, seed=2)[7:] != chosen[7:]
    assert len(choose_examples(rows[:2], seed=1)) == 2


def test_question_types_take_turns_and_better_ones_come_first():
    types = ["verify"] * 50 + ["choose"] * 2 + ["query"] * 1
    rows = [row(i, meta={"question_type": type}, log_prob=-i / 10) for i, type in enumerate(types)]
    best = choose_examples(rows, seed=0)[:4]
    assert {one.question_type for one in best} == {"verify", "choose", "query"}
    half = [row(i, answer="yes" if i else "yes it is", log_prob=-i / 10) for i in range(30)]
    assert [one.row["id"] for one in choose_examples(half, seed=0)[:2]] == ["e0", "e1"]


def test_the_worst_are_the_wrong_ones_that_the_model_was_surest_of():
    rows = [row(i, answer="no" if i >= 10 else "yes it is", log_prob=-i / 10) for i in range(30)]
    assert [one.row["id"] for one in choose_examples(rows, seed=0)[4:7]] == ["e10", "e11", "e12"]


def test_patients_take_turns_among_equals():
    rows = [row(i, patient=f"p{max(i, 20)}", log_prob=-i / 10) for i in range(30)]
    assert len({one.row["patient"] for one in choose_examples(rows, seed=0)[:4]}) == 4


def test_of_several_seeds_the_first_is_shown():
    rows = [row(i, seed=seed) for seed in (42, 0) for i in range(20)]
    assert {one.row["seed"] for one in choose_examples(rows, 0)} == {42}


def test_reasons_are_counted_without_their_numbers_and_names(tmp_path):
    reasons = ["leads ['V6'] are missing", "leads ['V5'] are missing", "reach 25.0 mV"]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"id": "1", "reason": reason}) + "\n" for reason in reasons))
    assert set_aside(tmp_path / "q.jsonl") == [("leads […] are missing", 2), ("reach … mV", 1)]
