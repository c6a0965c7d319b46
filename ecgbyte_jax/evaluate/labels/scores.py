"""Label scores: how the probabilities of candidate answers rank recordings, decide about them, and are calibrated.

Axes: N recordings that are asked a question, C candidate answers, L labels, P patients, R resamples of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import groupby
from operator import itemgetter

import numpy as np

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.evaluate.generations import OTHER, OWN
from ecgbyte_jax.evaluate.intervals import draw, interval
from ecgbyte_jax.evaluate.metrics import YES_NO
from ecgbyte_jax.evaluate.results import MODEL, OTHER_ECG
from ecgbyte_jax.evaluate.verdict import difference

SCORES = ("auroc", "auprc", "f1", "balanced_accuracy", "brier")
_THRESHOLDED = ("f1", "balanced_accuracy")
BINS = 10  # of the expected calibration error
_SYSTEMS = {MODEL: OWN, OTHER_ECG: OTHER}


@dataclass(frozen=True, eq=False)
class Question:
    """The N recordings that were asked a question; probabilities: float64 [N, C] by the ECG that was shown."""

    text: str
    candidates: tuple[str, ...]
    patients: list[str]
    references: list[str]
    probabilities: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Label:
    """An answer to a question against all others: whether it is right, bool [N], its probabilities float64 [N] by ECG shown.

    threshold: the least probability at which it is decided for; None where the validation split has not both, recordings of
    which it is right and of which not, or is what is evaluated.
    """

    question: str
    answer: str
    patients: list[str]
    truth: np.ndarray
    probabilities: dict[str, np.ndarray]
    threshold: float | None = None


def check_scikit_learn() -> None:
    """Raises ConfigError where scikit-learn is missing."""
    if find_spec("sklearn") is None:
        raise ConfigError("eval.labels needs scikit-learn: install the extra, pip install -e '.[labels]'")


def make_label_results(rows: Iterable[dict], split: str, resamples: int, seed: int) -> dict:
    """The label scores of a split from the rows of probabilities, with those of the validation split that give thresholds.

    Each score is the mean over the labels that have it, with an interval over resampled patients. A label is the answer yes, or
    each candidate of a question of more than yes and no; it is scored where the split has recordings with and without it.
    """
    splits = {name: gather([row for row in rows if row["split"] == name]) for name in {row["split"] for row in rows}}
    questions = splits[split]
    valid = {question.text: question for question in splits.get("valid", []) if split != "valid"}  # none for itself
    labels = [label for question in questions for label in _labels(question, valid.get(question.text))]
    scored = [label for label in labels if 0 < label.truth.sum() < len(label.truth)]
    names = sorted({patient for question in questions for patient in question.patients})
    samples, errors = _resample(scored, questions, names, resamples, seed)
    by_label = [
        {"question": label.question, "answer": label.answer, "recordings": len(label.truth)}
        | {"positives": int(label.truth.sum()), "threshold": label.threshold}
        | {"scores": {system: score(label, view) for system, view in _SYSTEMS.items()}}
        | {"intervals": {system: _intervals(samples[view][place]) for system, view in _SYSTEMS.items()}}
        for place, label in enumerate(scored)
    ]
    means = {view: _means(samples[view]) for view in _SYSTEMS.values()}
    means_of = {system: _mean_scores([label["scores"][system] for label in by_label]) for system in _SYSTEMS}
    missing = {} if means_of[MODEL]["f1"] is not None else {name: _no_threshold(split) for name in _THRESHOLDED}
    results = {
        "questions": len(questions),
        "answers": sum(len(question.references) for question in questions),
        "foreign_references": sum(reference not in q.candidates for q in questions for reference in q.references),
        "labels": len(scored),
        "unscored_labels": len(labels) - len(scored),
        "scores": {
            system: means_of[system] | {"calibration_error": calibration_error(*certainty(questions, view))}
            for system, view in _SYSTEMS.items()
        },
        "intervals": {
            system: _intervals(means[view] | {"calibration_error": errors[view]}) for system, view in _SYSTEMS.items()
        },
        "missing": missing,
        "by_label": by_label,
        "calibration": calibration(*certainty(questions, OWN)),
    }
    if scored and len((pair := _defined(means[OWN]["auroc"], means[OTHER]["auroc"]))[0]):
        auroc = [results["scores"][system]["auroc"] for system in _SYSTEMS]
        results["auroc_over_other_ecg"] = difference(*auroc, *pair)._asdict()
    return results


def _no_threshold(split: str) -> str:
    """Why no label has a threshold."""
    if split == "valid":
        return "its thresholds come from the validation split, which is what is evaluated"
    return "its thresholds come from the validation split, which has no label both with and without it"


def gather(rows: list[dict]) -> list[Question]:
    """The questions of one split.

    A candidate's probability is the softmax, over all candidates of its question, of the sum of its tokens' log-probabilities,
    the tokens that end the answer among them; that of a recording is the mean over its segments.
    """
    asked: dict[str, dict[str, list[list[dict]]]] = {}
    for (question, id, _), parts in groupby(rows, itemgetter("question", "id", "segment")):
        asked.setdefault(question, {}).setdefault(id, []).append(sorted(parts, key=itemgetter("first")))
    return [_gather_question(text, list(recordings.values())) for text, recordings in asked.items()]


def _gather_question(text: str, recordings: list[list[list[dict]]]) -> Question:
    """recordings: of each segment of each recording, the rows that hold the candidates in order."""
    views = {"log_probs": OWN, "log_probs_to_other_ecg": OTHER}
    firsts = [segments[0][0] for segments in recordings]
    probabilities = {
        view: np.array([np.mean([_normalise(parts, field) for parts in segments], axis=0) for segments in recordings])
        for field, view in views.items()
        if field in firsts[0]
    }
    candidates = tuple(candidate for part in recordings[0][0] for candidate in part["candidates"])
    return Question(text, candidates, [row["patient"] for row in firsts], [row["reference"] for row in firsts], probabilities)


def _normalise(parts: list[dict], field: str) -> np.ndarray:
    """Probabilities float64 [C] that sum to 1."""
    log_probs = np.array([value for part in parts for value in part[field]])
    weights = np.exp(log_probs - log_probs.max())
    return weights / weights.sum()


def _labels(question: Question, valid: Question | None) -> Iterator[Label]:
    answers = YES_NO[:1] if set(question.candidates) == set(YES_NO) else question.candidates
    for answer in answers:
        label = _label(question, answer)
        known = _label(valid, answer) if valid else None
        yield replace(label, threshold=best_threshold(known.truth, known.probabilities[OWN]) if known else None)


def _label(question: Question, answer: str) -> Label:
    column = question.candidates.index(answer)
    truth = np.array([reference == answer for reference in question.references])
    columns = {view: values[:, column] for view, values in question.probabilities.items()}
    return Label(question.text, answer, question.patients, truth, columns)


def best_threshold(truth: np.ndarray, probabilities: np.ndarray) -> float | None:
    """The least probability with the highest F1 where `truth` bool [N] is decided from it on; None where truth is constant."""
    from sklearn.metrics import precision_recall_curve

    if not 0 < truth.sum() < len(truth):
        return None
    precision, recall, thresholds = precision_recall_curve(truth, probabilities)
    precision, recall = precision[:-1], recall[:-1]  # but the last, which decides for none
    return float(thresholds[np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-12))])


def score(label: Label, view: str) -> dict[str, float | None]:
    """AUROC, AUPRC (average precision), F1 and balanced accuracy at the threshold, and the Brier score of a label.

    F1 and balanced accuracy are None without a threshold.
    """
    from sklearn import metrics

    truth, probabilities = label.truth, label.probabilities[view]
    found: dict[str, float | None] = dict.fromkeys(SCORES)
    found["auroc"] = float(metrics.roc_auc_score(truth, probabilities))
    found["auprc"] = float(metrics.average_precision_score(truth, probabilities))
    if label.threshold is not None:
        decided = probabilities >= label.threshold
        found["f1"] = float(metrics.f1_score(truth, decided, zero_division=0))
        found["balanced_accuracy"] = float(metrics.balanced_accuracy_score(truth, decided))
    found["brier"] = float(metrics.brier_score_loss(truth, probabilities))
    return found


def _mean_scores(scores: list[dict[str, float | None]]) -> dict[str, float | None]:
    """The mean over the labels that have a score; None where none has it."""
    values = {name: [value for row in scores if (value := row[name]) is not None] for name in SCORES}
    return {name: float(np.mean(known)) if known else None for name, known in values.items()}


def _resample(
    labels: list[Label], questions: list[Question], names: list[str], resamples: int, seed: int
) -> tuple[dict[str, list[dict[str, np.ndarray]]], dict[str, np.ndarray]]:
    """By ECG shown: the scores [R] of each label by name, and the calibration errors [R], in the same draws of patients."""
    numbers = {name: number for number, name in enumerate(names)}
    groups = [np.array([numbers[patient] for patient in label.patients]) for label in labels]
    of_answers = np.array([numbers[patient] for question in questions for patient in question.patients])
    gaps = {view: _gaps(*certainty(questions, view), of_answers, len(names)) for view in _SYSTEMS.values()}
    parts: dict[str, list[list[dict[str, np.ndarray]]]] = {view: [[] for _ in labels] for view in _SYSTEMS.values()}
    errors: dict[str, list[np.ndarray]] = {view: [] for view in _SYSTEMS.values()}
    for drawn in draw(len(names), resamples, seed):
        for place, (label, group) in enumerate(zip(labels, groups)):
            weights = drawn[:, group]
            for view in _SYSTEMS.values():
                parts[view][place].append(resampled(label.truth, label.probabilities[view], label.threshold, weights))
        for view, (sums, counts) in gaps.items():
            errors[view].append(_ratio(np.abs(drawn @ sums).sum(axis=1), drawn @ counts))
    samples = {
        view: [{name: np.concatenate([part[name] for part in of_label]) for name in SCORES} for of_label in of_labels]
        for view, of_labels in parts.items()
    }
    return samples, {view: np.concatenate(found) for view, found in errors.items()}


def resampled(
    truth: np.ndarray, probabilities: np.ndarray, threshold: float | None, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """As `score`, for R resamples at once, which scikit-learn's functions take one by one: name -> float64 [R].

    weights: how often each of the N recordings was drawn, float64 [R, N]. NaN where a score is not defined.
    """
    order = np.argsort(probabilities, kind="stable")
    starts = np.flatnonzero(np.diff(probabilities[order], prepend=-1.0))  # of each distinct probability
    falling = weights[:, order]
    with_label, without = (
        np.add.reduceat(falling * right, starts, axis=1) for right in (truth[order], ~truth[order])
    )  # [R, distinct]
    positives, negatives = with_label.sum(axis=1), without.sum(axis=1)
    below = np.cumsum(without, axis=1) - without
    found = dict.fromkeys(SCORES, np.full(len(weights), np.nan))
    found["auroc"] = _ratio((with_label * (below + without / 2)).sum(axis=1), positives * negatives)
    hits, alarms = (np.cumsum(counts[:, ::-1], axis=1) for counts in (with_label, without))  # from the highest probability on
    precision = hits / np.maximum(hits + alarms, 1)
    found["auprc"] = _ratio((with_label[:, ::-1] * precision).sum(axis=1), positives)
    found["brier"] = _ratio(weights @ (probabilities - truth) ** 2, weights.sum(axis=1))
    if threshold is not None:
        decided = probabilities >= threshold
        hit, alarm = weights @ (truth & decided), weights @ (~truth & decided)
        found["f1"] = _ratio(2 * hit, positives + hit + alarm)
        found["balanced_accuracy"] = (_ratio(hit, positives) + 1 - _ratio(alarm, negatives)) / 2
    both = (positives > 0) & (negatives > 0)
    return {name: np.where(both, values, np.nan) for name, values in found.items()}


def certainty(questions: list[Question], view: str) -> tuple[np.ndarray, np.ndarray]:
    """Of all answers to all questions: the probability of the likeliest candidate, float64 [N], and whether it is right."""
    highest, right = [np.zeros(0)], [np.zeros(0, bool)]
    for question in questions:
        probabilities = question.probabilities[view]
        highest.append(probabilities.max(axis=1))
        likeliest = (question.candidates[place] for place in probabilities.argmax(axis=1))
        right.append(np.array([answer == reference for answer, reference in zip(likeliest, question.references)]))
    return np.concatenate(highest), np.concatenate(right)


def calibration(highest: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Of each bin of the probabilities `highest` [N] that has any: their mean, the share of `right` bool [N], their number."""
    bins = _bins(highest)
    return [
        {"probability": float(highest[here].mean()), "right": float(right[here].mean()), "answers": int(here.sum())}
        for here in (bins == number for number in np.unique(bins))
    ]


def calibration_error(highest: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error of `BINS` bins of equal width (Guo et al. 2017, equation 3)."""
    sums, _ = _gaps(highest, right, np.zeros(len(right), int), 1)
    return float(np.abs(sums).sum() / len(right))


def _gaps(highest: np.ndarray, right: np.ndarray, groups: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """By group int [N]: the sums of right minus probability in each bin, [size, bins], and the number of answers, [size].

    A bin's share of the answers times the distance of its two means is the absolute value of its sum by the number of answers.
    """
    sums = np.bincount(groups * BINS + _bins(highest), right - highest, size * BINS)
    return sums.reshape(size, BINS), np.bincount(groups, minlength=size).astype(np.float64)


def _bins(probabilities: np.ndarray) -> np.ndarray:
    """The number of the bin of each probability, the upper bound of each of which belongs to it."""
    return np.clip(np.ceil(probabilities * BINS).astype(int) - 1, 0, BINS - 1)


def _means(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Name -> the mean [R] over the labels for which a resample defines the score."""
    stacked = {name: np.array([label[name] for label in samples]) for name in SCORES if samples}
    return {name: _ratio(np.nansum(values, axis=0), (~np.isnan(values)).sum(axis=0)) for name, values in stacked.items()}


def _intervals(samples: dict[str, np.ndarray]) -> dict[str, list[float] | None]:
    """[low, high] of the resamples that define a score; None where none does."""
    known = {name: values[~np.isnan(values)] for name, values in samples.items()}
    return {name: interval(values) if len(values) else None for name, values in known.items()}


def _defined(*samples: np.ndarray) -> list[np.ndarray]:
    """The resamples [R] that define all of these."""
    kept = ~np.isnan(samples).any(axis=0)
    return [values[kept] for values in samples]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where nothing is to be divided by."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
