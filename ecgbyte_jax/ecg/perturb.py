"""Recording faults applied to clean ECGs, to measure how far scores fall.

Axes: L leads (12), T samples.
"""

import hashlib
from collections.abc import Callable

import numpy as np

from ecgbyte_jax.ecg.tokenizer import ECGTokenizer

_NOISE_MV = 0.1  # standard deviation
_WANDER_MV = (0.3, 0.6)  # amplitude
_WANDER_HZ = (0.15, 0.5)
_FLAT_LEADS = 3
_BLACKOUT = 0.2  # of the duration


def noise(signal: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Adds white noise of 0.1 mV (standard deviation) to every lead of a signal [L, T] in mV."""
    return signal + rng.normal(0.0, _NOISE_MV, signal.shape)


def wander(signal: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Adds respiratory baseline wander to a signal [L, T] in mV: 0.3 to 0.6 mV, by lead, at 0.15 to 0.5 Hz."""
    leads, samples = signal.shape
    amplitude, frequency = rng.uniform(*_WANDER_MV, (leads, 1)), rng.uniform(*_WANDER_HZ)
    turns = frequency * np.arange(samples) / rate + rng.random((leads, 1))
    return signal + amplitude * np.sin(2 * np.pi * turns)


def dropout(signal: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Sets 3 random leads of a signal [L, T] to 0 mV throughout."""
    off = rng.choice(len(signal), _FLAT_LEADS, replace=False)
    return np.where(np.isin(np.arange(len(signal)), off)[:, None], 0.0, signal)


def blackout(signal: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Sets all leads of a signal [L, T] to 0 mV for one random fifth of the time."""
    samples = signal.shape[1]
    length = round(_BLACKOUT * samples)
    start = rng.integers(samples - length + 1)
    place = np.arange(samples)
    return np.where((place >= start) & (place < start + length), 0.0, signal)


PERTURBATIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "wander": wander,
    "dropout": dropout,
    "blackout": blackout,
}


def perturb(name: str, ecg: np.ndarray, tokenizer: ECGTokenizer, rate: float, seed: int) -> np.ndarray:
    """Perturbs a segment: a signal float32 [L, T] in mV, or ECG tokens int32 [n], which are decoded and encoded again.

    rate: in Hz. The result depends only on name, segment and seed, not on the question asked.
    """
    own = ecg.astype("<f4" if ecg.ndim > 1 else "<i4").tobytes()
    rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode() + own).digest()[:8], "big")])
    if ecg.ndim > 1:
        return PERTURBATIONS[name](ecg, rate, rng).astype(np.float32)
    return tokenizer.encode(PERTURBATIONS[name](tokenizer.decode(ecg), rate, rng))
