from dataclasses import replace

import numpy as np
import pytest

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.inputs import controls
from ecgbyte_jax.inputs.controls import open_shown, shown_lengths, shown_places
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.inputs.prompt import render
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import SHOWN, Settings
from ecgbyte_jax.train.feed import plan_batches

SAMPLES, LONGEST = 500, 256  # of the demo


@pytest.fixture(scope="module")
def opened(prepared):
    return load_prepared(Workdir(prepared))


def sequences(opened, shown: str, seed: int = 0) -> list:
    split = open_shown(opened, "train", shown, SAMPLES, seed)
    return [split[number] for number in range(len(split))]


def test_others_ecgs_are_of_other_patients_and_the_same_for_all_questions_about_one(opened):
    owner: dict[bytes, set[str]] = {}
    for sequence in sequences(opened, "own"):
        owner.setdefault(sequence.ecgs[0].tobytes(), set()).add(sequence.patient)
    shown: dict[tuple[bytes, str], set[bytes]] = {}
    for own, other in zip(sequences(opened, "own"), sequences(opened, "shuffled")):
        assert (own.id, own.segment, own.answer, own.patient) == (other.id, other.segment, other.answer, other.patient)
        assert own.patient not in owner[other.ecgs[0].tobytes()]
        shown.setdefault((own.ecgs[0].tobytes(), own.patient), set()).add(other.ecgs[0].tobytes())
    assert {len(found) for found in shown.values()} == {1}
    assert len({min(found) for found in shown.values()}) > 0.6 * len(shown)  # nearly every one is shown once


def test_in_a_mixture_others_ecgs_are_of_the_same_set_where_it_has_another_patient(opened):
    (first, *_) = sequences(opened, "own")
    names = ["ptbxl 1", "cpsc A1", "ptbxl 2", "cpsc A2", "ptbxl 3", "own/mine x", "cpsc A3", "ptbxl 3"]
    outlines = [
        replace(first, patient=name, meta={"mixture_part": "x"}, ecgs=(np.array(place),)) for place, name in enumerate(names)
    ]
    for seed in range(5):
        for own, (donor,) in zip(names, shown_places(outlines, "train", "shuffled", seed)):
            assert names[donor] != own and (names[donor].split()[0] == own.split()[0] or own == "own/mine x")


def test_the_same_seed_shows_the_same_ecgs_and_another_one_others(opened):
    first, again, other = ([s.ecgs[0].tobytes() for s in sequences(opened, "shuffled", seed)] for seed in (0, 0, 1))
    assert first == again != other


def test_zeros_decode_to_0_mv_and_none_has_no_token(opened):
    zeros, none = sequences(opened, "zeros"), sequences(opened, "none")
    millivolts = opened.ecg_tokenizer.decode(zeros[0].ecgs[0])
    assert millivolts.shape == (12, SAMPLES)
    assert np.abs(millivolts).max() < np.ptp(opened.ecg_tokenizer.decode(sequences(opened, "own")[0].ecgs[0])) / 10
    assert {sequence.ecgs[0].tobytes() for sequence in zeros} == {zeros[0].ecgs[0].tobytes()}
    ids, mask = render(opened.ids, none[0].text, none[0].ecgs, LONGEST)
    np.testing.assert_array_equal(ids, none[0].text.ids)
    np.testing.assert_array_equal(mask, none[0].text.answers)


@pytest.mark.parametrize("shown", SHOWN)
def test_planned_lengths_are_those_of_what_is_shown(opened, config, shown):
    split = open_shown(opened, "train", shown, SAMPLES, 0)
    lengths = shown_lengths(opened, "train", shown, split, LONGEST)
    for number, length in enumerate(lengths):
        ids, mask = render(opened.ids, split[number].text, split[number].ecgs, LONGEST)
        assert (len(ids), mask.sum()) == tuple(length)
    config.data.ecg = shown
    plan, batches = plan_batches(Settings.of(config), opened, "train", 1.0)
    shown_tokens = sum(int((batches[step]["segment_ids"] > 0).sum()) for step in range(len(plan)))
    assert shown_tokens == sum(int(plan.lengths(step)[:, 0].sum()) for step in range(len(plan)))


def test_one_patient_alone_has_no_other_s_ecg_to_show(opened, monkeypatch):
    first = controls.outlines_of(opened.shards, opened.manifest, "train")[:1]
    monkeypatch.setattr(controls, "outlines_of", lambda *which: first)
    with pytest.raises(ConfigError, match=r"data\.ecg or eval\.ecg: 'shuffled' found, but no other patient of split 'train'"):
        open_shown(opened, "train", "shuffled", SAMPLES, 0)


@pytest.mark.parametrize("seed", range(5))
def test_a_patient_s_other_ecgs_are_not_shown_in_the_place_of_one(opened, seed):
    outline = controls.outlines_of(opened.shards, opened.manifest, "train")[0]
    owners = ["a", "a", "a", "b", "b", "c"]
    outlines = [replace(outline, patient=owner, ecgs=(np.int64(place),)) for place, owner in enumerate(owners)]
    for owner, (shown,) in zip(owners, shown_places(outlines, "train", "shuffled", seed), strict=True):
        assert owners[shown] != owner
