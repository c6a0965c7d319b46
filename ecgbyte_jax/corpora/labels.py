"""Labels, age and sex of recordings as questions about them, by templates in ECG-QA's wording."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ecgbyte_jax.corpora.example import Example
from ecgbyte_jax.corpora.source import SignalSource

NOTHING = "none"  # ECG-QA's answer where nothing that a question asks for is there
_OLDEST = 120  # years


@dataclass(frozen=True, slots=True)
class Labelled:
    """A recording and what its data set says of it: labels by name, age in years (-1: unknown), sex ("": unknown).

    unnamed: labels whose name is not known, so that a code is it.
    """

    id: str
    patient: str
    split: str
    record: SignalSource
    labels: tuple[str, ...]
    age: int = -1
    sex: str = ""
    unnamed: tuple[str, ...] = ()


def ask(recordings: Sequence[Labelled], question_types: tuple[str, ...], choices: tuple[str, ...] = ()) -> Iterator[Example]:
    """Yields the questions of the given types (all if empty) about every recording, in order.

    Which labels it has, of `choices` if these are all that its data set tells; whether it has each of its labels, and as many,
    at least one, that it does not have; the patient's age and sex. A label that is not there is drawn in proportion to how
    often it is elsewhere, so that for about every label both answers are as frequent.
    """
    counts = Counter(label for recording in recordings for label in recording.labels)
    listed = f"{', '.join(choices[:-1])} or {choices[-1]}" if choices else ""
    for recording in recordings:
        for kind, attribute, name, question, answer in _questions(recording, counts, listed):
            if not question_types or kind in question_types:
                meta: dict[str, object] = {"question_type": kind, "attribute_type": attribute}
                meta |= {"unnamed": list(recording.unnamed)} if recording.unnamed and name == "findings" else {}
                yield Example(
                    f"{recording.id}/{name}", recording.patient, recording.split, (recording.record,), question, answer, meta
                )


def _questions(recording: Labelled, counts: Counter[str], listed: str) -> Iterator[tuple[str, str, str, str, str]]:
    """(question type, attribute type, name in the id, question, answer)."""
    findings = ", ".join(recording.labels) or NOTHING
    if listed:
        yield "single-choose", "finding", "findings", f"Which of these does this ECG show: {listed}?", findings
    else:
        yield "single-query", "finding", "findings", "Which findings does this ECG show?", findings
    for label in recording.labels:
        yield "single-verify", "finding", label, f"Does this ECG show {label}?", "yes"
    for label in _absent(recording, counts):
        yield "single-verify", "finding", label, f"Does this ECG show {label}?", "no"
    if 0 <= recording.age <= _OLDEST:
        yield "single-query", "age", "age", "How old is the patient of this ECG, in years?", str(recording.age)
    if recording.sex:
        yield "single-choose", "sex", "sex", "Is the patient of this ECG male or female?", recording.sex


def _absent(recording: Labelled, counts: Counter[str]) -> list[str]:
    """Labels of others, as many as it has, at least one; the same wherever the recording is in the set."""
    rng = random.Random(recording.id)
    others = sorted(counts.keys() - set(recording.labels))
    drawn: list[str] = []
    while others and len(drawn) < max(1, len(recording.labels)):
        (label,) = rng.choices(others, [counts[other] for other in others])
        drawn.append(label)
        others.remove(label)
    return drawn
