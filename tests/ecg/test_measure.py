"""What is measured in synthetic recordings whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.measured import TOLERANCE, measure_synthetic, synthesize_known
from ecgbyte_jax.ecg.measure.measure import Found
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.ecg.synthetic import Heart, synthesize
from ecgbyte_jax.errors import RecordError

pytest.importorskip("neurokit2")


def recorded(heart: Heart) -> Record:
    return Record((synthesize(heart, np.random.default_rng(0)) / 1000).astype(np.float32), 500.0, LEADS)


@pytest.mark.parametrize("records", [12, pytest.param(500, marks=pytest.mark.slow)])
def test_answers_are_within_their_tolerance_in_19_of_20_recordings(records):
    errors, _ = measure_synthetic(records)
    for name, found in errors.items():
        assert len(found) >= 0.95 * records, name
        assert np.mean(np.array(found) <= TOLERANCE[name]) >= 0.95 * (1 if records > 20 else 0.96), name


def test_a_part_is_measured_by_its_own_beats():
    record, _, peaks = synthesize_known(np.random.default_rng(3))
    measures, _ = Found.of(record).measure(4.0, 10.0)
    inside = peaks[(peaks >= 4.0) & (peaks < 10.0)]
    np.testing.assert_allclose(np.array(measures.peaks) + 4.0, inside, atol=0.02)
    assert measures.beats in (len(inside), None)


def test_fibrillation_has_no_pr_interval_and_irregular_beats():
    measures, _ = Found.of(recorded(Heart(rate=80, fibrillation=True, variability=0.2))).measure(0.0, 10.0)
    assert measures.pr is None and measures.missing["pr"].startswith("P:") and measures.variation > 0.12


def test_extrasystoles_count_as_beats_and_tall_t_waves_do_not():
    measures, _ = Found.of(recorded(Heart(rate=60, bigeminy=True))).measure(0.0, 10.0)
    assert abs(measures.rate - 60) < 6
    record = recorded(Heart(rate=60, muscle=0.0))
    found = Found.of(record)
    tall = record.signal.copy()
    for peak in found.beats.times:
        tall += 0.8 * np.exp(-0.5 * ((np.arange(5000) / 500 - peak - 0.3) / 0.05) ** 2).astype(np.float32)
    assert len(Found.of(replace(record, signal=tall)).beats.peaks) == len(found.beats.peaks)


def test_a_recording_without_beats_is_refused():
    noise = np.random.default_rng(0).normal(0, 0.01, (12, 5000)).astype(np.float32)
    with pytest.raises(RecordError, match=r"alike|R peaks"):
        Found.of(Record(noise, 500.0, LEADS))
