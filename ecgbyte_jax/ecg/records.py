"""Reading WFDB records: the only module that knows the files of signals.

Axes: L leads, N samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ecgbyte_jax.ecg.headers import Header, Lead, read_header
from ecgbyte_jax.errors import RecordError

if TYPE_CHECKING:
    import wfdb

# The order of the leads everywhere after `signal.clean`.
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_CANONICAL = {name.upper(): name for name in LEADS}
_MILLIVOLTS = {"mV": 1.0, "uV": 1e-3, "µV": 1e-3, "μV": 1e-3, "V": 1e3}  # both signs of micro
_LEAST_GAIN, _MOST_GAIN = 1e-6, 1e12  # steps per unit
# WFDB's formats and the value that marks a missing sample, the lowest of each; format 8 (differences) has none.
_BITS = {"16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12, "310": 10, "311": 10}
_BITS |= {"508": 8, "516": 16, "524": 24}
_MISSING = {form: -(1 << bits - 1) for form, bits in _BITS.items()}


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
    Raises RecordError, naming the file, if a file is missing, truncated or malformed, the samples do not match the header's
    checksum, the unit is not a voltage, a gain is 0 or missing, or a sample is missing (NaN).
    """
    stem = Path(path)
    if stem.suffix in (".hea", ".dat"):
        stem = stem.with_suffix("")
    header = read_header(stem)
    if header.segments:
        return _join(stem, header)
    return _read_single(stem, header)


def _read_single(stem: Path, header: Header) -> Record:
    if not header.leads:
        raise RecordError(f"{stem}.hea: the record holds no samples")
    unknown = sorted({lead.format for lead in header.leads} - {*_MISSING, "8"})
    if unknown:
        raise RecordError(f"{stem}.hea: formats {unknown} found, some of {['8', *_MISSING]} expected")
    samples = _read_plain(stem, header) if _is_plain(header) else _read_by_wfdb(stem, header)
    _check(stem, header, samples)
    rows = [_millivolts(lead, steps)[lead.skew :] for lead, steps in zip(header.leads, samples)]
    shortest = min(map(len, rows))  # a lead stored later by its skew ends earlier
    if not shortest:
        raise RecordError(f"{stem}.hea: the record holds no samples beyond the skew of its leads")
    names = tuple(_CANONICAL.get(lead.name.upper(), lead.name) for lead in header.leads)
    return Record(np.stack([row[:shortest] for row in rows]), header.rate, names)


def _join(stem: Path, header: Header) -> Record:
    """Concatenates a record's segments; the first may be a layout of 0 samples, which only names leads."""
    parts = []
    for name, frames in header.segments:
        if name == "~":
            raise RecordError(f"{stem}.hea: missing samples (NaN): a gap of {frames} samples between its segments")
        if frames:
            parts.append(_segment(stem.with_name(name), header, frames))
    if not parts:
        raise RecordError(f"{stem}.hea: the record holds no samples")
    leads = parts[0].leads
    if any(sorted(part.leads) != sorted(leads) for part in parts):
        raise RecordError(
            f"{stem}.hea: missing samples (NaN): its segments have different leads, {[part.leads for part in parts]}"
        )
    signal = np.concatenate([part.signal[[part.leads.index(lead) for lead in leads]] for part in parts], axis=1)
    if header.frames and signal.shape[1] != header.frames:
        raise RecordError(f"{stem}.hea: segments of {signal.shape[1]} samples in total found, {header.frames} expected")
    return Record(signal, header.rate, leads)


def _segment(stem: Path, parent: Header, frames: int) -> Record:
    header = read_header(stem)
    if header.segments:
        raise RecordError(f"{stem}.hea: segments found in a segment of a record, leads expected")
    record = _read_single(stem, header)
    if record.signal.shape[1] != frames or record.sample_rate != parent.rate:
        raise RecordError(
            f"{stem}.hea: {record.signal.shape[1]} samples at {record.sample_rate:g} Hz found, {frames} at {parent.rate:g} Hz "
            "expected by the record it is a segment of"
        )
    return record


def _is_plain(header: Header) -> bool:
    """Whether the record is one file of little-endian 16-bit samples (WFDB's format 16), as nearly all ECGs are.

    NumPy reads these ten times faster than wfdb.
    """
    forms = {(lead.file, lead.offset, lead.format, lead.per_frame, lead.skew) for lead in header.leads}
    return len(forms) == 1 and forms.pop()[2:] == ("16", 1, 0)


def _read_plain(stem: Path, header: Header) -> np.ndarray:
    """int16 [L, N] in steps."""
    file, leads, offset = stem.with_name(header.leads[0].file), len(header.leads), header.leads[0].offset
    try:
        content = np.fromfile(file, np.uint8, offset=offset)
    except FileNotFoundError as error:
        raise RecordError(f"{file}: no such file; record '{stem}' needs its .hea and its .dat") from error
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error}") from error
    size, frames = offset + content.size, header.frames or content.size // (2 * leads)
    expected = offset + 2 * leads * frames
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise RecordError(f"{file}: {what}: {size} bytes found, {expected} expected for {frames} samples of {leads} leads")
    return content.view("<i2").reshape(-1, leads).T


def _read_by_wfdb(stem: Path, header: Header) -> list[np.ndarray]:
    """int64 [N * per_frame] of each lead, in steps, as stored: skew is not removed."""
    import wfdb  # with pandas a third of a second, which most workers can save

    if header.frames == 0:
        raise RecordError(f"{stem}.hea: 0 samples found, their number expected for formats other than 16")
    single = all(lead.per_frame == 1 for lead in header.leads)  # wfdb reads format 61 only like this
    try:
        record = wfdb.rdrecord(str(stem), physical=False, smooth_frames=single, ignore_skew=True)
    except FileNotFoundError as error:
        raise RecordError(f"{error.filename}: no such file; record '{stem}' needs its .hea and its .dat") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise RecordError(f"{stem}: not readable as a WFDB record, or truncated: {error}") from error
    _compare(stem, header, record)
    return list(record.d_signal.T) if single else record.e_d_signal


def _compare(stem: Path, header: Header, record: "wfdb.Record") -> None:
    """Raises RecordError if wfdb, whose parser is lenient, interpreted the header differently."""
    fields = zip(record.file_name, record.fmt, record.byte_offset, record.samps_per_frame, record.init_value)
    read = [(file, form, offset or 0, per_frame or 1, first or 0) for file, form, offset, per_frame, first in fields]
    declared = [(lead.file, lead.format, lead.offset, lead.per_frame, lead.first) for lead in header.leads]
    if len({lead[:3] for lead in declared}) > len({lead[0] for lead in declared}):
        raise RecordError(f"{stem}.hea: a file in two formats or from two offsets found, one of each expected")
    if header.frames not in (None, record.sig_len) or read != declared:
        other = [lead for lead in read if lead not in declared][:1]
        raise RecordError(f"{stem}.hea: wfdb reads {record.sig_len} samples {other}, {header.frames} {declared[:1]} expected")


def _check(stem: Path, header: Header, samples: Sequence[np.ndarray] | np.ndarray) -> None:
    if not all(steps.size for steps in samples):
        raise RecordError(f"{stem}.hea: the record holds no samples")
    unknown = sorted({lead.units for lead in header.leads} - set(_MILLIVOLTS))
    if unknown:
        raise RecordError(f"{stem}.hea: units {unknown} found, one of {sorted(_MILLIVOLTS)} expected")
    gains = [lead.gain for lead in header.leads if not _LEAST_GAIN <= lead.gain <= _MOST_GAIN]
    if gains:
        wrong = [lead.name for lead in header.leads if lead.gain in gains]
        raise RecordError(
            f"{stem}.hea: leads {wrong} have a gain of {gains[0]:g} steps per unit (0: not calibrated), {_LEAST_GAIN:g} to "
            f"{_MOST_GAIN:g} expected"
        )
    pairs = list(zip(header.leads, samples))
    bad = [lead.name for lead, steps in pairs if lead.format in _MISSING and (steps == _MISSING[lead.format]).any()]
    if bad:
        raise RecordError(f"{stem}.dat: missing samples (NaN) in leads {bad}")
    # If the header omits the number of samples, a checksum of 0 means that there is none.
    sums = [
        (lead.name, lead.checksum, int(steps.sum(dtype=np.int64)))
        for lead, steps in pairs
        if lead.checksum is not None and (lead.checksum or header.frames)
    ]
    wrong = [name for name, checksum, total in sums if (total - checksum) % 65536]
    if wrong:
        raise RecordError(f"{stem}.dat: the samples of leads {wrong} do not match the header's checksum")


def _millivolts(lead: Lead, samples: np.ndarray) -> np.ndarray:
    """Converts [N * per_frame] steps to float32 [N] in mV; the samples of a frame are averaged, as wfdb does."""
    steps = samples.reshape(-1, lead.per_frame).mean(axis=1) if lead.per_frame > 1 else samples
    scale = _MILLIVOLTS[lead.units] / lead.gain
    return (np.subtract(steps, lead.baseline, dtype=np.float64) * scale).astype(np.float32)
