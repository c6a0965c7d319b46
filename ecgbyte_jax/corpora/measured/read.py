"""The recordings of another corpus, to be asked about what is measured in them, and the questions as examples."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ecgbyte_jax.corpora.example import Example, Rejected, Stratum
from ecgbyte_jax.corpora.measured.questions import Segment
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.errors import ExampleError

_FASTER = 1.1  # times the other heart rate: which of two is faster is then beyond doubt
_COMPARISON = {"question_type": "comparison_irrelevant-query", "attribute_type": "faster"}
_WHICH = "Which of these two ECGs has the faster heart rate, the first or the second?"


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A recording that is to be measured: preparation makes examples of it, of the given types (all if empty)."""

    id: str
    patient: str
    split: str
    record: SignalSource
    question_types: tuple[str, ...] = ()
    strata: tuple[Stratum, ...] = ()


class Measured(NamedTuple):
    """A recording with the questions about its segments, or why it cannot be measured."""

    recording: Unmeasured
    segments: list[Segment] | str


def read_recordings(
    items: "Iterable[Example | Rejected | Unmeasured]", question_types: tuple[str, ...]
) -> Iterator[Unmeasured | Rejected]:
    """Yields each recording of another corpus once, in the order of first use, and what that corpus rejects."""
    seen: set[SignalSource] = set()
    for item in items:
        if not isinstance(item, Example):
            yield item
            continue
        for place, record in enumerate(item.records):
            if record not in seen:
                seen.add(record)
                strata = item.strata[place : place + 1]
                yield Unmeasured(record.name, item.owner(record), item.split, record, question_types, strata)


def make_examples(measured: Iterable[Measured]) -> Iterator[Example | Rejected]:
    """Yields the questions about each recording, and then which of it and the one before it in its split is faster."""
    waiting: dict[str, Measured] = {}
    for recording, segments in measured:
        if isinstance(segments, str):
            yield Rejected(recording.id, str(recording.record), segments)
            continue
        for number, segment in enumerate(segments):
            yield from _of_segment(recording, number, segment)
        before = waiting.pop(recording.split, None)
        if before is None or before.recording.patient == recording.patient:
            waiting[recording.split] = Measured(recording, segments)
        else:
            yield from _compare(before, Measured(recording, segments))


def _of_segment(about: Unmeasured, number: int, segment: Segment) -> Iterator[Example | Rejected]:
    for asked in segment.asked:
        if about.question_types and asked.question_type not in about.question_types:
            continue
        meta = {"question_type": asked.question_type, "attribute_type": asked.attribute}
        meta |= {"unit": asked.unit} if asked.unit else {}
        records, strata = (asked.spoilt or about.record,), about.strata
        id = f"{about.id}/{number}/{asked.name}"
        try:
            texts = asked.question, asked.answer
            yield Example(id, about.patient, about.split, records, *texts, meta, strata=strata, segment=number)
        except ExampleError as error:
            yield Rejected(id, str(about.record), str(error))


def _compare(first: Measured, second: Measured) -> Iterator[Example]:
    """Which of two patients' first segments has the faster rate, unless they are nearly the same."""
    one, other = first.recording, second.recording
    if one.question_types and _COMPARISON["question_type"] not in one.question_types:
        return
    rates = [measured.segments[0].rate for measured in (first, second) if not isinstance(measured.segments, str)]
    if len(rates) == 2 and rates[0] and rates[1] and not 1 / _FASTER <= rates[0] / rates[1] <= _FASTER:
        answer = "the first" if rates[0] > rates[1] else "the second"
        meta = {**_COMPARISON, "patients": [one.patient, other.patient]}
        records = (one.record, other.record)
        strata = one.strata + other.strata if one.strata and other.strata else ()
        id = f"{other.id}/0/faster"
        yield Example(id, one.patient, one.split, records, _WHICH, answer, meta, strata=strata, segment=0)
