"""The features of recordings on disk, by the settings of cleaning, so that nothing is measured twice.

Axes: R recordings, F features (24 per lead).
"""

import hashlib
from pathlib import Path

import numpy as np

from ecgbyte_jax.files import read_arrays, write_arrays

_ENDING = ".features"


def write_features(folder: Path, measured: dict[int, np.ndarray]) -> None:
    """Writes features float64 [F], by the recordings' keys, as one file. Raises OSError."""
    keys = np.array([*measured], np.uint64)
    name = hashlib.sha256(keys.tobytes()).hexdigest()[:24] + _ENDING
    write_arrays(folder / name, keys=keys, features=np.stack([*measured.values()]))


def read_features(folder: Path, keys: np.ndarray) -> dict[int, np.ndarray]:
    """Reads the features float64 [F] of recordings with keys uint64 [R], as far as they exist; damaged files are ignored."""
    features: dict[int, np.ndarray] = {}
    for path in sorted(folder.glob("*" + _ENDING)):
        part = read_arrays(path)
        if part is not None:
            rows = np.flatnonzero(np.isin(part["keys"], keys))
            features |= zip(part["keys"][rows].tolist(), part["features"][rows])
    return features
