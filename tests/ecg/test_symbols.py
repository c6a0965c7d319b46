import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgbyte_jax.ecg.symbols import Quantizer, parse, spell
from ecgbyte_jax.errors import TokenizerError


def test_symbols_and_inverse_match_the_published_figures(shared):
    published = np.load(shared / "fixtures/ecg_byte/symbols.npz")
    quantizer = Quantizer(float(published["percentile_1"]), float(published["percentile_99"]))
    symbols = quantizer.encode(published["clean"])
    np.testing.assert_array_equal(symbols, published["symbols"])
    np.testing.assert_allclose(quantizer.decode(symbols, published_inverse=True), published["restored"], atol=1e-12)


def test_worked_example():
    quantizer = Quantizer(-0.8, 0.8)  # bins from -1.3 to 1.3 mV: 0.1 mV each
    np.testing.assert_array_equal(quantizer.encode(np.array([-9, -1.3, -1.15, 0.05, 1.25, 1.3, 9])), [0, 0, 1, 13, 25, 25, 25])
    assert quantizer.encode(np.zeros((2, 3))).dtype == np.uint8


@given(st.lists(st.floats(-1.29, 1.29), min_size=1))
def test_bin_centres_are_within_half_a_bin(values):
    quantizer = Quantizer(-0.8, 0.8)
    restored = quantizer.decode(quantizer.encode(np.array(values)))
    assert np.abs(restored - values).max() <= 0.05 + 1e-6


def test_fit_finds_the_percentiles_of_all_signals(rng):
    signals = [rng.normal(size=(12, 5000)) for _ in range(20)]
    fitted = Quantizer.fit(iter(signals), seed=3)
    exact = np.percentile(np.stack(signals), [1, 99])
    np.testing.assert_allclose([fitted.percentile_1, fitted.percentile_99], exact, atol=0.03)


def test_fit_uses_every_sample_of_a_small_corpus():
    assert Quantizer.fit([np.arange(101.0)]) == Quantizer(1.0, 99.0)


def test_fit_draws_late_and_early_signals_equally():
    fitted = Quantizer.fit([np.full(300_000, 0.0), np.full(300_000, 1.0)], seed=1)
    assert (fitted.percentile_1, fitted.percentile_99) == (0.0, 1.0)


def test_fit_depends_on_the_seed_alone(rng):
    signals = [rng.normal(size=200_000)]
    assert Quantizer.fit(signals, seed=1) == Quantizer.fit(signals, seed=1) != Quantizer.fit(signals, seed=2)


@pytest.mark.parametrize("signals", [[], [np.array([0.0, np.nan])]])
def test_nothing_and_nan_are_refused(signals):
    with pytest.raises(TokenizerError):
        Quantizer.fit(signals)


def test_nan_is_not_quantized():
    with pytest.raises(TokenizerError, match="not finite"):
        Quantizer(-1.0, 1.0).encode(np.array([np.inf]))


def test_percentiles_in_the_wrong_order_are_refused():
    with pytest.raises(TokenizerError, match=r"1\.0 and -1\.0 mV"):
        Quantizer(1.0, -1.0)


def test_long_signals_are_quantized_as_short_ones(rng):
    quantizer, signal = Quantizer(-1.0, 1.0), rng.normal(size=(3, 30_000))
    symbols = quantizer.encode(signal)
    for start in range(0, 30_000, 7000):
        np.testing.assert_array_equal(symbols[:, start : start + 7000], quantizer.encode(signal[:, start : start + 7000]))
    signal[2, 29_999] = np.nan
    with pytest.raises(TokenizerError, match="not finite"):
        quantizer.encode(signal)


def test_clipped_samples_are_counted():
    quantizer = Quantizer(-0.5, 0.5)  # -1 to 1 mV
    assert quantizer.count_clipped(np.array([[-1.1, -1.0, 0.0], [1.0, 1.2, 7.0]])) == 3


def test_spelling_and_parsing():
    assert spell(np.array([0, 25, 1], np.uint8)) == "azb"
    assert parse("azb").tolist() == [0, 25, 1]


@pytest.mark.parametrize("text", ["", "aB", "a1", "a b", "é", "a\n"])
def test_other_characters_are_not_parsed(text):
    with pytest.raises(TokenizerError, match="a string of the letters a to z expected"):
        parse(text)
