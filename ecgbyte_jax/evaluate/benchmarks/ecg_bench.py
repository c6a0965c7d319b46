"""ECGBench's scores (Liu et al. 2024, arXiv 2410.19008) of answers as texts, by the rules that it was published with.

Axes: N answers, P patients, C classes, R resamples of the patients.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ecgbyte_jax.evaluate.intervals import draw

LABELS = {
    "ptb-test": ("NORM", "MI", "STTC", "CD", "HYP"),
    "cpsc-test": ("NORM", "AF", "I-AVB", "LBBB", "RBBB", "PAC", "PVC", "STD", "STE"),
    "code15-test": ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF"),  # beside NORM and ABNORMAL
}
_WHOLE = ("ABNORMAL", "NORM")  # the first of which is written with the second
LETTERS = ("csn-test-no-cot", "g12-test-no-cot")  # questions with the options A to H
LISTED = "ecgqa-test"  # questions that list their answers after "Options:"
JUDGED = {"ptb-test-report": "published with GPT-4o as judge, which needs a network"}  # not scored here, and why
_OPTIONS = tuple("ABCDEFGH")
_ANSWER = "Answer:"
_ASKED_TO = "Only answer based on the given Options without any explanation."


class Scores(NamedTuple):
    """Scores by name, None where undefined, and float64 [R] in resamples of the patients, NaN where undefined."""

    scores: dict[str, float | None]
    samples: dict[str, np.ndarray]


def is_scored(test_set: str) -> bool:
    """Whether a test set has a score here."""
    return test_set in LABELS or test_set in LETTERS or test_set == LISTED


def score(test_set: str, rows: list[dict], answer: str, resamples: int, seed: int) -> Scores:
    """The scores of a test set: macro F1, macro AUC and Hamming loss of label sets, else accuracy.

    rows: of generations, one for each question; answer: the field with the answer.
    """
    names, groups = np.unique([row["patient"] for row in rows], return_inverse=True)
    draws = draw(len(names), resamples, seed)
    if test_set in LABELS:
        truth = [true_labels(row["reference"], test_set) for row in rows]
        given = [given_labels(row[answer], test_set) for row in rows]
        return _label_scores(truth, given, groups, draws)
    right = _by_letter if test_set in LETTERS else _by_options
    correct = np.array([right(row["question"], row["reference"], row[answer]) for row in rows])
    sums = np.stack([np.bincount(groups, values) for values in (correct, np.ones(len(correct)))], axis=1)
    samples = [_ratio(*(drawn @ sums).T) for drawn in draws]
    return Scores({"accuracy": float(correct.mean())}, {"accuracy": np.concatenate(samples)})


def true_labels(reference: str, test_set: str) -> frozenset[str]:
    """The labels of a reference, whose letters are anywhere in it; in code15-test NORM and ABNORMAL stand alone."""
    if test_set == "code15-test" and reference.strip() in _WHOLE:
        return frozenset({reference.strip()})
    return frozenset(label for label in LABELS[test_set] if label in reference)


def given_labels(text: str, test_set: str) -> frozenset[str]:
    """The labels whose letters are anywhere in an answer; of code15-test NORM or ABNORMAL too, after the last "Answer:"."""
    if test_set != "code15-test":
        return true_labels(text, test_set)
    text = text.rpartition(_ANSWER)[2]
    whole = next((label for label in _WHOLE if label in text), "")
    return frozenset(label for label in LABELS[test_set] if label in text) | ({whole} - {""})


def letter_of(text: str) -> str:
    """The option A to H that an answer names, "" if none.

    It is the whole answer; or, by the alphabet, the first letter that a full stop follows; or what follows "The correct option
    is "; or, by the alphabet, the first that is anywhere after the last "Answer:".
    """
    if text in _OPTIONS:
        return text
    if dotted := next((letter for letter in _OPTIONS if f"{letter}." in text), ""):
        return dotted
    _, named, after = text.rpartition("The correct option is ")
    if named:
        return after[:1] if after[:1] in _OPTIONS else ""
    _, named, after = text.rpartition(_ANSWER)
    return next((letter for letter in _OPTIONS if named and letter in after), "")


def _by_letter(_question: str, reference: str, answer: str) -> float:
    """Whether the letter is right; without one, the chance of the published scorer's guess."""
    given = letter_of(answer)
    return float(given == reference[:1]) if given else 1 / len(_OPTIONS)


def _by_options(question: str, reference: str, answer: str) -> float:
    """Whether the question's options that are in the answer are those of the reference, which commas separate."""
    listed = question.rpartition("Options:")[2].replace(_ASKED_TO, "")
    options = {option.strip() for option in listed.split(",")}
    right = {option.strip() for option in reference.split(",")}
    return float({option for option in options if option in answer.lower()} == right)


def _label_scores(
    truth: list[frozenset[str]], given: list[frozenset[str]], groups: np.ndarray, draws: Iterable[np.ndarray]
) -> Scores:
    """Of the classes that some reference has; the AUC is that of decisions, the mean of sensitivity and specificity.

    A class whose AUC is undefined is left out of the macro AUC, where the published scorer's would be undefined too.
    """
    classes = sorted(frozenset().union(*truth))
    true, decided = (np.array([[name in labels for name in classes] for labels in sets], bool) for sets in (truth, given))
    cells = np.stack([true & decided, ~true & decided, true & ~decided, ~true & ~decided], axis=1)  # [N, 4, C]
    by_patient = np.zeros((groups.max() + 1, 4 * len(classes)))
    np.add.at(by_patient, groups, cells.reshape(len(groups), -1).astype(np.float64))
    parts = [_from_cells((drawn @ by_patient).reshape(len(drawn), 4, len(classes))) for drawn in draws]
    whole = _from_cells(by_patient.sum(axis=0).reshape(1, 4, len(classes)))
    scores = {name: None if np.isnan(value[0]) else float(value[0]) for name, value in whole.items()}
    return Scores(scores, {name: np.concatenate([part[name] for part in parts]) for name in whole})


def _from_cells(cells: np.ndarray) -> dict[str, np.ndarray]:
    """Scores float64 [R] of numbers of hits, false alarms, misses and right rejections, [R, 4, C]."""
    hits, alarms, misses, rejections = np.moveaxis(cells, 1, 0)
    f1 = np.nan_to_num(_ratio(2 * hits, 2 * hits + alarms + misses))
    auc = (_ratio(hits, hits + misses) + _ratio(rejections, rejections + alarms)) / 2
    macro_auc = _ratio(np.nansum(auc, axis=1), (~np.isnan(auc)).sum(axis=1))
    wrong = _ratio((alarms + misses).sum(axis=1), cells.sum(axis=(1, 2)))
    return {"macro_f1": f1.mean(axis=1), "macro_auc": macro_auc, "hamming_loss": wrong}


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where nothing is to be divided by."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
