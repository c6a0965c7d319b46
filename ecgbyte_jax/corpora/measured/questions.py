"""The questions about a segment of a recording, with answers that were measured in it.

Only what is readable in the segment is asked: its own beats are measured, and amplitudes and faults only where cleaning keeps
them. Axes: L leads (12), N samples, S segments, T samples of a segment.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ecgbyte_jax.corpora.measured.spoilt import FAULTS, Spoilt
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.ecg.measure.measure import Amplitudes, Found, Measures, amplitudes
from ecgbyte_jax.ecg.measure.waves import Waves
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.ecg.signal import segment
from ecgbyte_jax.errors import RecordError

VERSION = 2  # of questions and answers, to be raised with them
_REGULAR, _IRREGULAR = 0.05, 0.12  # variation of the RR intervals below and above which the answer is beyond doubt
_LARGER = 1.1  # times the second largest R wave that the largest is at least
_LOW = {"limb": 0.5, "chest": 1.0}  # mV: QRS of low voltage in all limb or in all chest leads is smaller
_DOUBT = 0.1  # of these, on both sides, within which nothing is asked
_SAME_ST = 0.03  # mV that cleaning may change an ST level
_QUIET, _STEADY = 0.025, 0.2  # mV of noise and of drift in every lead of a recording without faults, at most
_STILL = 0.1  # of a segment, for which a lead without a fault has one value at most
_KEPT = 0.5  # of a fault, that cleaning leaves at least
_FAULT_LIST = f"{', '.join(FAULTS)} or none"


@dataclass(frozen=True)
class Asked:
    """A question about a segment; unit: of an answer that is a number; spoilt: the copy of the recording that it is about."""

    name: str
    question_type: str
    attribute: str
    question: str
    answer: str
    unit: str = ""
    spoilt: Spoilt | None = None


@dataclass(frozen=True)
class Segment:
    """The questions about a segment, its heart rate for comparisons, and why other questions are not asked, by attribute."""

    asked: tuple[Asked, ...]
    rate: float | None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Part:
    """A segment: its number, from `start` to `stop` s, what was measured in it, and the recording as the model sees it.

    seen: float64 [L, N] in mV at seen_rate Hz, from the recording's start.
    """

    number: int
    start: float
    stop: float
    measures: Measures
    waves: Waves | None
    seen: np.ndarray
    seen_rate: float

    def cut(self, signal: np.ndarray) -> np.ndarray:
        """The segment of a signal [L, N] at seen_rate Hz."""
        return signal[:, round(self.start * self.seen_rate) : round(self.stop * self.seen_rate)]


def ask_segments(
    source: SignalSource, record: Record, clean: Callable[[Record], tuple[np.ndarray, float]], length: int, most: int, seed: int
) -> list[Segment]:
    """The questions about each segment of a recording; raises RecordError where it is unusable, too short, or has no beats.

    clean: what the model sees of a record, float64 [L, N] in mV, and its rate in Hz; length: of a segment in such samples;
    most: segments, 0 for all.
    """
    seen, seen_rate = clean(record)
    count = len(segment(seen, length)[: most or None])
    found, rng, segments = Found.of(record), random.Random(f"{seed} {source.name}"), []
    spoilt = rng.randrange(count)
    for number in range(count):
        start, stop = number * length / seen_rate, (number + 1) * length / seen_rate
        measures, waves = found.measure(start, stop)
        part, missing = _Part(number, start, stop, measures, waves, seen, seen_rate), dict(measures.missing)
        asked = [*_numbers(measures), *_heights(part, found, rng, missing)]
        if number == spoilt:
            asked += _faults(part, source, record, clean, seed, rng, missing)
        segments.append(Segment(tuple(asked), measures.rate, missing))
    return segments


def _numbers(measures: Measures) -> Iterator[Asked]:
    def number(name: str, attribute: str, asked: str, value: float | None, unit: str) -> Iterator[Asked]:
        if value is not None:
            answer = _with_unit(round(value), unit)
            yield Asked(name, "single-query", attribute, f"What is {asked} of this ECG?", answer, unit)

    rate, variation, qt = measures.rate, measures.variation, measures.qt
    corrected = qt * (rate / 60) ** 0.5 if qt is not None and rate is not None else None
    yield from number("heart_rate", "heart rate", "the heart rate", rate, "beats per minute")
    yield from number("pr", "PR interval", "the PR interval", measures.pr, "ms")
    yield from number("qrs", "QRS duration", "the QRS duration", measures.qrs, "ms")
    yield from number("qt", "QT interval", "the QT interval", qt, "ms")
    yield from number("qtc", "QTc interval", "the QT interval corrected by Bazett's formula", corrected, "ms")
    axis = None if measures.axis is None else 180 - (180 - round(measures.axis)) % 360  # not -180, which is 180
    yield from number("axis", "QRS axis", "the electrical axis of the QRS complex", axis, "degrees")
    if (beats := measures.beats) is not None:
        question = "How many R peaks does this ECG show?"
        yield Asked("r_peaks", "single-query", "R peak count", question, _with_unit(beats, "R peaks"), "R peaks")
    if variation is not None and not _REGULAR <= variation <= _IRREGULAR:
        answer = "regular" if variation < _REGULAR else "irregular"
        yield Asked("rhythm", "single-choose", "RR intervals", "Are the RR intervals of this ECG regular or irregular?", answer)


def _with_unit(number: int, unit: str) -> str:
    return f"{number} {unit.removesuffix('s') if abs(number) == 1 and unit != 'ms' else unit}"


def _heights(part: _Part, found: Found, rng: random.Random, missing: dict[str, str]) -> Iterator[Asked]:
    """Questions about amplitudes, whose answers are the same before and after the cleaning."""
    lead = rng.randrange(len(LEADS))
    own = part.measures.amplitudes
    if own is None or part.waves is None:
        return
    try:
        seen = amplitudes(part.seen, found.beats.at_rate(part.seen_rate), part.waves, part.start, part.stop)
    except RecordError as error:
        missing["amplitudes"] = str(error)
        return
    largest = {_largest(own), _largest(seen)}
    if len(largest) == 1 and largest != {None}:
        answer = str(largest.pop())
        yield Asked("largest_r", "single-query", "largest R wave", "Which lead of this ECG has the largest R wave?", answer)
    else:
        missing["largest R wave"] = "two are nearly as large, or cleaning changes which is"
    low = {_has_low_voltage(own), _has_low_voltage(seen)}
    if len(low) == 1 and low != {None}:
        question = "Does this ECG show low QRS voltage, below 0.5 mV in all limb leads or below 1 mV in all chest leads?"
        yield Asked("low_voltage", "single-verify", "low voltage", question, "yes" if low.pop() else "no")
    else:
        missing["low voltage"] = "close to the bound, or cleaning changes it"
    if abs(own.st[lead] - seen.st[lead]) <= _SAME_ST:
        question = f"What is the ST level in lead {LEADS[lead]} of this ECG, 60 ms after the QRS complex?"
        yield Asked("st", "single-query", "ST level", question, f"{round(own.st[lead], 2) + 0.0:.2f} mV", "mV")
    else:
        missing["ST level"] = "cleaning changes it"


def _largest(heights: Amplitudes) -> str | None:
    """The lead with the largest R wave; None where another is nearly as large."""
    second, first = np.argsort(heights.r)[-2:]
    return LEADS[first] if heights.r[first] > _LARGER * heights.r[second] else None


def _has_low_voltage(heights: Amplitudes) -> bool | None:
    """Whether all limb or all chest leads are below their bound; None where that is in doubt."""
    shares = (max(heights.qrs[:6]) / _LOW["limb"], max(heights.qrs[6:]) / _LOW["chest"])
    share = min(shares)
    return None if abs(share - 1) < _DOUBT else share < 1


def _faults(
    part: _Part,
    source: SignalSource,
    record: Record,
    clean: Callable[[Record], tuple[np.ndarray, float]],
    seed: int,
    rng: random.Random,
    missing: dict[str, str],
) -> Iterator[Asked]:
    """Questions about a fault that a copy of a recording has in one lead, or that the recording itself has none."""
    measures, fault, lead = part.measures, rng.choice((*FAULTS, "none")), rng.choice(LEADS)
    if not measures.noise or max(measures.noise) > _QUIET or max(measures.drift) > _STEADY:
        missing["faults"] = "the recording has noise or wander of its own"
        return
    own = record.signal[[record.leads.index(name) for name in LEADS], _samples(part, record)]
    if max(map(_longest_still, own)) > _STILL * own.shape[1]:
        missing["faults"] = "a lead of the recording is flat for a while"
        return
    which = f"Which fault does one lead of this ECG have: {_FAULT_LIST}?"
    if fault == "none":
        yield Asked("fault", "single-choose", "fault", which, fault)
        return
    copy = Spoilt(source, fault, lead, part.start, part.stop, seed)
    try:
        seen, _ = clean(copy.spoil(record))
    except RecordError as error:
        missing["faults"] = f"cleaning refuses it: {error}"
        return
    row = LEADS.index(lead)
    before, after = part.cut(part.seen)[row], part.cut(seen)[row]
    given = copy.spoil(record).signal - record.signal
    rms = float(np.sqrt((given[record.leads.index(lead), _samples(part, record)] ** 2).mean()))
    if float(np.sqrt(((after - before) ** 2).mean())) < _KEPT * rms:
        missing["faults"] = f"cleaning removes {fault}"
        return
    yield Asked("fault", "single-choose", "fault", which, fault, spoilt=copy)
    yield Asked("faulty_lead", "single-query", "faulty lead", "Which lead of this ECG has a fault?", lead, spoilt=copy)


def _longest_still(lead: np.ndarray) -> int:
    """The most samples of a lead [N] in a row that have one value."""
    return int(np.diff(np.flatnonzero(np.diff(lead, prepend=np.nan, append=np.nan) != 0)).max())


def _samples(part: _Part, record: Record) -> slice:
    return slice(round(part.start * record.sample_rate), round(part.stop * record.sample_rate))
