"""Labels, age and sex of recordings as questions about them, by templates in ECG-QA's wording."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ecgbyte_jax.corpora.example import Example, Stratum
from ecgbyte_jax.corpora.source import SignalSource

NOTHING = "none"  # ECG-QA's answer where nothing that a question asks for is there
_OLDEST = 120  # years


def _meta(question_type: str, attribute_type: str) -> dict[str, object]:
    return {"question_type": question_type, "attribute_type": attribute_type}


# One of each for all examples.
_QUERY_FINDINGS, _CHOOSE_FINDINGS = _meta("single-query", "finding"), _meta("single-choose", "finding")
_VERIFY_FINDING, _AGE, _SEX = _meta("single-verify", "finding"), _meta("single-query", "age"), _meta("single-choose", "sex")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A recording and what its data set says of it: labels by name, age in years (-1: unknown), sex ("": unknown).

    unnamed: labels whose name is not known, so that a code is it; fold: as in `Stratum`.
    """

    id: str
    patient: str
    split: str
    record: SignalSource
    labels: tuple[str, ...]
    age: int = -1
    sex: str = ""
    unnamed: tuple[str, ...] = ()
    fold: int = 0

    @property
    def stratum(self) -> Stratum:
        """What cross-validation goes by."""
        return Stratum(self.labels, self.fold)


def ask(recordings: Sequence[Labelled], question_types: tuple[str, ...], choices: tuple[str, ...] = ()) -> Iterator[Example]:
    """Yields the questions of the given types (all if empty) about every recording, in order.

    Which labels it has, of `choices` if these are all that its data set tells; whether it has each of its labels, and some that
    it does not have; the patient's age and sex. A label that is not there is drawn in proportion to how often it is elsewhere,
    and in all as many are asked about as there are labels: about every label nearly as many answers are yes as are no.
    """
    counts = Counter(label for recording in recordings for label in recording.labels)
    shows = {label: f"Does this ECG show {label}?" for label in sorted(counts)}
    listed = f"Which of these does this ECG show: {', '.join(choices[:-1])} or {choices[-1]}?" if choices else ""
    mean = counts.total() / max(len(recordings), 1)
    for recording in recordings:
        records, strata = (recording.record,), (recording.stratum,)
        for name, question, answer, meta in _questions(recording, listed, shows, _absent(recording, counts, mean)):
            if not question_types or meta["question_type"] in question_types:
                id = f"{recording.id}/{name}"
                yield Example(id, recording.patient, recording.split, records, question, answer, meta, strata=strata)


def _questions(
    recording: Labelled, listed: str, shows: dict[str, str], absent: list[str]
) -> Iterator[tuple[str, str, str, dict[str, object]]]:
    """(name in the id, question, answer, meta)."""
    meta = _CHOOSE_FINDINGS if listed else _QUERY_FINDINGS
    meta = meta | {"unnamed": list(recording.unnamed)} if recording.unnamed else meta
    yield "findings", listed or "Which findings does this ECG show?", ", ".join(recording.labels) or NOTHING, meta
    for labels, answer in ((recording.labels, "yes"), (absent, "no")):
        for label in labels:
            yield label, shows[label], answer, _VERIFY_FINDING
    if 0 <= recording.age <= _OLDEST:
        yield "age", "How old is the patient of this ECG, in years?", str(recording.age), _AGE
    if recording.sex:
        yield "sex", "Is the patient of this ECG male or female?", recording.sex, _SEX


def _absent(recording: Labelled, counts: Counter[str], mean: float) -> list[str]:
    """Labels that it does not have, `mean` in the mean; the same wherever the recording is in the set."""
    rng = random.Random(recording.id)
    others = sorted(counts.keys() - set(recording.labels))
    drawn: list[str] = []
    for _ in range(min(len(others), int(mean + rng.random()))):
        (label,) = rng.choices(others, [counts[other] for other in others])
        drawn.append(label)
        others.remove(label)
    return drawn
