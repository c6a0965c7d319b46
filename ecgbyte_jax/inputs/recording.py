"""A recording of somebody's own, as segments that a model can be asked about.

Axes: S segments, T samples of a segment.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.ecg.clean_config import CleanConfig
from ecgbyte_jax.ecg.formats.own import read_own
from ecgbyte_jax.ecg.plausible import beats_a_minute
from ecgbyte_jax.ecg.signal import clean, segment
from ecgbyte_jax.errors import ConfigError, RecordError


@dataclass(frozen=True, eq=False)
class Recording:
    """One recording: its name and path, rate in Hz, length in s, beats a minute (NaN where unknown).

    notes: what was noticed in reading; clean_rate: Hz of the segments float64 [S, 12, T], clean, in mV; warnings: why a model
    may be wrong about it.
    """

    name: str
    path: str
    rate: float
    seconds: float
    beats: float
    notes: tuple[str, ...]
    clean_rate: float
    segments: np.ndarray
    warnings: tuple[str, ...] = ()


def read_recording(
    path: str,
    how: CleanConfig,
    segment_length: int,
    sample_rate: float = 0.0,
    leads: Sequence[str] = (),
    units: str = "",
    longest: float = math.inf,
) -> Recording:
    """Reads a file as `own.read_own` does, cleans it, and cuts it into segments of `segment_length` samples.

    Raises RecordError for a file that cannot be used, or has more than `longest` s.
    """
    own = read_own(path, sample_rate, leads, units)
    rate, samples = own.record.sample_rate, own.record.signal.shape[1]
    if samples > longest * rate:
        raise RecordError(f"{path}: {samples / rate:.0f} s found, at most {longest:g} s expected; cut the recording")
    try:
        segments = segment(clean(own.record, how), segment_length)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error
    name = Path(path).name.removesuffix(".hea").removesuffix(".dat")
    beats = beats_a_minute(own.record)
    return Recording(name, path, rate, samples / rate, beats, own.notes, how.target_rate or rate, segments)


def read_list(file: str) -> list[str]:
    """The paths in a text file, one a line; raises ConfigError where it cannot be read or has none."""
    try:
        paths = [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines()]
        paths = [os.path.expanduser(path) for path in paths if path]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--record_list: '{file}' cannot be read: {error}; a text file with one recording a line") from error
    if not paths:
        raise ConfigError(f"--record_list: '{file}' is empty, a text file with one recording a line expected")
    return paths
