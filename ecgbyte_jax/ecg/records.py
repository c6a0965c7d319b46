"""Reading WFDB records: the one place that knows about files of signals.

Axes: L leads, N samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.ecg.headers import Header, Lead, read_header
from ecgbyte_jax.errors import RecordError

# The order of the leads everywhere behind `signal.clean`.
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_CANONICAL = {name.upper(): name for name in LEADS}
_MILLIVOLTS = {"mV": 1.0, "uV": 1e-3, "µV": 1e-3, "μV": 1e-3, "V": 1e3}  # both signs of micro
_LEAST_GAIN, _MOST_GAIN = 1e-6, 1e12  # steps a unit
# WFDB's formats and the value that marks a missing sample in each, the lowest; format 8, of differences, has none.
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
    Raises RecordError, naming the file, where a file is missing, truncated or malformed, the samples do not add up to the
    header's checksum, the unit is not one of volts, a gain is 0 or missing, or a sample is missing (NaN).
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
    rows = [_millivolts(lead, found)[lead.skew :] for lead, found in zip(header.leads, samples)]
    shortest = min(map(len, rows))  # a lead that was stored later by its skew ends earlier
    if not shortest:
        raise RecordError(f"{stem}.hea: the record holds no samples beyond the skew of its leads")
    names = tuple(_CANONICAL.get(lead.name.upper(), lead.name) for lead in header.leads)
    return Record(np.stack([row[:shortest] for row in rows]), header.rate, names)


def _join(stem: Path, header: Header) -> Record:
    """The segments of a record one after the other; the first may be a layout of 0 samples, which names leads alone."""
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
        raise RecordError(f"{stem}.hea: missing samples (NaN): its segments hold other leads, {[part.leads for part in parts]}")
    signal = np.concatenate([part.signal[[part.leads.index(lead) for lead in leads]] for part in parts], axis=1)
    if header.frames and signal.shape[1] != header.frames:
        raise RecordError(f"{stem}.hea: segments of {signal.shape[1]} samples in all found, {header.frames} told")
    return Record(signal, header.rate, leads)


def _segment(stem: Path, whole: Header, frames: int) -> Record:
    header = read_header(stem)
    if header.segments:
        raise RecordError(f"{stem}.hea: segments found in a segment of a record, leads expected")
    record = _read_single(stem, header)
    if record.signal.shape[1] != frames or record.sample_rate != whole.rate:
        raise RecordError(
            f"{stem}.hea: {record.signal.shape[1]} samples at {record.sample_rate:g} Hz found, {frames} at {whole.rate:g} Hz "
            "told by the record that it is a segment of"
        )
    return record


def _is_plain(header: Header) -> bool:
    """Whether it has the form of nearly all ECGs, one file of little-endian 16-bit samples (WFDB's format 16).

    That is read in one go, ten times faster than by wfdb.
    """
    forms = {(lead.file, lead.offset, lead.format, lead.per_frame, lead.skew) for lead in header.leads}
    return len(forms) == 1 and forms.pop()[2:] == ("16", 1, 0)


def _read_plain(stem: Path, header: Header) -> np.ndarray:
    """int16 [L, N] in steps."""
    file, leads, offset = stem.with_name(header.leads[0].file), len(header.leads), header.leads[0].offset
    try:
        found = np.fromfile(file, np.uint8, offset=offset)
    except FileNotFoundError as error:
        raise RecordError(f"{file}: no such file; record '{stem}' needs its .hea and its .dat") from error
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error}") from error
    size, frames = offset + found.size, header.frames or found.size // (2 * leads)
    wanted = offset + 2 * leads * frames
    if size != wanted:
        what = "truncated" if size < wanted else "too long"
        raise RecordError(f"{file}: {what}: {size} bytes found, {wanted} wanted for {frames} samples of {leads} leads")
    return found.view("<i2").reshape(-1, leads).T


def _read_by_wfdb(stem: Path, header: Header) -> list[np.ndarray]:
    """int64 [N * per_frame] of each lead, in steps, as they stand in the file: skew is not taken out."""
    import wfdb  # takes a third of a second, pandas with it, which every worker would spend on nothing

    if header.frames == 0:
        raise RecordError(f"{stem}.hea: 0 samples told, their number expected for other formats than 16")
    single = all(lead.per_frame == 1 for lead in header.leads)  # wfdb reads format 61 in this form alone
    try:
        found = wfdb.rdrecord(str(stem), physical=False, smooth_frames=single, ignore_skew=True)
    except FileNotFoundError as error:
        raise RecordError(f"{error.filename}: no such file; record '{stem}' needs its .hea and its .dat") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise RecordError(f"{stem}: not readable as a WFDB record, or truncated: {error}") from error
    _compare(stem, header, found)
    return list(found.d_signal.T) if single else found.e_d_signal


def _compare(stem: Path, header: Header, found) -> None:
    """Raises RecordError where wfdb, which reads headers leniently, took samples from elsewhere than the header says."""
    fields = zip(found.file_name, found.fmt, found.byte_offset, found.samps_per_frame, found.init_value)
    read = [(file, form, offset or 0, per_frame or 1, first or 0) for file, form, offset, per_frame, first in fields]
    told = [(lead.file, lead.format, lead.offset, lead.per_frame, lead.first) for lead in header.leads]
    if len({form[:3] for form in told}) > len({form[0] for form in told}):
        raise RecordError(f"{stem}.hea: a file in two formats or from two offsets found, one of each expected")
    if header.frames not in (None, found.sig_len) or read != told:
        other = [one for one in read if one not in told][:1]
        raise RecordError(f"{stem}.hea: wfdb reads {found.sig_len} samples {other} where {header.frames} {told[:1]} are told")


def _check(stem: Path, header: Header, samples: Sequence[np.ndarray]) -> None:
    if not all(found.size for found in samples):
        raise RecordError(f"{stem}.hea: the record holds no samples")
    unknown = sorted({lead.units for lead in header.leads} - set(_MILLIVOLTS))
    if unknown:
        raise RecordError(f"{stem}.hea: units {unknown} found, one of {sorted(_MILLIVOLTS)} wanted")
    gains = [lead.gain for lead in header.leads if not _LEAST_GAIN <= lead.gain <= _MOST_GAIN]
    if gains:
        wrong = [lead.name for lead in header.leads if lead.gain in gains]
        raise RecordError(
            f"{stem}.hea: leads {wrong} have a gain of {gains[0]:g} steps a unit (0: not calibrated), {_LEAST_GAIN:g} to "
            f"{_MOST_GAIN:g} expected"
        )
    pairs = list(zip(header.leads, samples))
    bad = [lead.name for lead, found in pairs if lead.format in _MISSING and (found == _MISSING[lead.format]).any()]
    if bad:
        raise RecordError(f"{stem}.dat: missing samples (NaN) in leads {bad}")
    # Where the number of samples is not told, a checksum of 0 is none.
    told = [(lead, found) for lead, found in pairs if lead.checksum or (lead.checksum == 0 and header.frames)]
    wrong = [lead.name for lead, found in told if (int(found.sum(dtype=np.int64)) - lead.checksum) % 65536]
    if wrong:
        raise RecordError(f"{stem}.dat: the samples of leads {wrong} do not add up to the header's checksum")


def _millivolts(lead: Lead, samples: np.ndarray) -> np.ndarray:
    """float32 [N] in mV of [N * per_frame] steps; the samples of a frame are averaged, as by wfdb."""
    steps = samples.reshape(-1, lead.per_frame).mean(axis=1) if lead.per_frame > 1 else samples
    scale = _MILLIVOLTS[lead.units] / lead.gain
    return (np.subtract(steps, lead.baseline, dtype=np.float64) * scale).astype(np.float32)
