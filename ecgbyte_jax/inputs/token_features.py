"""Features of each ECG token's waveform, from which a model's embeddings can be initialised.

Axes: E tokens of the ECG vocabulary, F features.
"""

from collections.abc import Sequence

import numpy as np

from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE

_PLACES = 8  # that a token's waveform is resampled to


def token_features(tokens: Sequence[np.ndarray]) -> np.ndarray:
    """Level, spread, slopes, length, shape and histogram of every token's symbols (uint8 [n] each), float32 [E, F].

    Each feature has mean 0 over the vocabulary, and each of the six groups the same total variance.
    """
    groups = [_groups(token.astype(np.float64)) for token in tokens]
    return np.concatenate([_standardise(np.stack(group)) for group in zip(*groups)], axis=1).astype(np.float32)


def _groups(token: np.ndarray) -> tuple[np.ndarray, ...]:
    steps = np.diff(token) if len(token) > 1 else np.zeros(1)
    shape = np.interp(np.linspace(0, len(token) - 1, _PLACES), np.arange(len(token)), token) - token.mean()
    # A symbol counts for its neighbours too, which are nearly the same voltage.
    counts = np.exp(-0.5 * (np.arange(ALPHABET_SIZE) - token[:, None]) ** 2).sum(axis=0)
    return (
        np.array([token.mean(), token[0], token[-1], token.min(), token.max()]),
        np.array([token.std(), np.ptp(token)]),
        np.array([token[-1] - token[0], steps.max(), steps.min(), np.abs(steps).mean()]),
        np.array([np.log(len(token))]),
        shape,
        np.log1p(counts),
    )


def _standardise(values: np.ndarray) -> np.ndarray:
    deviations = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(deviations > 0, deviations, 1.0) / values.shape[1] ** 0.5
