"""Strict reading of WFDB headers (.hea), field by field, as header(5) of the WFDB manual defines them."""

import re
from dataclasses import dataclass
from pathlib import Path

from ecgbyte_jax.errors import RecordError

LOWEST_RATE, HIGHEST_RATE = 1.0, 1e5  # Hz
_NUMBER = r"[+-]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})(?:[eE][+-]?\d{1,3})?"
_INTEGER = r"[+-]?\d{1,12}"
_RECORD = re.compile(
    r"\S+?(?:/(?P<segments>\d{1,6}))? (?P<leads>\d{1,6})(?: (?P<rate>[^\s/(]+)\S*(?: (?P<frames>\d{1,12})(?: .*)?)?)?", re.ASCII
)
_SEGMENT = re.compile(r"(?P<name>\S+) (?P<frames>\d{1,12})", re.ASCII)
# Each optional field requires all those before it.
_LEAD = re.compile(
    r"(?P<file>\S+) (?P<format>\d{1,4})(?:x(?P<per_frame>[1-9]\d{0,5}))?(?::(?P<skew>\d{1,6}))?(?:\+(?P<offset>\d{1,12}))?"
    rf"(?: (?P<gain>{_NUMBER})(?:\((?P<baseline>{_INTEGER})\))?(?:/(?P<units>\S+))?"
    rf"(?: {_INTEGER}(?: (?P<zero>{_INTEGER})(?: (?P<first>{_INTEGER})(?: (?P<checksum>{_INTEGER})(?: {_INTEGER}"
    r"(?: (?P<name>.+))?)?)?)?)?)?)?",
    re.ASCII,
)


@dataclass(frozen=True)
class Lead:
    """A lead's line: where its samples are and how to read them.

    skew in frames, offset in bytes, gain in ADC steps per unit (0 if absent: not calibrated), baseline the step of 0 units,
    first the initial value; checksum None if absent.
    """

    file: str
    format: str
    per_frame: int  # samples
    skew: int
    offset: int
    gain: float
    baseline: int
    units: str
    first: int
    checksum: int | None
    name: str


@dataclass(frozen=True)
class Header:
    """A header: rate in frames per second (Hz), frames 0 or None if absent, leads, or segments as (name, frames)."""

    rate: float
    frames: int | None
    leads: tuple[Lead, ...]
    segments: tuple[tuple[str, int], ...] = ()


def read_header(stem: Path) -> Header:
    """Reads the header of the record `stem` (without .hea); raises RecordError, naming file and line, if it is malformed."""
    first, *rest = _lines(stem)
    fields = _RECORD.fullmatch(first)
    if not fields:
        raise RecordError(f"{stem}.hea: {first[:60]!r} found, not a WFDB header: 'NAME LEADS RATE SAMPLES' expected")
    rate, frames = _rate(stem, fields["rate"]), int(fields["frames"]) if fields["frames"] else None
    count = int(fields["segments"] or fields["leads"])
    if count != len(rest):
        what = "segments" if fields["segments"] else "leads"
        raise RecordError(f"{stem}.hea: {len(rest)} lines of {what} found, {count} expected by its first line")
    if fields["segments"]:
        return Header(rate, frames, (), tuple(_segment(stem, line) for line in rest))
    return Header(rate, frames, tuple(_lead(stem, line, number) for number, line in enumerate(rest, start=1)))


def _lines(stem: Path) -> list[str]:
    """The lines with single spaces, without comments and empty lines; at least one."""
    try:
        text = stem.with_name(stem.name + ".hea").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise RecordError(f"{error.filename}: no such file; record '{stem}' needs its .hea and its .dat") from error
    except (OSError, ValueError) as error:
        raise RecordError(f"{stem}.hea: cannot be read: {error}") from error
    lines = [" ".join(line.split()) for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise RecordError(f"{stem}.hea: empty; a WFDB header expected")
    return lines


def _rate(stem: Path, text: str | None) -> float:
    """The rate in Hz; WFDB's default of 250 if absent."""
    if text is None:
        return 250.0
    rate = float(text) if re.fullmatch(_NUMBER, text, re.ASCII) else 0.0
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise RecordError(f"{stem}.hea: sample rate {text[:30]!r} found, {LOWEST_RATE:g} to {HIGHEST_RATE:g} Hz expected")
    return rate


def _segment(stem: Path, line: str) -> tuple[str, int]:
    fields = _SEGMENT.fullmatch(line)
    if not fields:
        raise RecordError(f"{stem}.hea: {line[:60]!r} found, a segment's 'NAME SAMPLES' expected")
    return _beside(stem, fields["name"]), int(fields["frames"])


def _lead(stem: Path, line: str, number: int) -> Lead:
    fields = _LEAD.fullmatch(line)
    if not fields:
        raise RecordError(
            f"{stem}.hea: {line[:60]!r} found, a lead's 'FILE FORMAT GAIN(BASELINE)/UNITS RESOLUTION ZERO FIRST CHECKSUM BLOCK "
            "NAME' expected"
        )
    return Lead(
        file=_beside(stem, fields["file"]),
        format=fields["format"],
        per_frame=int(fields["per_frame"] or 1),
        skew=int(fields["skew"] or 0),
        offset=int(fields["offset"] or 0),
        gain=float(fields["gain"] or 0),
        baseline=int(fields["baseline"] or fields["zero"] or 0),
        units=fields["units"] or "mV",
        first=int(fields["first"] or 0),
        checksum=None if fields["checksum"] is None else int(fields["checksum"]),
        name=fields["name"] or f"signal {number}",
    )


def _beside(stem: Path, name: str) -> str:
    if Path(name).name != name or name == ".." or not name.isprintable():
        raise RecordError(f"{stem}.hea: signal files {[name]} found, files beside the header expected")
    return name
