import numpy as np
import pytest

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.perturb import PERTURBATIONS, blackout, dropout, noise, perturb, wander
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer

RATE = 100.0


@pytest.fixture
def signal(rng):
    return rng.normal(size=(12, 1000))


def test_noise_has_0_1_mv(signal, rng):
    assert np.std(noise(signal, RATE, rng) - signal) == pytest.approx(0.1, rel=0.05)


def test_wander_is_one_slow_wave_per_lead(signal, rng):
    added = wander(signal, RATE, rng) - signal
    assert (abs(added).max(axis=1) <= 0.6).all() and (abs(added).max(axis=1) > 0.25).all()
    peaks = abs(added).max(axis=1, keepdims=True)
    assert np.ptp(peaks) > 0.1 and np.ptp(added[:, :1] / peaks) > 0.5  # each lead's own height and phase
    spectrum = abs(np.fft.rfft(added, 10_000, axis=1))
    assert (np.fft.rfftfreq(10_000, 1 / RATE)[spectrum.argmax(axis=1)] < 0.6).all()


def test_dropout_silences_three_leads_and_keeps_the_others(signal, rng):
    perturbed = dropout(signal, RATE, rng)
    silent = (perturbed == 0).all(axis=1)
    assert silent.sum() == 3 and np.array_equal(perturbed[~silent], signal[~silent])


def test_blackout_silences_a_fifth_of_all_leads(signal, rng):
    perturbed = blackout(signal, RATE, rng)
    silent = np.flatnonzero((perturbed == 0).all(axis=0))
    assert len(silent) == 200 and np.ptp(silent) == 199
    kept = np.setdiff1d(np.arange(1000), silent)
    assert np.array_equal(perturbed[:, kept], signal[:, kept])


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_depends_only_on_seed_and_segment(signal, name):
    tokenizer = ECGTokenizer(Quantizer(-2.0, 2.0), BPE.train(Quantizer(-2.0, 2.0).encode(signal).ravel(), 50))
    ids = tokenizer.encode(signal)
    other = tokenizer.encode(signal[::-1])
    perturbed = [
        perturb(name, original, tokenizer, RATE, seed) for seed, original in ((0, ids), (0, ids), (2, ids), (0, other))
    ]
    assert np.array_equal(perturbed[0], perturbed[1])
    assert not np.array_equal(perturbed[0], perturbed[2])
    changed = [
        tokenizer.decode(tokens) - tokenizer.decode(original)
        for tokens, original in ((perturbed[0], ids), (perturbed[3], other))
    ]
    assert not np.allclose(changed[0], changed[1][::-1])
    assert not np.array_equal(perturbed[0], ids) and tokenizer.decode(perturbed[0]).shape == signal.shape
