"""Which examples share a text."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgbyte_jax.corpora.example import Example
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.inputs.chat import Chat
from ecgbyte_jax.inputs.prompt import Dialogue, PromptIds
from ecgbyte_jax.prepare.write_texts import TextForm, Unit, _split, in_units
from tests.inputs.test_chat import with_ecg_tokens

HOW = TextForm("chat", "", 256, True, 1, 0, PromptIds(1, 2, 0, 3, 4, np.arange(5)), "", 0)


def about(number: int, record: str, question: str, history=(), previous: str = "") -> Example:
    return Example(f"e{number}", "p", "train", (WfdbRecord(Path(), record),), question, f"a{number}", {}, history, previous)


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


def test_questions_put_together_are_divided_until_their_ecg_fits():
    form = Chat.of(with_ecg_tokens("chatml"), "")
    asked = tuple(about(n, "r", f"question {n} about this ECG?") for n in range(8))
    whole = Unit(asked, tuple((example.question, example.answer) for example in asked))
    (text,) = form.texts([Dialogue(1, whole.turns)], True)
    segments = (((0, 40),), ((1, 60),))
    assert _split(whole, segments, form, len(text) + 60) == [whole]
    for limit, count in ((len(text) + 59, 2), (len(text) // 2 + 60, 4), (61, 8)):
        parts = _split(whole, segments, form, limit)
        assert len(parts) == count and [example for part in parts for example in part.examples] == list(asked)
        assert all(part.turns == tuple((e.question, e.answer) for e in part.examples) for part in parts)
    talk = Unit(tuple(TALK), TALK[-1].turns)
    assert _split(talk, segments, form, 20) == [talk]  # a conversation loses its oldest turns instead
