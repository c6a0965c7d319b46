"""The log-probabilities of given answers behind a prompt."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model import generate as module
from ecgbyte_jax.model.config import DeltaConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.generate import generate, score_candidates
from tests.model.test_generate import CONFIG, left_padded

LENGTHS = ((1, 4, 2), (3, 0, 5), (2, 2, 6), (1, 1, 1))  # of each row's candidates; 0: there are fewer


def answers(rng):
    """Candidates [4, 3, 6], padded on the left, and the rows' candidates themselves."""
    rows = [[rng.integers(0, 40, length) for length in lengths] for lengths in LENGTHS]
    ids, mask = zip(*(left_padded(row, 6) for row in rows))
    return rows, np.stack(ids), np.stack(mask)


def plainly(model, prompts, rows) -> np.ndarray:
    """[4, 3] from one forward pass over every prompt with each of its candidates."""
    whole = left_padded([np.concatenate([p, one]).astype(int) for p, row in zip(prompts, rows) for one in row], 50)
    log_probs = np.asarray(jax.nn.log_softmax(model(*whole)))
    places = [range(50 - len(one), 50) for row in rows for one in row]
    sums = [sum(log_probs[n, place - 1, whole[0][n, place]] for place in spots) for n, spots in enumerate(places)]
    return np.array(sums).reshape(len(rows), -1)


DELTA = DeltaConfig((0,), 2, 4, 8, 8, 4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"windows": (6,)}, {"rope_theta": None, "position_offset": 2}, {"layers": 2, "delta": DELTA}],
    ids=["rotary", "window", "learned", "delta net"],
)
def test_they_are_those_of_a_forward_pass_over_prompt_and_candidate(rng, changes):
    model = Decoder(replace(CONFIG, **changes), nnx.Rngs(1))
    prefixes, ends = [rng.integers(0, 40, n) for n in (21, 34)], [rng.integers(0, 40, n) for n in (1, 9, 5, 3)]
    rows, *candidates = answers(rng)
    prompts = [np.concatenate([prefixes[place // 2], end]) for place, end in enumerate(ends)]
    expected = plainly(model, prompts, rows)
    found = score_candidates(model, *left_padded(ends, 14), *candidates, shared=left_padded(prefixes, 40))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(score_candidates(model, *left_padded(prompts, 50), *candidates), expected, atol=1e-4)


def test_a_generated_answer_has_the_same_probability(rng):
    model, prompts = Decoder(CONFIG, nnx.Rngs(2)), left_padded([rng.integers(0, 40, n) for n in (9, 5)], 9)
    tokens, log_probs = generate(model, *prompts, 4, return_log_probs=True)
    found = score_candidates(model, *prompts, tokens[:, None], np.ones((2, 1, 4), bool))
    np.testing.assert_allclose(found[:, 0], log_probs.sum(axis=1), atol=1e-5)


def test_all_candidates_of_a_prompt_share_one_prefill(rng, monkeypatch):
    model, extend, shapes = Decoder(CONFIG, nnx.Rngs(3)), Decoder.extend, []
    monkeypatch.setattr(Decoder, "extend", lambda self, ids, *rest: shapes.append(ids.shape) or extend(self, ids, *rest))
    module._score_candidates.clear_cache()
    shared, ends = left_padded([rng.integers(0, 40, 30)], 30), left_padded([[1], [2], [3], [4]], 1)
    score_candidates(model, *ends, *answers(rng)[1:], shared=shared)
    assert shapes == [(1, 32), (4, 1), (12, 5)]


@pytest.mark.parametrize(
    "candidates, mask, message",
    [
        (np.zeros((2, 3)), np.ones((2, 3)), r"candidates \(2, 3\) and candidates_mask \(2, 3\) found, \[2, C, N\] expected"),
        (np.zeros((3, 1, 2)), np.ones((3, 1, 2)), r"\[2, C, N\] expected"),
        (np.full((2, 1, 2), 40), np.ones((2, 1, 2)), "candidates: row 0 found with .* ids outside the vocabulary, 0 to 39"),
        (np.zeros((2, 1, 2)), np.array([[[1, 1]], [[1, 0]]]), "candidates: row 1 found with padding after a token"),
        (np.zeros((2, 1, 80)), np.ones((2, 1, 80)), "a prompt of 9 tokens and 80 new ones found"),
    ],
)
def test_impossible_candidates_are_refused(rng, candidates, mask, message):
    prompts = left_padded([rng.integers(0, 40, 9)] * 2, 9)
    with pytest.raises(ConfigError, match=message):
        score_candidates(Decoder(CONFIG, nnx.Rngs(0)), *prompts, candidates.astype(int), mask.astype(bool))
