"""What the features of ECG tokens say, and the embeddings that begin with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.inputs.token_features import token_features
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.vocabulary import Described, grow_vocabulary

LETTERS = [np.array([letter], np.uint8) for letter in range(26)]
FLAT, FLAT_TOO, UP, DOWN = ([5] * 9, [6] * 9, [2, 5, 9, 14, 20], [20, 14, 9, 5, 2])
TOKENS = [*LETTERS, *(np.array(token, np.uint8) for token in (FLAT, FLAT_TOO, UP, DOWN))]


def nearest(rows: np.ndarray, place: int) -> int:
    centred = rows - rows.mean(axis=0)
    likeness = centred @ centred[place] / np.linalg.norm(centred, axis=1) / np.linalg.norm(centred[place])
    likeness[place] = -np.inf
    return int(likeness.argmax())


def test_features_are_centred_and_like_tokens_are_near():
    features = token_features(TOKENS)
    assert features.dtype == np.float32 and len(features) == 30 and np.isfinite(features).all()
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-6)
    assert nearest(features, 26) == 27 and nearest(features, 27) == 26
    assert np.linalg.norm(features[28] - features[29]) > 2 * np.linalg.norm(features[26] - features[27])


@pytest.mark.parametrize("train_from", [None, 60])
def test_described_rows_begin_like_the_others_and_like_tokens_alike(train_from):
    config = DecoderConfig(
        vocab_size=60, width=512, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8, max_positions=8, rope_theta=1e4
    )
    model = Decoder(config, nnx.Rngs(0))
    before = np.asarray(model.embedding[...]).copy()
    ids = np.arange(62, 92)
    described = Described(ids, token_features(TOKENS), 60)
    grow_vocabulary(model, 96, jax.random.key(1), train_from=train_from, described=described)
    rows = jnp.concatenate([model.embedding[...], model.new_rows[...]]) if train_from else model.embedding[...]
    np.testing.assert_array_equal(rows[:60], before)
    new = np.asarray(rows[60:])
    assert new.shape == (36, 512)
    assert new.std() == pytest.approx(before.std(), rel=0.1)  # tokens that are no ECG's too
    assert np.linalg.norm(new[:, None] - new, axis=-1)[np.triu_indices(36, 1)].min() > 5 * before.std()
    assert nearest(new[2:32], 26) == 27


def test_spare_rows_are_described_and_trained_ones_are_kept():
    config = DecoderConfig(
        vocab_size=120, width=64, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8, max_positions=8, rope_theta=1e4
    )
    for first, changed in ((62, 58), (92, 28)):  # a base whose tokenizer ends before the ECG tokens, and one that has them
        model = Decoder(config, nnx.Rngs(0))
        before = np.asarray(model.embedding[...]).copy()
        described = Described(np.arange(62, 92), token_features(TOKENS), first)
        grow_vocabulary(model, 96, jax.random.key(1), described=described)
        after = np.asarray(model.embedding[...])
        np.testing.assert_array_equal(after[:first], before[:first])
        assert (after[first:] != before[first:]).any(axis=1).sum() == changed == 120 - first


def test_without_features_new_rows_are_at_the_mean_as_published():
    config = DecoderConfig(
        vocab_size=60, width=16, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8, max_positions=8, rope_theta=1e4
    )
    model = Decoder(config, nnx.Rngs(0))
    mean = np.asarray(model.embedding[...]).mean(axis=0)
    grow_vocabulary(model, 70, jax.random.key(1))
    np.testing.assert_allclose(model.embedding[60:], np.broadcast_to(mean, (10, 16)), atol=1e-3)
