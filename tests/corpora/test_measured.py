"""Questions whose answers are measured: what is asked, and what is not."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from benchmarks.measured import synthesize_known
from ecgbyte_jax.corpora.example import Example, Rejected
from ecgbyte_jax.corpora.measured import questions
from ecgbyte_jax.corpora.measured.questions import Segment, ask_segments
from ecgbyte_jax.corpora.measured.read import Measured, Unmeasured, make_examples, read_recordings
from ecgbyte_jax.corpora.measured.spoilt import FAULTS, Spoilt
from ecgbyte_jax.ecg.clean_config import CleanConfig
from ecgbyte_jax.ecg.measure.measure import Found, Measures
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.ecg.signal import clean
from ecgbyte_jax.errors import RecordError

RECORD, TRUTH, _ = synthesize_known(np.random.default_rng(4))


@dataclass(frozen=True)
class Known:
    """A source of the recording above."""

    name: str = "known"

    def read(self) -> Record:
        return RECORD

    def fingerprint(self, times: bool) -> list[object]:
        return []


def asked(config: CleanConfig, length: int = 2500, names: int = 1) -> list[Segment]:
    def seen(record: Record) -> tuple[np.ndarray, float]:
        return clean(record, config), config.target_rate

    return [s for n in range(names) for s in ask_segments(Known(f"known{n}"), RECORD, seen, length, 0, 0)]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_in_one_lead_and_span_and_the_same_every_time(fault):
    copy = Spoilt(Known(), fault, "V3", 2.0, 4.0, 0)
    changed = copy.read().signal != RECORD.signal
    assert changed[LEADS.index("V3"), 1000:2000].any()
    changed[LEADS.index("V3"), 1000:2000] = False
    assert not changed.any()
    np.testing.assert_array_equal(copy.read().signal, copy.read().signal)
    assert copy.name != Spoilt(Known(), fault, "V4", 2.0, 4.0, 0).name


def test_numbers_have_their_unit_and_only_shown_beats_count():
    pytest.importorskip("neurokit2")
    (whole,) = asked(CleanConfig())
    answers = {each.name: each.answer for each in whole.asked}
    assert abs(int(answers["qt"].removesuffix(" ms")) - TRUTH["qt"]) <= 10
    assert answers["heart_rate"].endswith(" beats per minute") and answers["axis"].endswith(" degrees")
    short = asked(CleanConfig(), 500)
    assert len(short) == 5 and all(abs(s.rate - whole.rate) < 5 for s in short if s.rate)
    assert all(s.missing["variation"] == "too few beats" for s in short)


def test_one_is_singular_and_half_a_turn_has_one_name():
    measures = Measures(beats=1, axis=-179.7)
    assert [each.answer for each in questions._numbers(measures)] == ["180 degrees", "1 R peak"]
    assert [each.answer for each in questions._numbers(Measures(axis=-1.2, qrs=1.0))] == ["1 ms", "-1 degree"]


def test_a_recording_shorter_than_a_segment_is_set_aside():
    pytest.importorskip("neurokit2")
    with pytest.raises(RecordError, match="2500 samples found after resampling, at least one segment of 2501 expected"):
        asked(CleanConfig(), 2501)


def test_faults_are_asked_about_only_where_cleaning_keeps_them():
    pytest.importorskip("neurokit2")
    for config, kept in (
        (CleanConfig(), {"a flat line", "noise"}),
        (CleanConfig(band=(), wavelet="", highpass=0.0), {*FAULTS}),
    ):
        segments = asked(config, names=12)
        faults = {each.spoilt.fault for s in segments for each in s.asked if each.spoilt}
        assert faults <= kept and faults
        for each in (each for s in segments for each in s.asked if each.spoilt):
            assert each.answer == (each.spoilt.fault if each.name == "fault" else each.spoilt.lead)


@pytest.mark.parametrize("seconds, asked_about", [(0.8, True), (1.2, False)])
def test_no_fault_is_asked_about_where_a_lead_is_flat_itself(seconds, asked_about):
    pytest.importorskip("neurokit2")
    signal = RECORD.signal.copy()
    signal[LEADS.index("aVL"), 3000 : 3000 + round(seconds * RECORD.sample_rate)] = signal[LEADS.index("aVL"), 3000]
    record, config = replace(RECORD, signal=signal), CleanConfig(band=(), wavelet="")
    (whole,) = ask_segments(Known(), record, lambda record: (clean(record, config), 250.0), 2500, 0, 0)
    assert ("flat for a while" not in whole.missing.get("faults", "")) == asked_about


def test_a_segment_of_a_few_samples_has_nothing_to_ask_about():
    pytest.importorskip("neurokit2")
    measures, waves = Found.of(RECORD).measure(1.0, 1.03)
    assert waves is None and measures.rate is None and measures.noise == measures.drift == ()


def unmeasured(name: str, patient: str, split: str = "train", types: tuple[str, ...] = ()) -> Unmeasured:
    return Unmeasured(name, patient, split, Known(name), types)


def test_the_faster_of_two_patients_in_one_split_is_asked_for_where_it_is_clear():
    rates = [("a", "P", "train", 60.0), ("b", "P", "train", 90.0), ("c", "Q", "train", 60.0), ("d", "R", "test", 40.0)]
    measured = [Measured(unmeasured(n, p, s), [Segment((), rate)]) for n, p, s, rate in rates]
    (found,) = make_examples(measured)
    assert [r.name for r in found.records] == ["b", "c"] and found.answer == "the first"
    assert found.segment == 0 and len(found.patients) == 2
    nearly = [Measured(unmeasured(n, n), [Segment((), rate)]) for n, rate in (("a", 60.0), ("b", 65.0))]
    assert not [*make_examples(nearly)]
    assert not [*make_examples([Measured(unmeasured("a", "P", types=("single-query",)), [Segment((), 60.0)]), measured[2]])]


def test_a_recording_is_measured_once_and_what_cannot_be_is_rejected():
    examples = [Example(f"e{n}", "P", "train", (Known("a"),), "why?", "so") for n in range(3)]
    rejected = Rejected("x", "file", "broken")
    assert [*read_recordings([*examples, rejected], ())] == [unmeasured("a", "P"), rejected]
    (found,) = make_examples([Measured(unmeasured("a", "P"), "no beats")])
    assert found.id == "a" and found.reason == "no beats"
