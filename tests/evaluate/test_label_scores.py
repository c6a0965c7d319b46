"""Label scores from hand-made probabilities, against scikit-learn and by hand."""

import numpy as np
import pytest

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.evaluate.labels import scores as module
from ecgbyte_jax.evaluate.labels.scores import calibration_error, check_scikit_learn, gather, make_label_results, resampled

metrics = pytest.importorskip("sklearn.metrics")
YES_NO, RHYTHMS = ("no", "yes"), ("fast", "normal", "slow")


def line(question, id, reference, log_probs, candidates=YES_NO, split="test", segment=0, first=0, patient=""):
    """A row of probabilities; those of another patient's ECG are all alike."""
    row = {"split": split, "id": id, "segment": segment, "question": question, "first": first}
    row |= {"patient": patient or id, "reference": reference, "candidates": [*candidates], "log_probs": [*log_probs]}
    return row | ({"log_probs_to_other_ecg": [-1.0] * len(candidates)} if split == "test" else {})


def yes(probability):
    return np.log([1 - probability, probability])


TRUTH = np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)
PROBABILITIES = np.array([0.9, 0.2, 0.4, 0.8, 0.4, 0.7, 0.6, 0.1])


def rows(truth=TRUTH, probabilities=PROBABILITIES, question="Fast?", **more) -> list[dict]:
    pairs = enumerate(zip(truth, probabilities))
    return [line(question, f"r{n}", YES_NO[int(right)], yes(p), **more) for n, (right, p) in pairs]


def test_scores_are_scikit_learn_s_at_the_validation_split_s_best_threshold():
    valid = rows([0, 1, 0, 1, 1], [0.1, 0.3, 0.35, 0.6, 0.8], split="valid")
    found = make_label_results(rows() + valid, "test", 100, 0)
    assert found["missing"] == {}
    (label,) = found["by_label"]
    assert label["threshold"] == pytest.approx(0.3) and (label["recordings"], label["positives"]) == (8, 4)
    decided = PROBABILITIES >= 0.3
    assert label["scores"]["model"] == pytest.approx(
        {
            "auroc": metrics.roc_auc_score(TRUTH, PROBABILITIES),
            "auprc": metrics.average_precision_score(TRUTH, PROBABILITIES),
            "f1": metrics.f1_score(TRUTH, decided),
            "balanced_accuracy": metrics.balanced_accuracy_score(TRUTH, decided),
            "brier": metrics.brier_score_loss(TRUTH, PROBABILITIES),
        }
    )
    assert {name: found["scores"]["model"][name] for name in module.SCORES} == label["scores"]["model"]


def test_the_same_probability_for_all_ranks_none():
    found = make_label_results(rows(), "test", 100, 0)
    assert found["scores"]["another patient's ECG"]["auroc"] == 0.5
    assert found["intervals"]["another patient's ECG"]["auroc"] == [0.5, 0.5]
    gain = found["auroc_over_other_ecg"]
    assert gain["mean"] == pytest.approx(metrics.roc_auc_score(TRUTH, PROBABILITIES) - 0.5)
    np.testing.assert_allclose(np.add(gain["interval"], 0.5), found["intervals"]["model"]["auroc"])


def test_scores_without_what_they_need_are_none():
    found = make_label_results(rows() + rows(TRUTH | True, question="Slow?"), "test", 100, 0)
    assert (found["labels"], found["unscored_labels"]) == (1, 1)
    assert found["scores"]["model"]["f1"] is None and found["intervals"]["model"]["balanced_accuracy"] is None
    reason = "its thresholds come from the validation split, which has no label both with and without it"
    assert found["missing"] == {"f1": reason, "balanced_accuracy": reason}
    itself = make_label_results([row | {"split": "valid"} for row in rows()], "valid", 100, 0)["missing"]["f1"]
    assert itself == "its thresholds come from the validation split, which is what is evaluated"
    none = make_label_results(rows(TRUTH | True), "test", 100, 0)
    assert none["labels"] == 0 and none["scores"]["model"]["auroc"] is None and "auroc_over_other_ecg" not in none


@pytest.mark.parametrize("threshold", [0.35, 0.4, 2.0])
def test_resamples_score_as_scikit_learn_scores_the_drawn_recordings(threshold, rng):
    weights = rng.multinomial(8, np.full(8, 1 / 8), 40).astype(float)
    found = resampled(TRUTH, PROBABILITIES, threshold, weights)
    for number, counts in enumerate(weights):
        drawn = np.repeat(np.arange(8), counts.astype(int))
        truth, p = TRUTH[drawn], PROBABILITIES[drawn]
        if len(set(truth)) < 2:
            assert all(np.isnan(values[number]) for values in found.values())
            continue
        expected = {
            "auroc": metrics.roc_auc_score(truth, p),
            "auprc": metrics.average_precision_score(truth, p),
            "f1": metrics.f1_score(truth, p >= threshold, zero_division=0),
            "balanced_accuracy": metrics.balanced_accuracy_score(truth, p >= threshold),
            "brier": metrics.brier_score_loss(truth, p),
        }
        assert {name: values[number] for name, values in found.items()} == pytest.approx(expected)


def test_a_recording_is_the_mean_of_its_segments_and_a_candidate_a_share_of_all():
    parts = [
        line("Rate?", "r0", "fast", [-1.0, -2.0], RHYTHMS[:2], segment=0),
        line("Rate?", "r0", "fast", [-3.0], RHYTHMS[2:], segment=0, first=2),
        line("Rate?", "r0", "fast", [-5.0, -5.0], RHYTHMS[:2], segment=1),
        line("Rate?", "r0", "fast", [-5.0], RHYTHMS[2:], segment=1, first=2),
    ]
    (question,) = gather(parts)
    weights = np.exp([-1.0, -2.0, -3.0])
    assert question.candidates == RHYTHMS and question.references == ["fast"]
    np.testing.assert_allclose(question.probabilities[""], [(weights / weights.sum() + 1 / 3) / 2])


def test_each_candidate_of_several_is_a_label_and_an_answer_outside_them_is_none_of_these():
    texts = ["fast", "slow", "fast", "none of them"]
    logs = [[-0.1, -3, -3], [-3, -2, -0.2], [-1, -1, -1], [-2, -0.2, -3]]
    found = make_label_results(
        [line("Rate?", f"r{n}", *pair, RHYTHMS) for n, pair in enumerate(zip(texts, logs))], "test", 100, 0
    )
    assert [label["answer"] for label in found["by_label"]] == ["fast", "slow"]
    assert (found["foreign_references"], found["unscored_labels"]) == (1, 1)


def test_patients_are_drawn_with_all_their_recordings():
    one_each = make_label_results(rows(), "test", 400, 0)
    of_two = [row | {"patient": "ab"[int(row["reference"] == "yes")]} for row in rows()]
    width = [np.ptp(found["intervals"]["model"]["brier"]) for found in (one_each, make_label_results(of_two, "test", 400, 0))]
    assert width[0] > 0 == width[1]  # both patients are drawn once each where both classes are there


def test_the_calibration_error_is_the_mean_distance_of_bins():
    highest, right = np.array([0.55, 0.6, 0.95, 0.98, 1.0]), np.array([True, False, True, True, False])
    expected = 2 / 5 * abs(1 / 2 - 0.575) + 3 / 5 * abs(2 / 3 - np.mean([0.95, 0.98, 1.0]))
    assert calibration_error(highest, right) == pytest.approx(expected)
    found = module.calibration(highest, right)
    assert [bin["answers"] for bin in found] == [2, 3] and found[0]["probability"] == pytest.approx(0.575)
    by_bins = sum(bin["answers"] / 5 * abs(bin["probability"] - bin["right"]) for bin in found)
    assert by_bins == pytest.approx(expected)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"eval.labels needs scikit-learn: install the extra, pip install -e '\.\[labels\]'"):
        check_scikit_learn()
