"""What the scores say about a model: whether it reads the ECG, and whether it beats the commonest answer.

Axes: R resamples of the patients.
"""

from typing import NamedTuple

import numpy as np

from ecgbyte_jax.evaluate.intervals import interval

_SHORT = 3  # words of an answer that can be right as a whole
FEWEST_PATIENTS = 10  # with fewer, intervals over resampled patients are too narrow to be believed


class Difference(NamedTuple):
    """A paired difference of two scores, and the interval that holds 95% of the resamples."""

    mean: float
    interval: list[float]

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0, else 0."""
        low, high = self.interval
        return int(low > 0) - int(high < 0)

    def __str__(self) -> str:
        """In percentage points, for example `+34.2 [29.8, 38.5]`."""
        low, high = (100 * bound for bound in self.interval)
        return f"{_signed(100 * self.mean)} [{low:.1f}, {high:.1f}]"


def main_metric(references: list[str]) -> str:
    """The score that a verdict is about: exact match, or ROUGE-L where most references are long."""
    return "exact_match" if np.median([len(text.split()) for text in references]) <= _SHORT else "rouge_l"


def difference(score: float, other: float, samples: np.ndarray, other_samples: np.ndarray) -> Difference:
    """One score minus another; samples: both scores float64 [R] in the same resamples."""
    return Difference(score - other, interval(samples - other_samples))


def give_verdict(metric: str, other_ecg: Difference, commonest: Difference, patients: int) -> dict[str, str]:
    """`evidence`, `sentence` and `over_commonest` from the model's differences to its two controls."""
    beats = ("no better than the commonest answer", "beats the commonest answer", "worse than the commonest answer")
    parts = {"metric": metric, "over_commonest": f"{beats[commonest.sign]}: {commonest}"}
    if patients < FEWEST_PATIENTS:
        sentence = f"too few patients ({patients}) to tell whether it reads the ECG: {other_ecg}"
        return parts | {"evidence": "too few patients", "sentence": sentence}
    match other_ecg.sign:
        case 1:
            return parts | {"evidence": "reads", "sentence": f"reads the ECG: {other_ecg}"}
        case -1:
            sentence = f"worse with its own ECG than with another: {other_ecg}; look at the data"
            return parts | {"evidence": "worse", "sentence": sentence}
    return parts | {"evidence": "none", "sentence": f"no evidence that it reads the ECG: {other_ecg}"}


def _signed(points: float) -> str:
    return f"{points:+.1f}" if abs(points) >= 0.05 else "0.0"
