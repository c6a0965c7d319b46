"""Questions of forms that were not in training are recognised."""

import pytest

from ecgbyte_jax.evaluate.familiar import Familiar
from ecgbyte_jax.run.workdir import Workdir

KNOWN = Familiar(
    (
        "Does this ECG show symptoms of non-diagnostic t abnormalities in lead V6?",
        "Does this ECG show atrial fibrillation?",
        "What direction is this ECG deviated to?",
    )
)


@pytest.mark.parametrize(
    ("question", "nearest", "same_form"),
    [
        ("Does this ECG show atrial fibrillation?", 1, True),
        ("does this ecg show sinus tachycardia", 1, True),
        ("Does this ECG show symptoms of non-diagnostic t abnormalities in lead I?", 0, True),
        ("What is the heart rate?", 2, False),
        ("Is it bad?", 2, False),
        ("?", None, False),
    ],
)
def test_the_words_and_their_order_make_the_form(question, nearest, same_form):
    found, same = KNOWN.nearest(question)
    assert same == same_form
    assert nearest is None or found == KNOWN.questions[nearest]


def test_every_question_of_a_small_training_is_familiar(prepared):
    familiar = Familiar.of(Workdir(prepared).shards, 0)
    assert len(familiar.questions) == 4
    assert all(familiar.nearest(question) == (question, True) for question in familiar.questions)
    assert not familiar.nearest("What is the heart rate?")[1]
