"""ECGBench's scores, beside scikit-learn's functions that it was published with."""

import numpy as np
import pytest

from ecgbyte_jax.evaluate.benchmarks.ecg_bench import LABELS, given_labels, letter_of, score, true_labels
from ecgbyte_jax.evaluate.intervals import draw
from ecgbyte_jax.evaluate.metrics import Scorers
from ecgbyte_jax.evaluate.results import make_results


def row(number: int, reference: str, answer: str, patient: str = "", question: str = "?", kind: str = "cpsc-test") -> dict:
    meta = {"question_type": kind}
    return {"id": f"{number}", "segment": 0, "seed": 0, "patient": patient or f"{number}", "question": question} | {
        **{"reference": reference, "answer": answer, "answer_to_other_ecg": "x", "commonest_answer": "NORM", "meta": meta},
        **{"log_prob": 0.0, "log_prob_to_other_ecg": 0.0},
    }


def test_label_scores_and_their_resamples_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    from sklearn.preprocessing import MultiLabelBinarizer

    rng = np.random.default_rng(0)
    texts = [", ".join(rng.choice(LABELS["cpsc-test"][:4], rng.integers(1, 4), replace=False)) for _ in range(80)]
    rows = [row(i, a, b, patient=f"{i // 2}") for i, (a, b) in enumerate(zip(texts[:40], texts[40:]))]
    found = score("cpsc-test", rows, "answer", 100, 0)

    def published(chosen: list[dict]) -> list[float]:
        binarizer = MultiLabelBinarizer()
        true = binarizer.fit_transform([true_labels(r["reference"], "cpsc-test") for r in chosen])
        given = binarizer.transform([given_labels(r["answer"], "cpsc-test") for r in chosen])
        auc = [metrics.roc_auc_score(t, g) for t, g in zip(true.T, given.T)]
        return [metrics.f1_score(true, given, average="macro"), np.mean(auc), metrics.hamming_loss(true, given)]

    assert list(found.scores.values()) == pytest.approx(published(rows))
    assert list(found.scores) == ["macro_f1", "macro_auc", "hamming_loss"]
    names = sorted({r["patient"] for r in rows})
    drawn = next(draw(20, 100, 0))[7]
    chosen = [r for r in rows for _ in range(int(drawn[names.index(r["patient"])]))]
    assert [samples[7] for samples in found.samples.values()] == pytest.approx(published(chosen))


def test_a_class_without_other_recordings_has_no_auc():
    found = score("ptb-test", [row(0, "NORM", "NORM"), row(1, "NORM", "MI")], "answer", 100, 0)
    assert found.scores == {"macro_f1": pytest.approx(2 / 3), "macro_auc": None, "hamming_loss": 0.5}


@pytest.mark.parametrize(
    "text, labels",
    [
        ("NORM", {"NORM"}),
        ("ABNORMAL", {"ABNORMAL"}),
        ("There is ABNORMAL, so ST. Answer: ABNORMAL: RBBB", {"ABNORMAL", "RBBB"}),
        ("AF and 1dAVb", {"AF", "1dAVb"}),
        ("", set()),
    ],
)
def test_code_15s_answers_are_normal_or_abnormal_beside_their_labels(text, labels):
    assert given_labels(text, "code15-test") == labels


def test_code_15s_references_are_normal_only_by_themselves():
    assert true_labels("NORM", "code15-test") == {"NORM"}
    assert true_labels("ABNORMAL: SB", "code15-test") == {"SB"}


@pytest.mark.parametrize(
    "text, letter",
    [
        ("C", "C"),
        ("D. Sinus rhythm, not B.", "B"),
        ("The correct option is E", "E"),
        ("The correct option is none", ""),
        ("It reads so. Answer: (G)", "G"),
        ("Atrial fibrillation", ""),
        ("", ""),
    ],
)
def test_an_option_is_read_from_an_answer(text, letter):
    assert letter_of(text) == letter


def test_answers_by_letter_and_by_listed_options_have_an_accuracy():
    rows = [row(0, "C. x", "C"), row(1, "A. y", "B."), row(2, "A. y", "unsure")]
    assert score("csn-test-no-cot", rows, "answer", 100, 0).scores == {"accuracy": pytest.approx(1.125 / 3)}
    question = "Which? Options: sinus rhythm, pvc, none Only answer based on the given Options without any explanation."
    answers = ["PVC and sinus rhythm", "pvc", "none, pvc, sinus rhythm"]
    rows = [row(i, "sinus rhythm, pvc", answer, question=question) for i, answer in enumerate(answers)]
    assert score("ecgqa-test", rows, "answer", 100, 0).scores == {"accuracy": pytest.approx(1 / 3)}


def test_results_have_every_test_set_by_its_rules_or_the_reason_why_not():
    rows = [row(0, "AF", "AF"), row(1, "NORM", "AF"), row(2, "A report.", "x", kind="ptb-test-report")]
    found = make_results(rows, Scorers(), 100, 0)["benchmark"]
    assert found["cpsc-test"]["questions"] == 2 and found["cpsc-test"]["scores"]["model"]["hamming_loss"] == 0.5
    assert found["cpsc-test"]["intervals"]["commonest answer"]["macro_f1"] == [0, 0.5]
    assert "GPT-4o" in found["ptb-test-report"]["unscored"]
    assert "benchmark" not in make_results([row(0, "yes", "no", kind="single-verify")], Scorers(), 100, 0)
