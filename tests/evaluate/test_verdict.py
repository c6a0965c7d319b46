"""What the paired differences of two scores allow to be said."""

import numpy as np
import pytest

from ecgbyte_jax.evaluate.metrics import uninformative, yes_no_scores
from ecgbyte_jax.evaluate.verdict import Difference, difference, give_verdict, main_metric

BEATS, EVEN, WORSE = Difference(0.342, [0.298, 0.385]), Difference(0.0, [-0.012, 0.013]), Difference(-0.295, [-0.4, -0.2])


@pytest.mark.parametrize(
    ("other_ecg", "patients", "evidence", "sentence"),
    [
        (BEATS, 25, "reads", "reads the ECG: +34.2 [29.8, 38.5]"),
        (EVEN, 25, "none", "no evidence that it reads the ECG: 0.0 [-1.2, 1.3]"),
        (WORSE, 25, "worse", "worse with its own ECG than with another: -29.5 [-40.0, -20.0]; look at the data"),
        (BEATS, 9, "too few patients", "too few patients (9) to tell whether it reads the ECG: +34.2 [29.8, 38.5]"),
    ],
)
def test_the_interval_decides_what_is_said(other_ecg, patients, evidence, sentence):
    verdict = give_verdict("exact_match", other_ecg, WORSE, patients)
    assert (verdict["evidence"], verdict["sentence"]) == (evidence, sentence)
    assert verdict["over_commonest"] == "worse than the commonest answer: -29.5 [-40.0, -20.0]"


def test_an_interval_that_ends_at_0_shows_nothing():
    assert Difference(0.1, [0.0, 0.2]).sign == Difference(0.0, [0.0, 0.0]).sign == Difference(-0.1, [-0.2, 0.0]).sign == 0


def test_a_difference_is_paired_sample_by_sample():
    """Two systems that rise and fall together differ by the same in every resample."""
    samples = np.linspace(0.2, 0.8, 101)
    assert difference(0.5, 0.4, samples, samples - 0.1).interval == pytest.approx([0.1, 0.1])


def test_long_references_are_judged_by_the_words_they_share():
    assert main_metric(["yes", "no", "atrial fibrillation is present"]) == "exact_match"
    assert main_metric(["sinus rhythm with left axis deviation"] * 2 + ["yes"]) == "rouge_l"


def test_sensitivity_and_specificity_by_hand():
    references, answers = ["yes", "yes", "yes", "no", "no"], ["yes", "no", "", "no", "yes it is"]
    found = yes_no_scores(references, answers)
    assert found == pytest.approx({"sensitivity": 1 / 3, "specificity": 1 / 2, "balanced_accuracy": 5 / 12})
    assert yes_no_scores(["no"], ["no"]) == {"sensitivity": None, "specificity": 1.0, "balanced_accuracy": None}
    assert set(yes_no_scores(["Yes", "no"], ["yes", " NO"]).values()) == {1.0}, "capital letters make no difference"


def test_scores_of_several_words_say_nothing_about_single_words():
    assert uninformative(["yes", "no"]) == ["bleu", "mean_bleu", "rouge_2"]
    assert uninformative(["yes", "sinus rhythm"]) == []
