"""Reading WFDB records: the one place that knows about files of signals.

Axes: L leads, N samples.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import wfdb

from ecgbyte_jax.errors import RecordError

# The order of the leads everywhere behind `signal.clean`.
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_CANONICAL = {name.upper(): name for name in LEADS}
_MILLIVOLTS = {"mV": 1.0, "uV": 1e-3, "V": 1e3}


@dataclass(frozen=True, eq=False)
class Record:
    """One recording as it was stored, leads in the file's own order.

    signal: float32 [L, N] in mV; sample_rate in Hz; leads: L names, the twelve standard ones in their usual spelling.
    """

    signal: np.ndarray
    sample_rate: float
    leads: tuple[str, ...]


def read_record(path: str | Path) -> Record:
    """Reads the WFDB record `path` (with or without .hea or .dat).

    Returns a Record with float32 [L, N] in mV.
    Raises RecordError, naming the file, where a file is missing, truncated or malformed, the unit is not one of
    volts, or a sample is missing (NaN).
    """
    stem = Path(path)
    if stem.suffix in (".hea", ".dat"):
        stem = stem.with_suffix("")
    try:
        found = wfdb.rdrecord(str(stem), return_res=32)
        leads = tuple(_CANONICAL.get(name.upper(), name) for name in found.sig_name)
    except FileNotFoundError as error:
        raise RecordError(f"{error.filename}: no such file; record '{stem}' needs its .hea and its .dat") from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise RecordError(f"{stem}: not readable as a WFDB record, or truncated: {error}") from error
    if found.p_signal is None or found.p_signal.size == 0:
        raise RecordError(f"{stem}.hea: the record holds no samples")
    _check_rate(stem)
    return Record(_millivolts(found, stem), float(found.fs), leads)


def _check_rate(stem: Path) -> None:
    """wfdb takes 250 Hz for a rate that it cannot read, which would stretch the signal."""
    lines = stem.with_name(stem.name + ".hea").read_text(errors="replace").splitlines()
    fields = next(line for line in lines if line.strip() and not line.startswith("#")).split()
    rate = re.split("[/(]", fields[2])[0] if len(fields) > 2 else "250"  # WFDB's own rate where none is given
    if not re.fullmatch(r"\d*\.?\d+(e[+-]?\d+)?", rate, re.IGNORECASE) or float(rate) <= 0:
        raise RecordError(f"{stem}.hea: sample rate {fields[2]!r} found, a number of Hz above 0 wanted")


def _millivolts(found: wfdb.Record, stem: Path) -> np.ndarray:
    """The signal as float32 [L, N] in mV, contiguous."""
    unknown = sorted(set(found.units) - set(_MILLIVOLTS))
    if unknown:
        raise RecordError(f"{stem}.hea: units {unknown} found, one of {sorted(_MILLIVOLTS)} wanted")
    scale = np.array([_MILLIVOLTS[unit] for unit in found.units], np.float32)
    signal = np.ascontiguousarray((found.p_signal * scale).T, np.float32)  # [L, N]
    bad = np.flatnonzero(~np.isfinite(signal).all(axis=1))
    if bad.size:
        raise RecordError(f"{stem}.dat: missing samples (NaN) in leads {[found.sig_name[i] for i in bad]}")
    return signal
