"""Users' own recordings: CSV and NPY files in addition to WFDB, and a plausibility check of units, leads and rate.

Axes: L leads, N samples.
"""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import find_peaks

from ecgbyte_jax.ecg.headers import HIGHEST_RATE, LOWEST_RATE
from ecgbyte_jax.ecg.records import LEADS, Record, read_record
from ecgbyte_jax.errors import RecordError

UNITS = {"mV": 1.0, "uV": 1e-3, "V": 1e3}
# Names of time columns, without brackets, spaces and the like, and their unit in s.
_SECONDS = dict.fromkeys(("time", "t", "s", "sec", "secs", "second", "seconds", "times", "timesec", "timeseconds"), 1.0)
_MILLISECONDS = dict.fromkeys(("ms", "msec", "milliseconds", "timems", "timemsec", "timemilliseconds"), 1e-3)
_TIME = _SECONDS | _MILLISECONDS
_CANONICAL = {name.upper(): name for name in LEADS}
# Generous bounds in mV on the span (1st to 99th percentile) of an ECG's median lead.
_LEAST_SPAN, _MOST_SPAN = 0.02, 20.0
# A rate wrong by a factor of 5 makes most hearts too slow with flat slopes, or too fast. 130 recordings of PTB-XL have 44 to
# 173 beats per minute and a median slope frequency of 8 to 115 Hz.
_SLOW, _FLAT, _FAST = 30.0, 12.0, 300.0  # beats/min, Hz, beats/min


# (path, leads, sample rate) -> (values [L, N], column names)
_Reader = Callable[[Path, tuple[str, ...], float], tuple[np.ndarray, tuple[str, ...]]]


def read_own(path: str | Path, sample_rate: float = 0.0, leads: Sequence[str] = (), units: str = "mV") -> Record:
    """Reads a WFDB record, or a .csv or .npy file of samples in `units` (mV, uV, V) at `sample_rate` Hz.

    A CSV file has one column per lead, named by its header, or by `leads` if the header is absent or only counts columns. An
    NPY file is [leads, samples] or [samples, leads], named by `leads`. Time columns must match the rate and are dropped. A WFDB
    record takes rate, leads and units from its header.

    Raises RecordError, with what to do, if the rate, a lead's name or one of the twelve leads is missing, a value is not a
    number, the values appear to be in other units, or the heart rate is impossible at this sample rate.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if not path.name:
        raise RecordError(f"{path}: a folder found, a WFDB record (its .hea and .dat), a .csv or a .npy file expected")
    if kind in (".csv", ".npy"):
        record = _read_table(path, sample_rate, tuple(leads), units, _read_csv if kind == ".csv" else _read_npy)
    elif path.with_suffix(".hea").is_file() or Path(f"{path}.hea").is_file():
        if sample_rate or leads:
            raise RecordError(f"{path}: its header gives rate and leads; omit --sample_rate and --leads")
        record = read_record(path)
    else:
        raise RecordError(f"{path}: no such recording; a WFDB record (its .hea and .dat), a .csv or a .npy file expected")
    check_plausible(record, path)
    return record


def check_plausible(record: Record, path: Path) -> None:
    """Raises RecordError, with what to do, if leads are missing or units or rate are implausible."""
    missing = [lead for lead in LEADS if lead not in record.leads]
    if missing:
        raise RecordError(f"{path}: leads {missing} are missing, found {list(record.leads)}; name the twelve standard leads")
    if not record.signal.size:
        raise RecordError(f"{path}: no samples found")
    signal = record.signal.astype(np.float64)
    if not np.isfinite(signal).all():
        raise RecordError(f"{path}: values that are not finite (NaN) found; remove or fill them first")
    span = float(np.median(np.subtract(*np.percentile(signal, [99, 1], axis=1))))
    if not _LEAST_SPAN <= span <= _MOST_SPAN:
        looks = "microvolts" if span > _MOST_SPAN else "volts"
        unit = "uV" if span > _MOST_SPAN else "V"
        raise RecordError(
            f"{path}: the leads span {span:.3g} mV, which looks like {looks}: give --units={unit} with a .csv or .npy file, "
            "or correct the gain in the WFDB header"
        )
    beats = _beats_a_minute(signal, record.sample_rate)
    if beats > _FAST or (beats < _SLOW and _slope_frequency(signal, record.sample_rate) < _FLAT):
        raise RecordError(
            f"{path}: at {record.sample_rate:g} Hz the heart would beat {beats:.0f} times a minute, so the rate is wrong; give "
            "the rate of the recording"
        )


def _read_table(path: Path, sample_rate: float, leads: tuple[str, ...], units: str, read: _Reader) -> Record:
    if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        raise RecordError(
            f"{path}: sample rate {sample_rate:g} Hz found, {LOWEST_RATE:g} to {HIGHEST_RATE:g} expected; give the rate of the "
            "recording, --sample_rate=500"
        )
    if units not in UNITS:
        raise RecordError(f"{path}: units {units!r} found, one of {tuple(UNITS)} expected")
    try:
        values, names = read(path, leads, sample_rate)
    except FileNotFoundError as error:
        raise RecordError(f"{path}: no such file") from error
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    names = tuple(_CANONICAL.get(name.strip().upper(), name.strip()) for name in names)
    times = [i for i, name in enumerate(names) if name not in LEADS and _is_time(path, name, values[i], sample_rate)]
    kept = [i for i in range(len(names)) if i not in times]
    return Record(
        np.ascontiguousarray(values[kept] * UNITS[units], np.float32), float(sample_rate), tuple(names[i] for i in kept)
    )


def _read_npy(path: Path, leads: tuple[str, ...], sample_rate: float) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        with path.open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)  # np.load would accept ZIP files too
    except (EOFError, MemoryError, OverflowError, TokenError, ValueError) as error:
        raise RecordError(f"{path}: not readable as an NPY file of numbers: {error}") from error
    if not leads:
        raise RecordError(f"{path}: the leads' names are missing; give them in the file's order, --leads={','.join(LEADS)}")
    if values.dtype.kind not in "iuf" or values.ndim != 2 or len(leads) not in values.shape:
        raise RecordError(
            f"{path}: an array {values.shape} of {values.dtype} found for {len(leads)} leads, [leads, samples] of real numbers "
            "expected"
        )
    values = values.astype(np.float64)
    return (values if values.shape[0] == len(leads) else values.T), leads


def _read_csv(path: Path, leads: tuple[str, ...], sample_rate: float) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not readable as a CSV file: {error}") from error
    first = [cell.strip() for cell in rows[0]] if rows else []
    numbered = len(first) > 1 and first in (_count(first, 0), _count(first, 1))  # as pandas names an array's columns
    header = first if first and not numbered and not _is_number(first[0]) else []
    rows = rows[bool(header) or numbered :]
    if not rows:
        raise RecordError(f"{path}: no row of samples found")
    names = header or list(leads)
    if not names:
        raise RecordError(f"{path}: neither a header nor --leads names the columns; give --leads={','.join(LEADS)}")
    if header and leads:
        raise RecordError(f"{path}: its header names the leads {header}; omit --leads")
    wrong = next((i for i, row in enumerate(rows) if len(row) != len(names) or not all(map(_is_number, row))), None)
    if wrong is not None:
        line = wrong + 1 + (bool(header) or numbered)
        raise RecordError(f"{path}, row {line}: {','.join(rows[wrong])[:60]!r} found, {len(names)} numbers expected")
    return np.array(rows, np.float64).T, tuple(names)


def _count(cells: list[str], start: int) -> list[str]:
    return [str(i) for i in range(start, start + len(cells))]


def _is_time(path: Path, name: str, values: np.ndarray, sample_rate: float) -> bool:
    """Whether a column is time, by its name or because it rises evenly; raises RecordError if it contradicts the rate."""
    unit = _TIME.get(re.sub(r"[\s_()\[\].:/-]", "", name.lower()))
    step = (float(values[-1]) - float(values[0])) / max(len(values) - 1, 1)  # the mean, as times may be rounded
    if unit is None and not _rises_evenly(values):
        return False
    units = (unit,) if unit else (1.0, 1e-3, 1e-6, 1 / sample_rate)  # unnamed: s, ms, us, or samples
    if not any(abs(step * seconds * sample_rate - 1) <= 0.02 for seconds in units):
        implied = f"{1 / (step * units[0]):g} Hz" if step > 0 else "no rate"
        raise RecordError(f"{path}: column {name!r} implies {implied}, --sample_rate {sample_rate:g} Hz; one of them is wrong")
    return True


def _rises_evenly(values: np.ndarray) -> bool:
    span = float(values[-1]) - float(values[0])
    line = np.linspace(0.0, span, len(values))
    return 0 < span < np.inf and bool(np.abs(values - values[0] - line).max() <= 0.01 * span)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _beats_a_minute(signal: np.ndarray, rate: float) -> float:
    """Heart rate of signal [L, N] by the median distance between bursts of steep slopes; NaN if fewer than three."""
    span = min(max(1, round(0.02 * rate)), signal.shape[1] - 1)
    if span < 1:
        return np.nan
    slopes = np.abs(signal[:, span:] - signal[:, :-span])
    steep = slopes / (np.percentile(slopes, 99, axis=1, keepdims=True) + 1e-9)
    energy = uniform_filter1d(steep.mean(axis=0), max(1, round(0.08 * rate)))
    energy = energy - np.median(energy)
    peaks, _ = find_peaks(energy, distance=max(1, round(0.1 * rate)), prominence=0.4 * np.percentile(energy, 98))
    return 60 * rate / float(np.median(np.diff(peaks))) if len(peaks) > 2 else np.nan


def _slope_frequency(signal: np.ndarray, rate: float) -> float:
    """The median frequency in Hz of the power of the slopes of signal [L, N]."""
    slopes = np.diff(signal, axis=1)
    slopes = slopes / (slopes.std(axis=1, keepdims=True) + 1e-9)
    power = np.cumsum((np.abs(np.fft.rfft(slopes, axis=1)) ** 2).sum(axis=0))
    return float(np.fft.rfftfreq(slopes.shape[1], 1 / rate)[np.searchsorted(power, power[-1] / 2)])
