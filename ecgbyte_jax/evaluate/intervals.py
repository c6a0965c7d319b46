"""How sure a score is: over seeds as published, and over patients by the bootstrap.

Axes: N pairs, P patients, R resamples.
"""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from ecgbyte_jax.evaluate.metrics import PairScores

_AT_ONCE = 10_000_000  # counts of drawn patients that are held at a time: 80 MB
_TAILS = (2.5, 97.5)  # %


def over_seeds(values: list[float]) -> dict[str, object]:
    """mean, std (of a sample) and t95 = [low, high] of a score of n >= 2 seeds, as published."""
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    margin = float(stats.t.ppf(0.975, len(values) - 1)) * std / len(values) ** 0.5
    return {"mean": mean, "std": std, "t95": [mean - margin, mean + margin]}


def bootstrap(seeds: list[PairScores], patients: list[str], resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Name -> the score float64 [R] in each of `resamples` samples of P patients, drawn with replacement (Efron 1979).

    seeds: the pairs of each seed, those of the patients str [N]; the score is the mean over the seeds. The same patients and
    seed give the same samples, so that two runs' scores can be subtracted sample by sample.
    """
    names, groups = np.unique(patients, return_inverse=True)
    sums = [pairs.sums(groups, len(names)) for pairs in seeds]
    parts = [
        [pairs.scores(drawn @ of_patients) for pairs, of_patients in zip(seeds, sums)]
        for drawn in draw(len(names), resamples, seed)
    ]
    return {
        name: np.concatenate([np.mean([scores[name] for scores in part], axis=0) for part in parts]) for name in parts[0][0]
    }


def interval(values: np.ndarray) -> list[float]:
    """[low, high], between which 95% of the values [R] are."""
    return [float(bound) for bound in np.percentile(values, _TAILS)]


def draw(patients: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each patient is drawn, float64 [at most R, P] at a time; the same for the same three numbers."""
    rng, size = np.random.default_rng(seed), max(1, _AT_ONCE // patients)
    for start in range(0, resamples, size):
        yield rng.multinomial(patients, np.full(patients, 1 / patients), min(size, resamples - start)).astype(np.float64)
