"""The morphology of recordings on disk, by the cleaning that they went through, so that nothing is measured twice.

Axes: R recordings, F features (24 a lead).
"""

import hashlib
from pathlib import Path

import numpy as np

from ecgbyte_jax.files import read_arrays, write_arrays

_ENDING = ".features"


def write_features(folder: Path, measured: dict[int, np.ndarray]) -> None:
    """Keeps features float64 [F] by the recordings' keys, as one file."""
    keys = np.array([*measured], np.uint64)
    name = hashlib.sha256(keys.tobytes()).hexdigest()[:24] + _ENDING
    write_arrays(folder / name, keys=keys, features=np.stack([*measured.values()]))


def read_features(folder: Path, keys: np.ndarray) -> dict[int, np.ndarray]:
    """Features float64 [F] of those recordings, of uint64 [R] keys, that were measured here; damaged files count as missing."""
    found: dict[int, np.ndarray] = {}
    for path in sorted(folder.glob("*" + _ENDING)):
        part = read_arrays(path)
        if part is not None:
            rows = np.flatnonzero(np.isin(part["keys"], keys))
            found |= zip(part["keys"][rows].tolist(), part["features"][rows])
    return found
