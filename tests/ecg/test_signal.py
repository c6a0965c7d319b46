import dataclasses

import numpy as np
import pytest
from scipy.interpolate import make_interp_spline

from ecgbyte_jax.ecg import signal
from ecgbyte_jax.ecg.records import LEADS, Record, read_record
from ecgbyte_jax.errors import RecordError
from tests.ecg.plainly import filter_exactly

RECORDS = ["00197_hr", "00122_hr", "00241_hr"]


@pytest.fixture
def record(rng) -> Record:
    """Ten seconds of noise at 500 Hz, in steps of 1 uV, as recorders store them."""
    return Record((rng.integers(-2000, 2000, (12, 5000)) / 1000).astype(np.float32), 500.0, LEADS)


@pytest.mark.parametrize("name", RECORDS)
def test_every_step_matches_the_published_figures(shared, name):
    published = np.load(shared / "fixtures/ecg_byte/signal.npz")
    record = read_record(shared / "data/ptbxl/records500/00000" / name)
    filtered = signal.filter_bands(signal.select_leads(record), 500.0)
    denoised = signal.denoise(filtered)
    np.testing.assert_allclose(filtered.T[::10], published[f"{name}.filtered"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(denoised.T[::10], published[f"{name}.denoised"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(signal.clean(record).T, published[f"{name}.resampled"], rtol=0, atol=1e-9)


def test_clean_selects_leads_by_name(record, rng):
    order = rng.permutation(12)
    shuffled = Record(record.signal[order], 500.0, tuple(LEADS[i] for i in order))
    np.testing.assert_array_equal(signal.clean(shuffled), signal.clean(record))


def test_clean_returns_250_hz_in_float64(record):
    cleaned = signal.clean(record)
    assert cleaned.shape == (12, 2500) and cleaned.dtype == np.float64


def test_clean_removes_mains_and_wander_and_keeps_the_heart():
    time = np.arange(5000) / 500
    heart = np.sin(2 * np.pi * 8 * time)
    noisy = heart + np.sin(2 * np.pi * 50 * time) + 2 * np.sin(2 * np.pi * 0.1 * time)
    record = Record(np.tile(noisy, (12, 1)).astype(np.float32), 500.0, LEADS)
    cleaned = signal.clean(record)[0, 500:2000]
    kept = np.sin(2 * np.pi * 8 * np.linspace(0, 10, 2500))[500:2000]
    assert np.corrcoef(cleaned, kept)[0, 1] > 0.98


@pytest.mark.parametrize("rate", [100.0, 500.0, 1000.0])
def test_filters_start_in_their_steady_state(rate):
    for _, run in signal._filters(rate, signal.CleanConfig()):
        output = run(np.ones((1, 50)))
        np.testing.assert_allclose(output, output[0, 0], atol=1e-6)


def beats(rate: float, seconds: float, rng) -> np.ndarray:
    """Heartbeats, wander, hum and noise in mV, in steps of 1 uV; [N]."""
    time = np.arange(round(rate * seconds)) / rate
    beat = np.exp(-(((time[:, None] - np.arange(0.3, seconds, 0.8)) / 0.012) ** 2)).sum(axis=1)
    hum = 0.2 * np.sin(1.3 * time + 0.5) + 0.05 * np.sin(2 * np.pi * 50 * time)
    return np.round(beat + hum + 0.02 * rng.standard_normal(len(time)), 3)


@pytest.mark.parametrize(
    "rate, tolerance", [(500.0, 1e-3), (512.0, 1e-8), (1000.0, 1e-8), (2048.0, 1e-8), (3000.0, 1e-8), (1e4, 1e-8)]
)
def test_filters_are_close_to_exact_ones_up_to_10_khz(rng, rate, tolerance):
    pytest.importorskip("mpmath")
    original = beats(rate, 2.0, rng)
    np.testing.assert_allclose(
        signal.filter_bands(original[None], rate)[0], filter_exactly(original, rate), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("rate", [2e5, 5e8, np.inf])
def test_a_rate_above_100_khz_is_refused(record, rate):
    with pytest.raises(RecordError, match="at most 100000 Hz expected"):
        signal.clean(Record(record.signal, rate, LEADS))


@pytest.mark.parametrize("change", [{"order": 8}, {"band": (0.01, 100.0)}, {"highpass": 0.001}])
def test_steeper_or_lower_filters_are_stable_at_500_hz(rng, change):
    filtered = signal.filter_bands(beats(500.0, 10.0, rng)[None], 500.0, signal.CleanConfig(**change))
    assert np.abs(filtered).max() < 5


@pytest.mark.parametrize(
    "wrong, message", [(np.nan, r"after cleaning, leads \['V1'\] hold"), (21.0, "after cleaning.*21.0 mV")]
)
def test_a_signal_spoilt_by_cleaning_is_refused(record, monkeypatch, wrong, message):
    monkeypatch.setattr(signal, "denoise", lambda original, *_: np.where(np.arange(12)[:, None] == 6, wrong, original))
    with pytest.raises(RecordError, match=message):
        signal.clean(record)


@pytest.mark.parametrize("rate, samples", [(100.0, 1000), (250.0, 2500), (1000.0, 10_000)])
def test_other_sample_rates_are_cleaned_at_their_own_rate(rng, rate, samples):
    cleaned = signal.clean(Record(rng.standard_normal((12, samples)).astype(np.float32), rate, LEADS))
    assert cleaned.shape == (12, 2500) and np.isfinite(cleaned).all()


def test_resample_is_exact_for_a_cubic():
    time = np.linspace(0, 2, 1000)
    grid = np.linspace(0, 2, 500)
    resampled = signal.resample(np.stack([time**3 - time, time**2]), 500.0, 250.0)
    np.testing.assert_allclose(resampled, np.stack([grid**3 - grid, grid**2]), atol=1e-12)


def test_segment_cuts_complete_segments_from_the_start():
    segments = signal.segment(np.arange(24.0).reshape(2, 12), 5)
    np.testing.assert_array_equal(segments, [[[0, 1, 2, 3, 4], [12, 13, 14, 15, 16]], [[5, 6, 7, 8, 9], [17, 18, 19, 20, 21]]])


def test_missing_lead_is_refused_by_name(record):
    with pytest.raises(RecordError, match=r"\['V6'\] are missing"):
        signal.clean(Record(record.signal[:11], 500.0, LEADS[:11]))


def test_flat_lead_is_refused_by_name(record):
    record.signal[3] = 0.25
    with pytest.raises(RecordError, match=r"\['aVR'\] are flat"):
        signal.clean(record)


def test_nan_is_refused_by_name(record):
    record.signal[1, 17] = np.nan
    with pytest.raises(RecordError, match=r"\['II'\] hold values that are not finite"):
        signal.clean(record)


@pytest.mark.parametrize("samples", [1, 20, 27])
def test_a_recording_that_is_too_short_is_refused(rng, samples):
    with pytest.raises(RecordError):
        signal.clean(Record(rng.standard_normal((12, samples)).astype(np.float32), 500.0, LEADS))


def test_a_recording_shorter_than_a_segment_is_refused():
    with pytest.raises(RecordError, match="at least one segment of 500 expected"):
        signal.segment(np.zeros((12, 499)), 500)


def test_a_duplicate_lead_is_refused_by_name(record):
    with pytest.raises(RecordError, match=r"\['II'\] are there twice"):
        signal.clean(Record(record.signal, 500.0, ("II", *LEADS[1:])))


def test_amplitudes_beyond_20_mv_are_refused_by_name(record):
    record.signal[7, 100] = -20.5
    with pytest.raises(RecordError, match=r"\['V2'\] reach 20\.5 mV, beyond 20 mV"):
        signal.clean(record)
    assert signal.clean(record, signal.CleanConfig(max_amplitude=0)).shape == (12, 2500)


def test_every_step_can_be_omitted(record):
    raw = signal.select_leads(record)
    nothing = signal.CleanConfig(target_rate=0, notches=(), band=(), highpass=0, wavelet="")
    np.testing.assert_array_equal(signal.clean(record, nothing), raw)
    for step in ({"notches": (50.0,)}, {"band": (0.5, 100.0)}, {"highpass": 0.05}, {"wavelet": "db6"}, {"target_rate": 250.0}):
        alone = signal.clean(record, dataclasses.replace(nothing, **step))
        assert alone.shape != raw.shape or np.abs(alone - raw).max() > 1e-3, step


@pytest.mark.parametrize("samples, rate", [(5000, 500.0), (1000, 100.0), (4321, 360.0), (7, 500.0), (2002, 500.0)])
def test_resample_is_scipy_s_spline(rng, samples, rate):
    original = rng.standard_normal((12, samples))
    duration = samples / rate
    spline = make_interp_spline(np.linspace(0, duration, samples), original.T, k=3)
    expected = spline(np.linspace(0, duration, int(samples * 250 / rate))).T
    np.testing.assert_allclose(signal.resample(original, rate, 250.0), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "samples, rate, left", [(2002, 500.0, 1001), (2018, 500.0, 1009), (1001, 250.0, 1001), (203, 100.0, 507)]
)
def test_the_resampled_length_is_rounded_once(samples, rate, left):
    assert signal.resample(np.zeros((12, samples)), rate, 250.0).shape == (12, left)


def test_a_duration_below_one_sample_is_refused():
    with pytest.raises(RecordError, match=r"1e-07 s found, at least 0\.004 s expected"):
        signal.resample(np.zeros((12, 50)), 5e8, 250.0)
