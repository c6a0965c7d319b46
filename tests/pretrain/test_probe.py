import numpy as np
import pytest

from ecgbyte_jax.pretrain.probe import choose_questions, probe


def asked(answers: list[str], first: int) -> list[tuple[list[int], str, str]]:
    return [([first + number], "Which?", answer) for number, answer in enumerate(answers)]


def test_answers_in_a_direction_of_the_features_are_told_and_others_are_not(rng):
    train = asked(["yes"] * 60 + ["no"] * 240, 0)
    valid = asked(["yes"] * 20 + ["no"] * 180, 300)
    questions = choose_questions(train, valid, 1000)
    told = {numbers[0]: rng.standard_normal(8) + 3 * (answer == "yes") * np.eye(8)[2] for numbers, _, answer in train + valid}
    untold = {number: rng.standard_normal(8) for number in told}
    assert probe(questions, told) > 0.85
    assert probe(questions, untold) == pytest.approx(0.5, abs=0.15)  # though "no" would be right in 90%


def test_questions_without_two_common_answers_are_left_out():
    train = asked(["yes"] * 20 + ["no"] * 9, 0) + [([1, 2], "Both?", str(n % 2)) for n in range(40)]
    assert choose_questions(train, asked(["yes", "no"], 90), 1000) == []
    train = asked(["yes"] * 20 + ["no"] * 10, 0)
    assert choose_questions(train, asked(["yes"], 90), 1000) == []
    (question,) = choose_questions(train, asked(["yes", "no", "maybe"], 90), 1000)
    assert question.answers == ("no", "yes") and question.valid[0].tolist() == [90, 91]
    assert choose_questions(train, asked(["yes", "no"], 90), 25) == []  # 5 of the first 25 are "no"
