"""Weights spread over samples and words, with NumPy alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ecgbyte_jax.explain.views import split_words, spread


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    kept=st.integers(0, 30),
    seed=st.integers(0, 99),
)
def test_spreading_keeps_the_sum_whatever_the_tokens(lengths, kept, seed):
    weights = np.random.default_rng(seed).random(min(kept, len(lengths))).astype(np.float32)
    flat = spread(weights, np.array(lengths), (sum(lengths),))
    np.testing.assert_allclose(flat.sum(), weights.sum(), rtol=1e-5, atol=1e-7)
    places = np.repeat(np.arange(len(lengths)), lengths)
    for token, weight in enumerate(weights):
        np.testing.assert_allclose(flat[places == token], weight / lengths[token], rtol=1e-6)


def test_tokens_belong_to_the_word_that_their_end_stands_in():
    text = "  Is the  QRS wide? "
    spans = [(0, 1), (1, 4), (4, 8), (8, 9), (9, 13), (13, 16), (16, 18), (18, 19), (19, 20)]
    words, found = split_words(text, spans)
    assert words == ("Is", "the", "QRS", "wide?")
    assert found.tolist() == [0, 0, 1, 2, 2, 3, 3, 3, 3]
