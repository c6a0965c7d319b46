"""Answers that are a number with its unit ("72 beats per minute"), scored by how far off they are.

Axes: N pairs, P patients, R resamples.
"""

import math
import re

import numpy as np

from ecgbyte_jax.evaluate.intervals import draw, interval

_TURN = 360.0  # degrees; an axis of -170 is 20 degrees from one of 170
_PLURAL = re.compile(r"(?<=\w{3})s\b")  # of words, not of ms
_NUMBER = re.compile(r"([+-]?\d{1,15}(?:\.\d{1,15})?)\s*(.*?)\s*\.?")


def parse_number(text: str, unit: str) -> float | None:
    """The number of an answer, with the unit or without one; None for any other text."""
    found = _NUMBER.fullmatch(text.strip().replace("\u2212", "-"))
    return float(found[1]) if found and _singular(found[2]) in ("", _singular(unit)) else None


def _singular(unit: str) -> str:
    return _PLURAL.sub("", unit.lower())


def number_error(reference: float, answer: float, unit: str) -> float:
    """How far off an answer is, in its unit."""
    error = abs(answer - reference)
    return abs((error + _TURN / 2) % _TURN - _TURN / 2) if unit == "degrees" else error


def number_scores(references: list[str], hypotheses: list[str], unit: str) -> dict[str, float | int | None]:
    """Of N >= 1 answers: mean_absolute_error of those that are a number (None: none is), within_5, within_10, unparsed.

    within_5 and within_10: the share of all that are off by at most 5% and 10% of the reference, of angles by as much of 180
    degrees; unparsed, the number of answers that are no number with this unit, are not. Each reference is one.
    """
    return _scores(_columns(references, hypotheses, unit).sum(axis=0)) | {
        "unparsed": sum(parse_number(text, unit) is None for text in hypotheses)
    }


def number_intervals(
    references: list[str], hypotheses: list[str], unit: str, patients: list[str], resamples: int, seed: int
) -> dict[str, list[float]]:
    """Name -> the interval that holds 95% of the defined scores of resampled patients, as `intervals.bootstrap` draws them."""
    names, groups = np.unique(patients, return_inverse=True)
    columns = _columns(references, hypotheses, unit)
    sums = np.stack([np.bincount(groups, column, len(names)) for column in columns.T], axis=1)  # [P, 5]
    drawn = [_scores(row) for counts in draw(len(names), resamples, seed) for row in counts @ sums]  # [R]
    kept = {name: [value for row in drawn if (value := row[name]) is not None] for name in drawn[0]}
    return {name: interval(np.array(values)) for name, values in kept.items() if values}


def _columns(references: list[str], hypotheses: list[str], unit: str) -> np.ndarray:
    """float64 [N, 5]: error, whether it is defined, within 5%, within 10%, 1."""
    rows = []
    for text, given in zip(references, hypotheses):
        reference, answer = parse_number(text, unit), parse_number(given, unit)
        if reference is None:
            raise ValueError(f"reference {text!r} found, a number in {unit} expected")
        if answer is None:
            rows.append((0.0, 0.0, 0.0, 0.0, 1.0))
            continue
        error, whole = number_error(reference, answer, unit), 180.0 if unit == "degrees" else abs(reference)
        near = [error <= share * whole or math.isclose(error, share * whole) for share in (0.05, 0.10)]
        rows.append((error, 1.0, *map(float, near), 1.0))
    return np.array(rows)


def _scores(sums: np.ndarray) -> dict[str, float | int | None]:
    error, defined, within_5, within_10, count = sums.tolist()
    mean = error / defined if defined else None
    return {"mean_absolute_error": mean, "within_5": within_5 / count, "within_10": within_10 / count}
