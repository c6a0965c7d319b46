"""Tables of samples: CSV and NPY files in the dialects that people write. What they leave out, their user says.

Axes: L leads, N samples.
"""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError

import numpy as np

from ecgbyte_jax.ecg.formats.leads import UNITS, name_leads
from ecgbyte_jax.ecg.headers import HIGHEST_RATE, LOWEST_RATE
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.errors import RecordError

# Words of a time column's name; all others are not time. "" is a column without a name, as pandas writes one.
_TIME_WORDS = {"time", "times", "timestamp", "timestamps", "t", "zeit", "temps"}
_SECONDS = dict.fromkeys(("s", "sec", "secs", "second", "seconds", "timesec", "timeseconds"), 1.0)
_SECONDS |= dict.fromkeys(("ms", "msec", "millisecond", "milliseconds", "timems", "timemsec", "timemilliseconds"), 1e-3)
_SECONDS |= dict.fromkeys(("us", "µs", "μs", "usec", "microsecond", "microseconds", "timeus"), 1e-6)
_UNNAMED = (1.0, 1e-3, 1e-6)  # s; a time column without a unit
# Rates of ECGs in Hz. The range is narrower than a factor of 1000, so only one of s, ms and us is possible for a time step.
_LEAST_RATE, _MOST_RATE = 50.0, 5000.0
_NUMBER = re.compile(r"[+-]?(?:(?:\d+[.,]?\d*|[.,]\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)", re.ASCII | re.IGNORECASE)
_MAYBE_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}", re.ASCII)

# (path, leads) -> (values [L, N], column names)
Reader = Callable[[Path, tuple[str, ...]], tuple[np.ndarray, tuple[str, ...]]]


def read_table(path: Path, sample_rate: float, leads: tuple[str, ...], units: str, read: Reader, notes: list[str]) -> Record:
    """Reads a file by `read` as `own.read_own` describes, and adds to `notes`. Raises RecordError."""
    if sample_rate and not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        raise RecordError(
            f"{path}: sample rate {sample_rate:g} Hz found, {LOWEST_RATE:g} to {HIGHEST_RATE:g} expected; give the rate of the "
            "recording, --sample_rate=500"
        )
    if units not in ("", *UNITS):
        raise RecordError(f"{path}: units {units!r} found, one of {tuple(UNITS)} expected")
    try:
        values, columns = read(path, leads)
    except FileNotFoundError as error:
        raise RecordError(f"{path}: no such file") from error
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    names, found = name_leads(path, columns)
    others = [i for i, name in enumerate(names) if name not in LEADS]
    rate, source = float(sample_rate), f"--sample_rate {sample_rate:g} Hz"
    if not rate:
        rate, source = _rate_of_times(path, [(names[i], values[i]) for i in others])
        notes.append(f"sample rate: {source}")
    times = [i for i in others if _is_time(path, names[i], values[i], rate, source)]
    kept = [i for i in range(len(names)) if i not in times]
    scale = _scales(path, [(columns[i], found[i] if names[i] in LEADS else None) for i in kept], units, notes)
    with np.errstate(over="ignore"):  # to infinity, which is refused
        signal = np.ascontiguousarray(values[kept] * scale, np.float32)
    return Record(signal, rate, tuple(names[i] for i in kept))


def _scales(path: Path, columns: list[tuple[str, str | None]], units: str, notes: list[str]) -> np.ndarray:
    """Factors [L, 1] to mV of columns, as (name, its unit or "", None if it is no lead)."""
    stated = [(column, unit) for column, unit in columns if unit]
    other = [(column, unit) for column, unit in stated if units and unit != units]
    if other:
        raise RecordError(f"{path}: column {other[0][0]!r} is in {other[0][1]}, --units={units}; give --units={other[0][1]}")
    bare = [column for column, unit in columns if unit == ""]
    if stated and bare and not units:
        raise RecordError(f"{path}: column {stated[0][0]!r} has a unit, {bare[0]!r} has none; give all or none, and --units")
    if stated:
        notes.append(f"units: {' and '.join(sorted({unit for _, unit in stated if unit}))}, as the columns' names say")
    return np.array([[UNITS[units or unit or "mV"]] for _, unit in columns])


def read_npy(path: Path, leads: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(float64 [L, N], `leads`) of a file [L, N] or [N, L]; raises RecordError."""
    try:
        with path.open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)  # np.load would accept ZIP files too
    except (EOFError, MemoryError, OverflowError, TokenError, ValueError) as error:
        raise RecordError(f"{path}: not readable as an NPY file of numbers: {error}") from error
    return by_lead(path, values, leads), leads


def by_lead(path: Path, values: np.ndarray, leads: tuple[str, ...]) -> np.ndarray:
    """float64 [L, N] of an array [L, N] or [N, L]; raises RecordError if it is not one of `leads`."""
    if not leads:
        raise RecordError(f"{path}: the leads' names are missing; give them in the file's order, --leads={','.join(LEADS)}")
    if values.dtype.kind not in "iuf" or values.ndim != 2 or len(leads) not in values.shape:
        raise RecordError(
            f"{path}: an array {values.shape} of {values.dtype} found for {len(leads)} leads, [leads, samples] of real numbers "
            "expected"
        )
    values = values.astype(np.float64)
    return values if values.shape[0] == len(leads) else values.T


def read_csv(path: Path, leads: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(float64 [L, N], names) of a file with a column for each lead, named by its header or by `leads`; raises RecordError."""
    delimiter, lines = _split_lines(path)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    except csv.Error as error:
        raise RecordError(f"{path}: not readable as a CSV file: {error}") from error
    rows = _without_empty_ends(rows)
    first = rows[0] if rows else []
    numbered = len(first) > 1 and first in (_count(first, 0), _count(first, 1))  # as pandas names an array's columns
    header = first if first and not numbered and not _NUMBER.fullmatch(first[0]) else []
    rows = rows[bool(header) or numbered :]
    if not rows:
        raise RecordError(f"{path}: no row of samples found")
    names = header or list(leads)
    if not names:
        raise RecordError(f"{path}: neither a header nor --leads names the columns; give --leads={','.join(LEADS)}")
    if header and leads:
        raise RecordError(f"{path}: its header names the leads {header}; omit --leads")
    wrong = next((i for i, row in enumerate(rows) if len(row) != len(names) or not all(map(_NUMBER.fullmatch, row))), None)
    if wrong is not None:
        line, row = wrong + 1 + (bool(header) or numbered), rows[wrong]
        commas = delimiter == "," and len(row) > len(names) and not any("." in cell for cell in row)
        hint = "; separate columns with decimal commas by semicolons" if commas else ""
        raise RecordError(f"{path}, row {line}: {delimiter.join(row)[:60]!r} found, {len(names)} numbers expected{hint}")
    return np.array(_with_points(path, rows, delimiter), np.float64).T, tuple(names)


def _without_empty_ends(rows: list[list[str]]) -> list[list[str]]:
    """Drops the empty rows and columns that Excel writes below and beside a table; the first row may lack them."""
    last = next((place for place in range(len(rows), 0, -1) if any(rows[place - 1])), 0)
    rows = rows[:last]
    while rows and rows[0] and all(len(row) > 1 and not row[-1] for row in rows[1:]):
        if rows[0][-1] and len(rows[0]) >= len(rows[-1]):
            break  # the last column has a name, and its numbers are missing; or a header is all there is
        rows = [row if row[-1] else row[:-1] for row in rows]
    return rows


def _split_lines(path: Path) -> tuple[str, list[str]]:
    """(the delimiter, the lines that are not empty) of a CSV file; a tab or a semicolon counts if it is in every line."""
    content = path.read_bytes()
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")  # Excel's "Unicode text"
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        if wide or b"\0" in content:
            raise RecordError(f"{path}: not readable as a CSV file: {error}") from error
        text = content.decode("latin-1")  # Excel's, where only a header's 'µV' is not ASCII
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip(" ")]
    if lines and re.fullmatch(r"sep=[,;\t]", lines[0], re.IGNORECASE):  # for Excel
        return lines[0][-1], lines[1:]
    delimiters = [delimiter for delimiter in "\t;" if lines and all(delimiter in line for line in lines)]
    if len(delimiters) > 1:
        raise RecordError(f"{path}: tabs and semicolons found in every line; separate the columns by one of them")
    return (delimiters or [","])[0], lines


def _with_points(path: Path, rows: list[list[str]], delimiter: str) -> list[list[str]]:
    """Numbers with decimal points; raises RecordError if a comma or point could be a thousands separator."""
    points = [cell for row in rows for cell in row if "." in cell]
    commas = [cell for row in rows for cell in row if "," in cell]
    if commas and delimiter == ",":
        raise RecordError(
            f"{path}: {commas[0]!r} found between commas; separate columns with decimal commas by semicolons, or use points"
        )
    if commas and points:
        raise RecordError(f"{path}: {points[0]!r} and {commas[0]!r} found; use one decimal mark and no thousands separators")
    if delimiter != "," and (points or commas) and all(map(_MAYBE_THOUSANDS.fullmatch, points or commas)):
        raise RecordError(
            f"{path}: {(points or commas)[0]!r} may have a decimal mark or a thousands separator; write numbers without the "
            "latter, with four decimals"
        )
    return [[cell.replace(",", ".") for cell in row] for row in rows] if commas else rows


def _count(cells: list[str], start: int) -> list[str]:
    return [str(i) for i in range(start, start + len(cells))]


def _is_time(path: Path, name: str, values: np.ndarray, rate: float, source: str) -> bool:
    """Whether a column is time, by its name or because it rises evenly; raises RecordError if it contradicts the rate in Hz."""
    units = _time_units(name)
    if not units and not _rises_evenly(values):
        return False
    units = units or (*_UNNAMED, 1 / rate)  # s, ms, us, or samples
    step = _mean_step(values)
    if not any(abs(step * seconds * rate - 1) <= 0.02 for seconds in units):
        rates = [1 / (step * seconds) for seconds in units] if step > 0 else []
        likely = [found for found in rates if _LEAST_RATE <= found <= _MOST_RATE] or rates
        implied = f"{likely[0]:g} Hz" if likely else "no rate"
        raise RecordError(f"{path}: column {name!r} implies {implied}, {source}; one of them is wrong")
    return True


def _rate_of_times(path: Path, columns: list[tuple[str, np.ndarray]]) -> tuple[float, str]:
    """(rate in Hz, the column that gives it in words) of the first of (name, values) whose time step can only mean one rate."""
    reason = "the sample rate is missing"
    for name, values in columns:
        units, step = _time_units(name), _mean_step(values)
        if not units and name:
            continue
        if not _rises_evenly(values):
            reason = f"column {name!r} does not rise evenly" if units else reason
            continue
        # 0, 1, 2 may count samples; without a name, so may 0, 2, 4.
        if len(units) != 1 and (abs(step - 1) < 1e-3 or (not units and step > 0.5)):
            reason = f"column {name!r} rises by {step:g}, which may be samples or a time without its unit, 'time (ms)'"
            continue
        lowest, highest = (LOWEST_RATE, HIGHEST_RATE) if len(units) == 1 else (_LEAST_RATE, _MOST_RATE)
        rates = [1 / (step * seconds) for seconds in units or _UNNAMED]
        likely = [rate for rate in rates if lowest <= rate <= highest]
        if likely:
            whole = float(round(likely[0]))  # times may be rounded
            rate = whole if abs(likely[0] / whole - 1) <= 1e-3 else likely[0]
            return rate, f"{rate:g} Hz by column {name!r}"
        reason = f"column {name!r} rises by {step:g}, which is no time step of an ECG"
    raise RecordError(f"{path}: {reason}; give the rate of the recording, --sample_rate=500")


def _time_units(name: str) -> tuple[float, ...]:
    """The units in s that a time column may have by its name: one, or s, ms and us; none if it is not named as time."""
    words = re.findall(r"[^\W\d_]+", name.lower())
    units = tuple(_SECONDS[word] for word in words if word in _SECONDS)
    if len(units) > 1 or not words or not all(word in _SECONDS or word in _TIME_WORDS for word in words):
        return ()
    return units or _UNNAMED


def _mean_step(values: np.ndarray) -> float:
    """The mean, as times may be rounded."""
    return (float(values[-1]) - float(values[0])) / max(len(values) - 1, 1) if len(values) else 0.0


def _rises_evenly(values: np.ndarray) -> bool:
    span = float(values[-1]) - float(values[0]) if len(values) else 0.0
    if not 0 < span < np.inf:
        return False
    line = np.linspace(0.0, span, len(values))
    return bool(np.abs(values - values[0] - line).max() <= 0.01 * span)
