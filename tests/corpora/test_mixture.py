"""Several corpora as one: names, recordings that are the same, splits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgbyte_jax.corpora.example import PART, Example, Rejected
from ecgbyte_jax.corpora.measured.spoilt import Spoilt
from ecgbyte_jax.corpora.mixture import Part, mix
from ecgbyte_jax.corpora.read import SEVERAL
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.errors import CorpusError
from ecgbyte_jax.prepare.corpus import Corpus, Folders
from ecgbyte_jax.settings import SPLITS


def example(id: str, split: str, patients: str, *names: str, root="root") -> Example:
    who = patients.split(", ")
    meta = {"patients": who} if len(who) > 1 else {}
    return Example(id, who[0], split, tuple(WfdbRecord(Path(root), name) for name in names), "why?", "so", meta)


def part(name: str, recordings: str, *examples: Example, rejected: tuple[Rejected, ...] = ()) -> Part:
    return Part(name, recordings, examples[0].records[0].root, list(examples), list(rejected))


def record(ecg_id: int, rate: int = 500) -> str:
    return f"records{rate}/00000/{ecg_id:05}_{'hr' if rate == 500 else 'lr'}"


def test_ids_begin_with_the_part_and_patients_with_their_set():
    ptbxl = part("ptbxl", "ptbxl", example("1", "train", "7", record(1)), rejected=(Rejected("2", "file", "bad"),))
    cpsc = part("cpsc", "cpsc", example("1", "test", "7", "A0007", root="other"))
    mixed = mix([cpsc, ptbxl])
    assert [(e.id, e.patient, e.split, e.meta[PART]) for e in mixed.examples] == [
        ("cpsc:1", "cpsc 7", "test", "cpsc"),
        ("ptbxl:1", "ptbxl 7", "train", "ptbxl"),
    ]
    assert [rejected.id for rejected in mixed.rejected] == ["ptbxl:2"] and not mixed.moved and not mixed.shared


@pytest.mark.parametrize("name", [record(1), record(1, 100)])
def test_a_recording_in_two_copies_of_a_set_is_one_and_moves_to_the_most_held_out_split(name):
    asked = example("q", "train", "7", record(1), root="one"), example("r", "train", "8", record(2), root="one")
    mixed = mix([part("ecg_qa", "ptbxl", *asked), part("ptbxl", "ptbxl", example("1", "valid", "7", name, root="two"))])
    assert [(e.id, e.split) for e in mixed.examples] == [("ecg_qa:q", "valid"), ("ecg_qa:r", "train"), ("ptbxl:1", "valid")]
    assert mixed.moved == {("ecg_qa", "train", "valid"): 1} and mixed.shared == 1
    same = mixed.examples[0].records == mixed.examples[2].records
    assert same == (name == record(1))  # the other rate is another signal


def test_sets_named_by_their_folders_are_those_of_the_other_corpora():
    def mimic(patient: str) -> str:
        return f"files/p1000/{patient}/s40000000/40000000"

    reports = part("mimic", "mimic", example("1", "train", "10000032", mimic("p10000032"), root="m"))
    linked = part(
        "ecg_instruct", SEVERAL,
        example("0/0", "test", "mimic p10000032", mimic("p10000032"), root="data/mimic"),
        example("1/0", "train", "ptbxl 7", record(1), root="data/ptbxl"),
        example("2/0", "train", "code15 7", "exams_part0.hdf5#1", root="data/code15"),
    )  # fmt: skip
    mixed = mix([linked, reports])
    assert [e.patient for e in mixed.examples] == ["mimic 10000032", "ptbxl 7", "code15 7", "mimic 10000032"]
    assert [e.split for e in mixed.examples] == ["test", "train", "train", "test"]


def test_a_table_of_one_s_own_about_the_same_files_is_about_the_same_patients(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    ptbxl = part("ptbxl", "ptbxl", *(example(str(n), "train", "7", record(n), root=tmp_path) for n in (1, 2)))
    first = part("first", "", example("a", "test", "Ann", record(1), root=tmp_path / "link"))
    second = part(
        "second", "", example("a", "train", "Ann", "x", root=tmp_path), example("b", "train", "Bob", "y", root=tmp_path)
    )
    mixed = mix([first, ptbxl, second])
    assert {(e.patient, e.split) for e in mixed.examples[:4]} == {("ptbxl 7", "test")}
    assert (mixed.examples[4].patient, mixed.examples[4].split) == ("own/first Bob", "train") and mixed.shared == 1


def test_a_copy_with_a_fault_is_of_the_recording_that_it_was_made_of():
    asked = example("q", "train", "7", record(1), root="one")
    spoilt = Spoilt(asked.records[0], "noise", "I", 0.0, 1.0, 0)
    measured = part("measured", "ptbxl", replace(asked, records=(spoilt,)))
    mixed = mix([measured, part("ptbxl", "ptbxl", example("1", "test", "9", record(1), root="two"))])
    assert {(e.patient, e.split) for e in mixed.examples} == {("ptbxl 7", "test")} and mixed.shared == 1


def test_a_comparison_of_patients_who_are_in_different_splits_now_is_rejected():
    pair, alone = example("p", "train", "7, 8", record(1), record(2)), example("q", "train", "8", record(2))
    mixed = mix([part("ecg_qa", "ptbxl", pair, alone), part("ptbxl", "ptbxl", example("1", "test", "7", record(1)))])
    assert [(e.id, e.split) for e in mixed.examples] == [("ecg_qa:q", "train"), ("ptbxl:1", "test")]
    assert "['ptbxl 7', 'ptbxl 8'] are in different splits of the mixture" in mixed.rejected[0].reason


EXAMPLES = st.lists(st.tuples(st.sampled_from(SPLITS), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=8)


@given(st.lists(EXAMPLES, min_size=1, max_size=3))
def test_no_patient_and_no_recording_is_in_two_splits_and_nothing_is_lost(corpora):
    """Recording n is of patient n // 2."""
    parts = [
        part(f"p{i}", "ptbxl", *(
            example(f"{j}", split, ", ".join(dict.fromkeys((f"{a // 2}", f"{b // 2}"))), record(a), record(b), root=f"{i}")
            for j, (split, a, b) in enumerate(examples)
        ))
        for i, examples in enumerate(corpora)
    ]  # fmt: skip
    mixed = mix(parts)
    assert len(mixed.examples) + len(mixed.rejected) == sum(map(len, corpora))
    places = {(key, e.split) for e in mixed.examples for key in (*e.patients, *(r.name for r in e.records))}
    assert len(places) == len({key for key, _ in places})
    again = mix(parts)
    assert again == mixed


def test_a_corpus_of_a_mixture_must_be_usable_by_itself(tmp_path):
    many = [example(f"ptbxl:{n}", "train", f"{n}", record(n)) for n in range(1, 100)]
    corpus = Corpus(
        101, [*many, example("cpsc:1", "test", "c", "A0001")], [Rejected("cpsc:2", "A0002.hea", "no diagnosis")],
        Folders(Path(), Path(), Path()), tmp_path / "quarantine.jsonl", 0.05, shares={"cpsc": 0.5, "ptbxl": 0.5},
    )  # fmt: skip
    with pytest.raises(CorpusError, match=r"^1 of 2 examples of 'cpsc' cannot be used"):
        corpus.set_aside([])
    corpus.max_bad_fraction = 1.0
    with pytest.raises(CorpusError, match=r"^2 examples of 'cpsc' read, none of them usable for training"):
        corpus.set_aside([])


def test_recordings_are_drawn_as_often_as_training_shows_them():
    examples = [example(f"a:{n}", "train", f"{n}", record(n)) for n in (1, 2, 2, 3)] + [example("b:1", "train", "1", record(1))]
    for one in examples:
        one.meta[PART] = one.id[0]
    corpus = Corpus(5, examples, [], Folders(Path(), Path(), Path()), Path(), 0.0, shares={"a": 0.8, "b": 0.2})
    np.testing.assert_allclose(corpus.chances(corpus.records("train")), [0.8 / 4 + 0.2, 0.8 / 2, 0.8 / 4])
