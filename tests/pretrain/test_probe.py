import numpy as np
import pytest

from ecgbyte_jax.inputs.shards import Sequence
from ecgbyte_jax.pretrain.probe import choose_questions, probe


def outline(places: list[int], question: str, answer: str) -> Sequence:
    return Sequence("id", "patient", 0, question, answer, {}, tuple(map(np.asarray, places)), None)


def asked(answers: list[str], first: int) -> list[Sequence]:
    return [outline([first + number], "Which?", answer) for number, answer in enumerate(answers)]


def test_answers_in_a_direction_of_the_features_are_told_and_others_are_not(rng):
    train = asked(["yes"] * 60 + ["no"] * 240, 0)
    valid = asked(["yes"] * 20 + ["no"] * 180, 300)
    questions = choose_questions(train, valid, 1000)
    directions = {int(each.ecgs[0]): 3 * (each.answer == "yes") * np.eye(8)[2] for each in train + valid}
    told = {number: rng.standard_normal(8) + direction for number, direction in directions.items()}
    untold = {number: rng.standard_normal(8) for number in told}
    assert probe(questions, told) > 0.85
    assert probe(questions, untold) == pytest.approx(0.5, abs=0.15)  # though "no" would be right in 90%


def test_questions_without_two_common_answers_are_left_out():
    train = asked(["yes"] * 20 + ["no"] * 9, 0) + [outline([1, 2], "Both?", str(n % 2)) for n in range(40)]
    assert choose_questions(train, asked(["yes", "no"], 90), 1000) == []
    train = asked(["yes"] * 20 + ["no"] * 10, 0)
    assert choose_questions(train, asked(["yes"], 90), 1000) == []
    (question,) = choose_questions(train, asked(["yes", "no", "maybe"], 90), 1000)
    assert question.answers == ("no", "yes") and question.valid[0].tolist() == [90, 91]
    assert choose_questions(train, asked(["yes", "no"], 90), 25) == []  # 5 of the first 25 are "no"
