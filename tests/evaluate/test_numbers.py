"""Answers that are numbers."""

import pytest

from ecgbyte_jax.evaluate.measured.numbers import number_error, number_intervals, number_scores, parse_number


def test_a_number_is_read_with_its_unit_or_none_and_nothing_else_is():
    for text, number in (("72 beats per minute", 72), ("72", 72), (" -0.12 mV.", None), ("-45.5", -45.5)):
        assert parse_number(text, "beats per minute") == number
    for text in ("", "normal", "about 72", "72 ms", "72 73", "9" * 400, "nan", "1e5"):
        assert parse_number(text, "beats per minute") is None
    assert parse_number("-0.12 mV.", "mV") == -0.12


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
