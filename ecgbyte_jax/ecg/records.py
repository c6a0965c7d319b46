"""Reading WFDB records: the one place that knows about files of signals.

Axes: L leads, N samples.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.errors import RecordError

# The order of the leads everywhere behind `signal.clean`.
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_CANONICAL = {name.upper(): name for name in LEADS}
_MILLIVOLTS = {"mV": 1.0, "uV": 1e-3, "V": 1e3}
_MISSING_16 = -32768  # WFDB's mark of a missing sample in format 16
# A lead's line: file, format 16, gain(baseline)/units, resolution, zero, first sample, checksum, block size, name.
_PLAIN = re.compile(
    r"(?P<file>\S+) 16 (?P<gain>\d+\.?\d*)(\((?P<baseline>-?\d+)\))?(/(?P<units>\S+))? "
    r"\d+ (?P<zero>-?\d+) -?\d+ (?P<checksum>-?\d+) 0 (?P<name>.+)"
)


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
    Raises RecordError, naming the file, where a file is missing, truncated or malformed, the samples do not add up to the
    header's checksum, the unit is not one of volts, a gain is 0, or a sample is missing (NaN).
    """
    stem = Path(path)
    if stem.suffix in (".hea", ".dat"):
        stem = stem.with_suffix("")
    lines = _header_lines(stem)
    rate = _sample_rate(stem, lines[0])
    digital = _read_plain(stem, lines) or _read_by_wfdb(stem)
    _check(digital, stem)
    leads = tuple(_CANONICAL.get(name.upper(), name) for name in digital.names)
    return Record(_millivolts(digital), rate, leads)


@dataclass(frozen=True, eq=False)
class _Digital:
    """A recording in steps of its converter: samples [N, L], and of each lead how to read them; checksum None: not told."""

    samples: np.ndarray
    missing: np.ndarray  # bool [L]: whether a lead has marks of missing samples
    gains: list[float]  # steps a unit
    baselines: list[int]
    units: list[str]
    checksums: list[int | None]
    names: list[str]


def _header_lines(stem: Path) -> list[list[str]]:
    """The fields of the header's lines, comments left out: first the record's, then one a lead."""
    try:
        text = stem.with_name(stem.name + ".hea").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise RecordError(f"{error.filename}: no such file; record '{stem}' needs its .hea and its .dat") from error
    except (OSError, ValueError) as error:
        raise RecordError(f"{stem}.hea: cannot be read: {error}") from error
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines or len(lines[0]) < 2:
        raise RecordError(f"{stem}.hea: not readable as a WFDB header")
    outside = sorted({line[0] for line in lines[1:] if Path(line[0]).name != line[0]})
    if outside:
        raise RecordError(f"{stem}.hea: signal files {outside} found, files beside the header wanted")
    return lines


def _sample_rate(stem: Path, fields: list[str]) -> float:
    """In Hz; wfdb takes 250 for a rate that it cannot read, which would stretch the signal."""
    rate = re.split("[/(]", fields[2])[0] if len(fields) > 2 else "250"  # WFDB's own rate where none is given
    if not re.fullmatch(r"\d*\.?\d+(e[+-]?\d+)?", rate, re.IGNORECASE) or float(rate) <= 0:
        raise RecordError(f"{stem}.hea: sample rate {fields[2]!r} found, a number of Hz above 0 wanted")
    return float(rate)


def _read_plain(stem: Path, lines: list[list[str]]) -> _Digital | None:
    """The form that nearly all ECGs have, one file of little-endian 16-bit samples (WFDB's format 16), read in one go.

    None for any other form, which wfdb reads, ten times slower.
    """
    head, *signals = lines
    fields = [_PLAIN.fullmatch(" ".join(line)) for line in signals]
    counts = head[1].isdigit() and len(head) > 3 and head[3].isdigit()
    if not counts or int(head[1]) != len(signals) or not signals or not all(fields) or len({f["file"] for f in fields}) > 1:
        return None
    file = stem.with_name(fields[0]["file"])
    try:
        samples = np.fromfile(file, "<i2")
        bytes_found = file.stat().st_size
    except FileNotFoundError as error:
        raise RecordError(f"{file}: no such file; record '{stem}' needs its .hea and its .dat") from error
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error}") from error
    wanted = int(head[3]) * len(signals) * 2
    if bytes_found != wanted:
        what = "truncated" if bytes_found < wanted else "too long"
        raise RecordError(
            f"{file}: {what}: {bytes_found} bytes found, {wanted} wanted for {head[3]} samples of {head[1]} leads"
        )
    samples = samples.reshape(-1, len(signals))
    return _Digital(
        samples,
        (samples == _MISSING_16).any(axis=0),
        [float(f["gain"]) for f in fields],
        [int(f["baseline"] or f["zero"]) for f in fields],
        [f["units"] or "mV" for f in fields],
        [int(f["checksum"]) for f in fields],
        [f["name"] for f in fields],
    )


def _read_by_wfdb(stem: Path) -> _Digital:
    import wfdb  # takes a third of a second, pandas with it, which every worker would spend on nothing

    try:
        found = wfdb.rdrecord(str(stem), physical=False, return_res=32)
        if found.d_signal is None:
            raise RecordError(f"{stem}.hea: the record holds no samples")
        missing = np.isnan(found.dac(expanded=False, return_res=32)).any(axis=0)
        zero = [0 if gain == 0 else 1 for gain in wfdb.rdheader(str(stem)).adc_gain]
    except FileNotFoundError as error:
        raise RecordError(f"{error.filename}: no such file; record '{stem}' needs its .hea and its .dat") from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, MemoryError, OSError) as error:
        raise RecordError(f"{stem}: not readable as a WFDB record, or truncated: {error}") from error
    gains = [gain * one for gain, one in zip(found.adc_gain, zero)]
    return _Digital(found.d_signal, missing, gains, found.baseline, found.units, found.checksum, found.sig_name)


def _check(digital: _Digital, stem: Path) -> None:
    if not digital.samples.size:
        raise RecordError(f"{stem}.hea: the record holds no samples")
    unknown = sorted(set(digital.units) - set(_MILLIVOLTS))
    if unknown:
        raise RecordError(f"{stem}.hea: units {unknown} found, one of {sorted(_MILLIVOLTS)} wanted")
    zero = [name for name, gain in zip(digital.names, digital.gains) if not gain > 0]
    if zero:
        raise RecordError(f"{stem}.hea: leads {zero} have a gain of 0 or less, steps a unit above 0 wanted")
    if digital.missing.any():
        bad = [digital.names[i] for i in np.flatnonzero(digital.missing)]
        raise RecordError(f"{stem}.dat: missing samples (NaN) in leads {bad}")
    sums = digital.samples.sum(axis=0, dtype=np.int64)
    pairs = zip(digital.names, sums.tolist(), digital.checksums)
    wrong = [name for name, found, told in pairs if told is not None and (found - told) % 65536]
    if wrong:
        raise RecordError(f"{stem}.dat: the samples of leads {wrong} do not add up to the header's checksum")


def _millivolts(digital: _Digital) -> np.ndarray:
    """The signal as float32 [L, N] in mV, contiguous."""
    scale = np.array([_MILLIVOLTS[unit] for unit in digital.units]) / np.array(digital.gains)
    return np.ascontiguousarray(((digital.samples - np.array(digital.baselines)) * scale).T, np.float32)
