"""Which examples share a text."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgbyte_jax.corpora.example import Example
from ecgbyte_jax.inputs.prompt import PromptIds
from ecgbyte_jax.prepare.write_texts import TextForm, in_units

HOW = TextForm("chat", "", 256, True, 1, 0, PromptIds(1, 2, 0, 3, 4, np.arange(5)), "")


def about(number: int, record: str, question: str, history=(), previous: str = "") -> Example:
    return Example(f"e{number}", "p", "train", (Path(record),), question, f"a{number}", {}, history, previous)


TALK = [about(0, "r", "one?"), about(1, "r", "two?", (("one?", "a0"),), "e0")]


def test_a_conversation_is_one_text_only_where_every_answer_bears_the_loss():
    (unit,) = in_units(TALK, HOW)
    assert unit.examples == tuple(TALK) and unit.turns == (("one?", "a0"), ("two?", "a1"))
    first, second = in_units(TALK, replace(HOW, every_answer=False))
    assert first.examples == (TALK[0],) and second.turns == (("one?", "a0"), ("two?", "a1"))


def test_a_conversation_that_lost_a_turn_goes_on_as_texts_of_its_own():
    third = about(2, "r", "three?", (("one?", "a0"), ("two?", "a1")), "e1")
    units = in_units([TALK[0], third], HOW)
    assert [unit.examples for unit in units] == [(TALK[0],), (third,)] and len(units[1].turns) == 3


def test_questions_about_the_same_recording_are_put_together_in_a_drawn_order():
    lone = [about(10 + n, f"r{n % 2}", f"q{n}?") for n in range(10)]
    units = in_units([*TALK, *lone], replace(HOW, together=3))
    assert units[0].examples == tuple(TALK)  # a conversation stays as it is
    assert sorted(len(unit.examples) for unit in units[1:]) == [2, 2, 3, 3]
    assert all(len({example.records for example in unit.examples}) == 1 for unit in units)
    assert {example.id for unit in units for example in unit.examples} == {example.id for example in [*TALK, *lone]}
    for unit in units[1:]:
        assert unit.turns == tuple((example.question, example.answer) for example in unit.examples)
    again, other = (in_units([*TALK, *lone], replace(HOW, together=3, seed=seed)) for seed in (0, 1))
    assert [unit.examples for unit in again] == [unit.examples for unit in units]
    assert [unit.examples for unit in other] != [unit.examples for unit in units]
    orders = {tuple(example.question for example in unit.examples) for unit in units[1:]}
    assert any(list(order) != sorted(order) for order in orders)
