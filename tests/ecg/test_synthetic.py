import numpy as np
import pytest
from scipy.signal import find_peaks

from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.synthetic import Heart, random_heart, synthesize

QUIET = {"wander": 0.0, "hum": 0.0, "muscle": 0.0}


def lead(heart: Heart, name: str, seed: int = 0) -> np.ndarray:
    """One lead in mV, [5000]."""
    return synthesize(heart, np.random.default_rng(seed))[LEADS.index(name)] / 1000


def test_limb_leads_are_consistent(rng):
    for _ in range(5):
        i, ii, iii, avr, avl, avf = synthesize(random_heart(rng), rng)[:6].astype(int)
        np.testing.assert_array_equal(iii, ii - i)
        assert np.abs(2 * avr + i + ii).max() <= 1
        assert np.abs(2 * avl - 2 * i + ii).max() <= 1
        assert np.abs(2 * avf - 2 * ii + i).max() <= 1


@pytest.mark.parametrize("rate", [45, 75, 130])
def test_rate_is_the_number_of_r_peaks(rate):
    peaks, _ = find_peaks(lead(Heart(rate=rate, variability=0.01, **QUIET), "II"), height=0.8, distance=100)
    assert abs(np.diff(peaks).mean() / 500 - 60 / rate) < 0.03 * 60 / rate


def test_fibrillation_is_irregular_and_has_no_p_wave():
    peaks, _ = find_peaks(lead(Heart(fibrillation=True, variability=0.2, **QUIET), "II"), height=0.8, distance=100)
    assert np.diff(peaks).std() / np.diff(peaks).mean() > 0.08
    before_r = [lead(Heart(fibrillation=f, rate=60, **QUIET), "II", 5) for f in (False, True)]
    peaks, _ = find_peaks(before_r[0], height=0.8, distance=100)
    assert before_r[0][peaks[2] - 80] > 0.08 and before_r[1][peaks[2] - 80] < 0.08


def test_bundle_branch_block_widens_qrs():
    def width(block: str) -> int:
        return (np.abs(lead(Heart(block=block, rate=50, **QUIET), "V1")) > 0.25).sum()

    assert width("left") > 2 * width("") and width("right") > 1.3 * width("")


@pytest.mark.parametrize("infarction, name, other", [("anterior", "V2", "aVF"), ("inferior", "aVF", "V2")])
def test_st_elevation_is_where_the_infarction_is(infarction, name, other):
    sick, sound = Heart(infarction=infarction, st_elevation=0.3, **QUIET), Heart(**QUIET)
    assert (lead(sick, name) - lead(sound, name)).max() > 0.2 > (lead(sick, other) - lead(sound, other)).max()


def test_bigeminy_alternates_and_low_voltage_is_low():
    peaks, _ = find_peaks(lead(Heart(bigeminy=True, variability=0.0, **QUIET), "II"), height=0.5, distance=100)
    gaps = np.diff(peaks)
    assert np.abs(gaps[:-1] - gaps[1:]).min() > 50
    assert np.ptp(lead(Heart(voltage=0.3, **QUIET), "II")) < 0.5 < np.ptp(lead(Heart(**QUIET), "II"))


def test_artefacts_appear_in_the_signal():
    def power(frequency: float, **noise) -> float:
        return np.abs(np.fft.rfft(lead(Heart(**(QUIET | noise)), "V3")))[int(frequency * 10)]

    assert power(50, hum=0.1) > 20 * power(50)
    spectrum = {
        muscle: np.abs(np.fft.rfft(lead(Heart(**(QUIET | {"muscle": muscle})), "V3")))[1500:].mean() for muscle in (0.0, 0.02)
    }
    assert spectrum[0.02] > 10 * spectrum[0.0]
    assert np.abs(lead(Heart(**(QUIET | {"wander": 0.5})), "V3") - lead(Heart(**QUIET), "V3")).max() > 0.05


def test_the_same_seed_gives_the_same_ecg():
    first, second = (synthesize(random_heart(rng), rng) for rng in (np.random.default_rng(4), np.random.default_rng(4)))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (12, 5000) and first.dtype == np.int16
