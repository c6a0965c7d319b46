"""A linear probe: what of the answers to a corpus' questions a linear map of an encoder's features tells.

Axes: n segments, D features, A answers.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from ecgbyte_jax.inputs.shards import Sequence

_LEAST = 10  # training segments with an answer, for it to be asked for
_RIDGE = 0.01


@dataclass(frozen=True)
class Question:
    """A question with its answers: numbers int64 of training and validation segments, and which answer int64 each has."""

    text: str
    answers: tuple[str, ...]
    train: tuple[np.ndarray, np.ndarray]
    valid: tuple[np.ndarray, np.ndarray]


def choose_questions(train: list[Sequence], valid: list[Sequence], segments: int) -> list[Question]:
    """The questions about one segment with two or more answers that each occur 10 times in training and at all in validation.

    train, valid: see `batches.outlines_of`; of a question the first `segments` segments are taken.
    """
    by_split = []
    for asked in (train, valid):
        answers: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for outline in asked:
            if len(outline.ecgs) == 1 and len(answers[outline.question]) < segments:
                answers[outline.question].append((int(outline.ecgs[0]), outline.answer))
        by_split.append(answers)
    chosen = []
    for question in sorted(by_split[0].keys() & by_split[1].keys()):
        common = Counter(answer for _, answer in by_split[0][question])
        seen = {answer for _, answer in by_split[1][question]}
        answers = tuple(sorted(answer for answer, count in common.items() if count >= _LEAST and answer in seen))
        if len(answers) > 1:
            chosen.append(Question(question, answers, *(_rows(split[question], answers) for split in by_split)))
    return chosen


def _rows(asked: list[tuple[int, str]], answers: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    kept = [(number, answers.index(answer)) for number, answer in asked if answer in answers]
    numbers, places = np.array(kept, np.int64).T
    return numbers, places


def probe(questions: list[Question], features: dict[int, np.ndarray]) -> float:
    """The mean, over questions, of the balanced accuracy of a ridge regression on the answers; features [D] by segment number.

    The features are standardised by the training segments' mean and deviation. Balanced: each answer counts alike, so that
    knowing nothing scores one by the number of answers.
    """
    return float(np.mean([_balanced_accuracy(question, features) for question in questions]))


def _balanced_accuracy(question: Question, features: dict[int, np.ndarray]) -> float:
    (numbers, answers), (asked, expected) = question.train, question.valid
    known, new = (np.stack([features[int(number)] for number in each]).astype(float) for each in (numbers, asked))
    mean, deviation = known.mean(axis=0), known.std(axis=0) + 1e-6
    known, new = (np.pad((each - mean) / deviation, ((0, 0), (0, 1)), constant_values=1.0) for each in (known, new))
    weights = 1 / np.bincount(answers)[answers]  # each answer alike
    weighted = known * weights[:, None]
    targets = np.eye(len(question.answers))[answers]  # [n, A]
    penalty = _RIDGE * len(question.answers) * np.eye(known.shape[1])
    found = (new @ np.linalg.solve(weighted.T @ known + penalty, weighted.T @ targets)).argmax(axis=1)
    return float(np.mean([np.mean(found[expected == answer] == answer) for answer in np.unique(expected)]))
