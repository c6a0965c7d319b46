"""Answers that are numbers."""

import pytest

from ecgbyte_jax.evaluate.measured.numbers import number_error, number_intervals, number_scores, parse_number
from ecgbyte_jax.evaluate.metrics import Scorers
from ecgbyte_jax.evaluate.results import make_results
from tests.evaluate.test_ecg_bench import row


def test_a_number_is_read_with_its_unit_or_none_and_nothing_else_is():
    for text, number in (("72 beats per minute", 72), ("72", 72), (" -0.12 mV.", None), ("-45.5", -45.5)):
        assert parse_number(text, "beats per minute") == number
    for text in ("", "normal", "about 72", "72 ms", "72 73", "9" * 400, "nan", "1e5"):
        assert parse_number(text, "beats per minute") is None
    assert parse_number("-0.12 mV.", "mV") == -0.12
    for text in ("1,200 ms", "minus 30 ms", "400 m", "- 30 ms", "30\u00b0"):
        assert parse_number(text, "ms") is None
    assert parse_number("1 R peak", "R peaks") == 1 == parse_number("1 R peaks", "R peaks")
    assert parse_number("\u221230 degrees", "degrees") == -30


def test_the_fields_of_a_table_of_one_s_own_are_no_units_of_numbers_and_no_benchmark():
    rows = [row(number, reference, "12 ms", kind="") for number, reference in enumerate(("12 ms", "yes", "3", "10 ms"))]
    for each, unit in zip(rows, ("ms", "intensive care", 7, "ms")):
        each["meta"] |= {"unit": unit, "reasoning": {"by": "a cardiologist"}}
    results = make_results(rows, Scorers(), 100, 0)
    assert "benchmark" not in results and results["by_recording"]["numbers"].keys() == {"numbers"}
    assert results["by_recording"]["numbers"]["numbers"]["questions"] == 2
    rows[3]["meta"]["unit"] = "MS"
    assert make_results(rows, Scorers(), 100, 0)["by_recording"]["numbers"].keys() == {"numbers, ms", "numbers, MS"}


def test_answers_without_a_number_count_as_wrong_and_have_no_error():
    scores = number_scores(["100 ms"] * 4, ["104 ms", "110 ms", "none", "150"], "ms")
    assert scores == {"mean_absolute_error": pytest.approx(64 / 3), "within_5": 0.25, "within_10": 0.5, "unparsed": 1}
    assert number_scores(["100 ms"], ["?"], "ms")["mean_absolute_error"] is None


def test_angles_are_compared_around_the_circle_and_by_their_share_of_half_of_it():
    assert number_error(-170, 170, "degrees") == 20 and number_error(-170, 170, "ms") == 340
    scores = number_scores(["0 degrees"] * 2, ["9 degrees", "-18 degrees"], "degrees")
    assert scores["within_5"] == 0.5 and scores["within_10"] == 1


def test_intervals_are_by_patient_and_hold_the_score():
    references, answers = ["100 ms"] * 6, ["100 ms", "101 ms", "200 ms", "200 ms", "103 ms", "no"]
    low, high = number_intervals(references, answers, "ms", ["a", "a", "b", "b", "c", "c"], 200, 0)["within_5"]
    assert 0 <= low < number_scores(references, answers, "ms")["within_5"] < high <= 1
    assert number_intervals(references[-1:], answers[-1:], "ms", ["c"], 100, 0).keys() == {"within_5", "within_10"}
