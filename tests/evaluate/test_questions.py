"""Which questions are answered together, and whose ECG the other one is."""

from dataclasses import replace

import numpy as np
import pytest

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.evaluate.questions import Item, _other_patients, in_batches
from ecgbyte_jax.inputs.prompt import Text
from ecgbyte_jax.inputs.shards import Sequence


def sequence(number: int, patient: str, ecg: int, tokens: int = 20, question: int = 4) -> Sequence:
    """About an ECG whose tokens tell its number."""
    text = Text(np.zeros(question + 1, np.int32), np.arange(question + 1) == question, question)
    return Sequence(f"q{number}", patient, 0, "?", "yes", {}, (np.full(tokens, ecg),), text)


def comparison(number: int, *patients: str) -> Sequence:
    """About two ECGs, of these patients."""
    one = sequence(number, patients[0], number)
    return replace(one, meta={"patients": [*patients]} if len(patients) > 1 else {}, ecgs=one.ecgs * 2)


def items(*questions: int) -> list[Item]:
    """As many questions about each ECG."""
    whose = [ecg for ecg, count in enumerate(questions) for _ in range(count)]
    found = [sequence(i, f"p{ecg}", ecg) for i, ecg in enumerate(whose)]
    return [Item(one, found[0], i) for i, one in enumerate(found)]


def asked(batches) -> list[list[int]]:
    """The ECG of every item of each batch."""
    return [[int(item.sequence.ecgs[0][0]) for item in batch.items] for batch in batches]


def test_four_questions_about_each_ecg_stand_behind_it_together():
    batches = in_batches(items(4, 4, 4), 8, parts=1)
    assert [batch.each for batch in batches] == [4, 4]
    assert asked(batches) == [[0] * 4 + [1] * 4, [2] * 4]


def test_single_questions_share_nothing():
    batches = in_batches(items(1, 1, 1, 1, 1), 4, parts=2)
    assert [batch.each for batch in batches] == [1, 1] and asked(batches) == [[0, 1, 2, 3], [4]]


def test_an_ecg_with_more_questions_stands_there_again():
    batches = in_batches(items(7, 3, 4), 8, parts=1)  # 2 + 1 + 1 times four rows
    assert [batch.each for batch in batches] == [4, 4]
    assert asked(batches) == [[0] * 7, [1] * 3 + [2] * 4]


def test_no_more_rows_share_an_ecg_than_a_part_of_the_mesh_holds():
    assert {batch.each for batch in in_batches(items(16, 16), 8, parts=4)} == {2}


def test_batches_hold_every_item_once_and_fit():
    counts = np.random.default_rng(0).integers(1, 9, 50)
    given = items(*counts)
    batches = in_batches(given, 16, parts=2)
    assert [item for batch in batches for item in batch.items] == given
    for batch, ecgs in zip(batches, asked(batches)):
        slots = sum(-(-count // batch.each) for count in np.unique(ecgs, return_counts=True)[1])
        assert slots * batch.each <= 16


def test_another_patient_s_ecg_is_nearly_as_long():
    patients = [f"p{i % 7}" for i in range(200)]
    own = [sequence(i, patient, i, tokens=50 + i) for i, patient in enumerate(patients)]
    others = _other_patients(own, seed=0)
    assert all(one.patient != other.patient for one, other in zip(own, others))
    assert max(abs(len(one.ecgs[0]) - len(other.ecgs[0])) for one, other in zip(own, others)) < 64
    assert [o.id for o in others] == [o.id for o in _other_patients(own, seed=0)] != [o.id for o in _other_patients(own, 1)]
    assert len({other.id for other in others}) > 80


def test_many_ecgs_of_one_patient_still_find_another_one():
    own = [sequence(i, "a", i) for i in range(40)] + [sequence(40, "b", 40)] + [sequence(i, "a", i) for i in range(41, 90)]
    others = _other_patients(own, seed=0)
    assert {other.id for one, other in zip(own, others) if one.patient == "a"} == {"q40"}
    with pytest.raises(ConfigError, match="one patient alone"):
        _other_patients(own[:40], seed=0)


def test_a_comparison_is_swapped_with_a_comparison_of_none_of_its_patients():
    draw = np.random.default_rng(1)
    names = [f"p{n}" for n in range(12)]
    own = [
        sequence(i, str(draw.choice(names)), i)
        if draw.random() < 0.7
        else comparison(i, *map(str, draw.choice(names, 2, False)))
        for i in range(300)
    ]
    others = _other_patients(own, seed=0)
    assert {len(one.ecgs) for one in own} == {1, 2}
    for one, other in zip(own, others):
        assert len(one.ecgs) == len(other.ecgs)
        assert not {*one.meta.get("patients", [one.patient])} & {*other.meta.get("patients", [other.patient])}


def test_the_nearest_comparison_is_taken_where_all_near_ones_share_a_patient():
    own = [comparison(i, "a", f"b{i}") for i in range(40)] + [comparison(40, "c", "d"), comparison(41, "c", "e")]
    others = _other_patients(own, seed=0)
    assert [other.id for other in others[:40]] == ["q40"] * 32 + [other.id for other in others[32:40]]
    assert {other.id for other in others[32:40]} <= {"q40", "q41"}


def test_a_lone_comparison_is_swapped_with_one_of_the_whole_split():
    own = [sequence(0, "a", 0), sequence(1, "b", 1), comparison(2, "a", "b")]
    rest = [sequence(3, "c", 3), comparison(4, "b", "c"), comparison(5, "c", "d")]
    assert [other.id for other in _other_patients(own, 0, rest)] == ["q1", "q0", "q5"]
    with pytest.raises(ConfigError, match=r"question 'q2' shows 2 ECG.*no other .* of other patients"):
        _other_patients(own, 0, rest[:2])


def test_in_a_mixture_the_other_ecg_is_of_the_same_set_where_it_has_another_patient():
    def of(part: str, *sequences: Sequence) -> list[Sequence]:
        return [replace(one, meta={"mixture_part": part}) for one in sequences]

    own = of("ecg_qa", *(sequence(i, f"ptbxl {i % 9}", i) for i in range(60)))
    own += of("measured", *(sequence(i, f"ptbxl {i % 9}", i - 40) for i in range(60, 80)))
    own += of("cpsc", *(sequence(i, f"cpsc A{i}", i) for i in range(80, 84)), sequence(84, "own/mine x", 84))
    own = [own[i] for i in np.random.default_rng(0).permutation(len(own))]
    for one, other in zip(own, _other_patients(own, seed=0, split=tuple(own))):
        assert one.patient != other.patient and (one.source == other.source or one.source == "own/mine")
    rest = (*of("csn", sequence(90, "csn 1", 90)), *of("mine", sequence(91, "own/mine y", 91)))
    (lone,) = of("mine", sequence(92, "own/mine x", 92))
    assert [other.id for other in _other_patients([lone], 0, rest)] == ["q91"]
