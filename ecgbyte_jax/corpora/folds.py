"""Cross-validation: which patients are in which fold, and the splits that follow from it.

Every corpus is divided alike, whatever its own splits: by patient, so that each is tested once, with the share of each label
nearly the same in all folds.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ecgbyte_jax.corpora.example import Example, Rejected
from ecgbyte_jax.corpora.measured.read import Unmeasured
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.errors import CorpusError

_OWN = 10  # folds that PTB-XL has
_MOST = 16  # answers of a question that are taken for labels where a set has none
_Labels = tuple[str, ...]


@dataclass(frozen=True)
class Folds:
    """The fold of each patient, from 1, and the number of recordings in each fold."""

    of: dict[str, int]
    recordings: tuple[int, ...]

    def split(self, patient: str, test: int) -> str:
        """Fold `test` is the test split, the next one (after the last the first) the validation split."""
        fold = self.of[patient]
        return "test" if fold == test else "valid" if fold == test % len(self.recordings) + 1 else "train"


def make_folds(items: Iterable[Example | Unmeasured], count: int) -> Folds:
    """Deals the patients of the items into `count` folds; the order of the items makes no difference.

    PTB-XL's own ten folds, by patient and stratified, are kept, for five in pairs: 1 and 2, 3 and 4, ... Else labels are dealt
    one after the other, the rarest first, as in iterative stratification (Sechidis et al. 2011), but by patient: those with
    most recordings of the label first, each to the fold with the fewest recordings of it, or of those the fewest of all.
    Patients without a label come last. Recordings of sets without labels are labelled by the answers to questions that have at
    most 16. Raises CorpusError where a fold remains empty.
    """
    owned, labels, folds = _gather([item if isinstance(item, Example) else _example(item) for item in items], count)
    counts: dict[str, Counter[str]] = {}  # patient -> recordings by label
    recordings: Counter[str] = Counter()
    for record, patient in owned:
        recordings[patient] += 1
        counts.setdefault(patient, Counter()).update(labels[record])
    held: list[Counter[str]] = [Counter() for _ in range(count)]
    sizes = [0] * count

    def put(patient: str, fold: int) -> None:
        folds[patient] = fold + 1
        held[fold].update(counts[patient])
        sizes[fold] += recordings[patient]

    for patient in sorted(folds):
        put(patient, folds[patient] - 1)
    members: dict[str, list[str]] = {}
    for patient in counts.keys() - folds.keys():
        for label in counts[patient]:
            members.setdefault(label, []).append(patient)
    totals = Counter[str]()
    for of_patient in counts.values():
        totals.update(of_patient)
    for label in sorted(members, key=lambda label: (totals[label], label)):
        for patient in sorted(members[label], key=lambda patient: (-counts[patient][label], _draw(patient))):
            if patient not in folds:
                put(patient, min(range(count), key=lambda fold: (held[fold][label], sizes[fold])))
    for patient in sorted(counts.keys() - folds.keys(), key=lambda patient: (-recordings[patient], _draw(patient))):
        put(patient, sizes.index(min(sizes)))
    if not all(sizes):
        raise CorpusError(
            f"data.folds: {count} found, but fold {sizes.index(0) + 1} of {len(folds)} patients is empty; fewer folds expected"
        )
    return Folds(folds, tuple(sizes))


def in_folds(
    items: Iterable[Example | Rejected | Unmeasured], folds: Folds, test: int
) -> Iterator[Example | Rejected | Unmeasured]:
    """The items with the splits of fold `test`; a comparison of patients in different splits is rejected."""
    for item in items:
        if isinstance(item, Rejected):
            yield item
            continue
        if isinstance(item, Unmeasured):
            yield replace(item, split=folds.split(item.patient, test))
            continue
        splits = sorted({folds.split(patient, test) for patient in item.patients})
        if len(splits) > 1:
            yield Rejected(item.id, str(item.records[0]), f"its patients are in different splits of the folds: {splits}")
        else:
            yield item if item.split == splits[0] else replace(item, split=splits[0])


def _example(item: Unmeasured) -> Example:
    return Example(item.id, item.patient, item.split, (item.record,), item.id, item.id, strata=item.strata)


def _gather(
    examples: list[Example], count: int
) -> tuple[set[tuple[SignalSource, str]], dict[SignalSource, _Labels], dict[str, int]]:
    """Recordings with their patients; the labels of each recording; the folds of patients that have one of their own."""
    closed = _closed(example for example in examples if not example.strata)
    owned: set[tuple[SignalSource, str]] = set()
    labels: dict[SignalSource, _Labels] = {}
    answers: dict[SignalSource, set[str]] = {}
    own: dict[str, int] = {}
    for example in examples:
        for place, record in enumerate(example.records):
            patient = example.owner(record)
            owned.add((record, patient))
            if not example.strata:
                labels.setdefault(record, ())
                if example.question in closed:
                    answers.setdefault(record, set()).add(f"{example.question} {example.answer}")
                continue
            strata, fold = example.strata[place]
            labels[record] = max(strata, labels.get(record, ()))  # the same for any order, where two sets tell of it
            if fold and _OWN % count == 0:
                fold = (fold - 1) * count // _OWN + 1
                own[patient] = min(own.get(patient, fold), fold)
    return owned, {record: known or tuple(sorted(answers.get(record, ()))) for record, known in labels.items()}, own


def _closed(examples: Iterable[Example]) -> set[str]:
    """The questions that have 2 to 16 different answers."""
    answers: dict[str, set[str]] = {}
    for example in examples:
        known = answers.setdefault(example.question, set())
        if len(known) <= _MOST:
            known.add(example.answer)
    return {question for question, known in answers.items() if 2 <= len(known) <= _MOST}


def _draw(patient: str) -> bytes:
    """A place among patients that are otherwise equal, as their numbers may follow time and place."""
    return hashlib.sha256(patient.encode()).digest()
