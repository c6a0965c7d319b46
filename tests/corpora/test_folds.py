import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgbyte_jax.corpora.example import Example, Rejected, Stratum
from ecgbyte_jax.corpora.folds import in_folds, make_folds
from ecgbyte_jax.corpora.ptbxl import read_database, read_reports
from ecgbyte_jax.corpora.read import check_data
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.errors import CorpusError, SettingsError
from ecgbyte_jax.settings import DataSettings

ROOT = Path("data")


def example(name: str, patient: str, labels: tuple[str, ...] = (), fold: int = 0, known: bool = True, **more) -> Example:
    fields = {"question": "why?", "answer": name} | more
    strata = (Stratum(labels, fold),) if known else ()
    return Example(name, patient, "train", (WfdbRecord(ROOT, name),), **fields, strata=strata)


patients_of_one_label = st.lists(st.sampled_from(["AF", "PAC", "LBBB", ""]), min_size=12, max_size=60)


@given(patients_of_one_label, st.integers(3, 6), st.randoms(use_true_random=False))
def test_each_label_is_in_all_folds_alike_in_any_order_of_reading(labels, count, rng):
    examples = [example(f"r{n}", f"p{n}", (label,) if label else ()) for n, label in enumerate(labels)]
    folds = make_folds(examples, count)
    assert max(folds.recordings) - min(folds.recordings) <= 4 and sum(folds.recordings) == len(labels)
    for label in {*labels} - {""}:
        held = Counter(folds.of[f"p{n}"] for n, found in enumerate(labels) if found == label)
        assert max(held.values()) - min(held[fold] for fold in range(1, count + 1)) <= 1
    shuffled = rng.sample(examples, len(examples))
    assert make_folds(shuffled, count) == folds


def test_a_patient_s_recordings_are_together_and_the_rarest_label_is_dealt_first():
    """Worked by hand: two of three PAC come with the AF of a patient who has three recordings."""
    rare = [example(f"a{n}", "many", ("AF", "PAC")) for n in range(2)] + [example("a2", "many", ("AF",))]
    common = [example(f"{name}", name, ("AF",)) for name in ("x", "y", "z", "w")]
    folds = make_folds([*common, *rare, example("b", "other", ("PAC",))], 3)
    assert folds.of["many"] == 1 and folds.of["other"] == 2  # PAC: most recordings first, then the fold without any
    assert sorted(folds.of[name] for name in "xyzw") == [2, 2, 3, 3] and folds.recordings == (3, 3, 2)


@pytest.mark.parametrize("test", [1, 2, 3, 4])
def test_a_fold_is_tested_and_the_next_validated(test):
    examples = [example(f"r{n}", f"p{n % 10}") for n in range(20)]
    folds = make_folds(examples, 4)
    splits = {item.patient: item.split for item in in_folds(examples, folds, test)}
    named = {test: "test", test % 4 + 1: "valid"}
    assert splits == {name: named.get(fold, "train") for name, fold in folds.of.items()}


def test_five_and_ten_folds_are_ptb_xls_own_and_others_are_not():
    examples = [example(f"r{n}", f"p{n}", ("NORM",), n % 10 + 1) for n in range(40)]
    assert all(make_folds(examples, 10).of[f"p{n}"] == n % 10 + 1 for n in range(40))
    assert all(make_folds(examples, 5).of[f"p{n}"] == n % 10 // 2 + 1 for n in range(40))
    assert {*Counter(make_folds(examples, 4).of.values()).values()} == {10}


def test_the_real_rows_of_ptb_xl_keep_their_folds(shared):
    root = shared / "data/ptbxl"
    examples = [item for item in read_reports(root, 500, "why?") if isinstance(item, Example)]
    folds = make_folds(examples, 10)
    rows = {recording.patient: recording.stratum for _, recording in read_database(root, 500)}
    assert len(folds.of) > 300 and folds.of.items() <= {patient: stratum.fold for patient, stratum in rows.items()}.items()
    assert Counter(code for stratum in rows.values() for code in stratum.labels)["AFIB"] > 5
    splits = Counter(item.split for item in in_folds(examples, folds, 9))
    assert splits["test"] == 64 and splits["valid"] == 49


def test_where_a_set_has_no_labels_the_answers_of_closed_questions_are():
    def ask(n: int, fast: str) -> list[Example]:
        more = [example(f"{n}/report", f"p{n}", known=False, question="Report?", answer=f"text {n}")]
        asked = example(f"{n}/fast", f"p{n}", known=False, question="Fast?", answer=fast)
        return [Example(e.id, e.patient, e.split, (WfdbRecord(ROOT, f"r{n}"),), e.question, e.answer) for e in (*more, asked)]

    examples = [e for n in range(40) for e in ask(n, "yes" if n < 4 else "no")]
    folds = make_folds(examples, 4)
    assert sorted(folds.of[f"p{n}"] for n in range(4)) == [1, 2, 3, 4] and folds.recordings == (10, 10, 10, 10)


def test_a_comparison_across_splits_is_set_aside_and_one_within_training_is_kept():
    examples = [example(f"r{n}", f"p{n}", fold=n + 1) for n in range(10)]
    records = [e.records[0] for e in examples]
    pairs = [
        Example(f"{a}{b}", f"p{a}", "train", (records[a], records[b]), "?", "no", {"patients": [f"p{a}", f"p{b}"]})
        for a, b in ((0, 1), (0, 9))
    ]
    kept, rejected = [*in_folds([*examples, *pairs], make_folds([*examples, *pairs], 10), 9)][-2:]
    assert kept.split == "train" and isinstance(rejected, Rejected)
    assert rejected.reason == "its patients are in different splits of the folds: ['train', 'valid']"


def test_more_folds_than_patients_are_refused():
    with pytest.raises(CorpusError, match=r"data.folds: 5 found, but fold 3 of 2 patients is empty; fewer folds expected"):
        make_folds([example("a", "a"), example("b", "b")], 5)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"folds": 5}, "fold: 0 found, 1 to 5 expected"),
        ({"folds": 5, "fold": 6}, "fold: 6 found, 1 to 5 expected"),
        ({"fold": 1}, "fold: 1 found, 0 expected without data.folds"),
        ({"folds": 2, "fold": 1}, "folds: 2 found, 0, or 3 or more expected"),
        ({"folds": 5, "fold": 1, "published_split": True}, "folds: 5 found with published_split, one of them expected"),
        ({"folds": 5, "fold": 1, "corpus": "ecg_bench"}, "data.folds: 5 found with 'ecg_bench', whose questions are tests"),
    ],
)
def test_folds_that_cannot_be_are_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        check_data(DataSettings(**given))


@pytest.mark.slow
def test_as_many_recordings_as_code_15_has_are_dealt_in_seconds():
    rng = random.Random(0)
    labels = [
        tuple(name for name in ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF") if rng.random() < 0.02) for _ in range(345_779)
    ]
    examples = [example(f"r{n}", f"p{n * 2 // 3}", labels[n]) for n in range(len(labels))]
    start = time.monotonic()
    folds = make_folds(examples, 5)
    assert time.monotonic() - start < 60 and max(folds.recordings) - min(folds.recordings) <= 2
