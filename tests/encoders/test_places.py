"""What a vector stands for: against the arithmetic that makes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.encoders.config import EcgInputConfig, EncoderConfig
from ecgbyte_jax.encoders.ecg_input import MeanConnector, QueryConnector, SpanMap
from ecgbyte_jax.encoders.layers import Linear
from ecgbyte_jax.encoders.masked import MaskedAutoencoder
from ecgbyte_jax.encoders.merl import Merl
from ecgbyte_jax.encoders.places import feature_places

SAMPLES = 100


def cells(places) -> np.ndarray:
    """bool [T, 12, L]: where each feature lies."""
    return (places.by_lead[:, :, None] * places.by_sample[:, None]) > 0


def test_a_span_s_vector_changes_with_the_samples_of_its_place_alone():
    span_map = SpanMap(SAMPLES, 5, 3, nnx.Rngs(0))
    changes = jax.jacobian(lambda signal: span_map(signal[None])[0].sum(axis=-1))(jnp.zeros((12, SAMPLES)))
    np.testing.assert_array_equal(cells(feature_places(EcgInputConfig("elf_patch", 5), EncoderConfig(), SAMPLES)), changes != 0)


@pytest.mark.parametrize("kind", ["mtae", "mlae", "st_mem"])
def test_a_feature_lies_where_its_patch_is_cut(kind):
    encoder = EncoderConfig(kind, "tiny")
    places = feature_places(EcgInputConfig("encoder", 12, "query"), encoder, SAMPLES)
    model = MaskedAutoencoder(encoder, SAMPLES, nnx.Rngs(0))
    numbers = jnp.arange(12.0 * SAMPLES).reshape(1, 12, SAMPLES)
    patches = np.rint(0.2 * np.asarray(model.cut(numbers))).astype(int).reshape(len(places.by_lead), -1)
    for feature, patch in zip(cells(places), patches, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(feature), np.sort(patch))


def test_a_place_of_a_resnet_is_in_the_middle_of_what_it_sees():
    encoder, samples = EncoderConfig("merl", "tiny"), 600
    places = feature_places(EcgInputConfig("encoder", 2, "query"), encoder, samples)
    model = Merl(encoder, samples, 1, nnx.Rngs(0))
    signal = 0.2 * np.random.default_rng(0).standard_normal((12, samples)).astype(np.float32)
    for place in (15, 20):
        gradient = jax.grad(lambda x, place=place: model.tokens(x[None])[0, place].sum())(jnp.asarray(signal))
        seen, own = (np.flatnonzero(np.asarray(part).any(axis=0)) for part in (gradient, cells(places)[place]))
        assert abs(seen.mean() - own.mean()) < 2 and seen[0] < own[0] and seen[-1] > own[-1] and len(own) == 16


@pytest.mark.parametrize("kind", ["mtae", "mlae", "st_mem", "merl"])
@pytest.mark.parametrize("samples", [96, 500])
def test_weights_keep_their_sum_and_reach_every_sample(kind, samples):
    places = feature_places(
        EcgInputConfig("encoder", 2), EncoderConfig(kind, "resnet18" if kind == "merl" else "tiny"), samples
    )
    weights = np.random.default_rng(0).uniform(0.1, 1, len(places.by_lead))
    drawn = places.spread(weights)
    assert drawn.shape == (12, samples) and drawn.min() > 0
    np.testing.assert_allclose(drawn.sum(), weights.sum(), rtol=1e-5)
    np.testing.assert_allclose([places.by_lead.sum(axis=1), places.by_sample.sum(axis=1)], 1)


@pytest.mark.parametrize(
    "config", [EcgInputConfig("elf_base"), EcgInputConfig("elf_conv"), EcgInputConfig("encoder", 1, "mlp")]
)
def test_one_vector_of_everything_has_no_place(config):
    assert feature_places(config, EncoderConfig("mtae", "tiny"), SAMPLES) is None


def test_a_vector_is_what_its_shares_of_the_features_make_it():
    features = np.random.default_rng(0).standard_normal((2, 20, 8)).astype(np.float32)
    mean = MeanConnector(20, EcgInputConfig("encoder", 5), (8, 6), nnx.Rngs(0))
    np.testing.assert_allclose(mean(features), mean.map(mean.shares(features) @ features), atol=1e-6)
    query = QueryConnector(20, EcgInputConfig("encoder", 3, "query"), (8, 6), nnx.Rngs(1))
    query.q, query.k = (Linear(8, 8, nnx.Rngs(seed)) for seed in (2, 3))
    query.queries[...] *= 200
    # With the same values in all heads, whose mean is taken, a vector is linear in the mean of their weights.
    query.v.kernel[...] = jnp.tile(query.v.kernel[:, :2], (1, 4))
    query.map.kernel[...] = jnp.tile(query.map.kernel[:2], (4, 1)) / 4
    values = query.v(query.norm(features))[..., :2] @ (4 * query.map.kernel[:2])
    shares = query.shares(features)
    np.testing.assert_allclose(query(features), shares @ values, atol=1e-5)
    assert float(jnp.std(shares)) > 0.01


@pytest.mark.parametrize("kind, crop", [("vit", False), ("clip", False), ("clip", True)])
def test_a_square_of_a_picture_is_where_it_was_drawn_from(kind, crop):
    encoder = EncoderConfig(kind, "tiny", published_crop=crop)
    places = feature_places(EcgInputConfig("encoder", 3, "query"), encoder, 500)
    side = 14 if kind == "vit" else 7
    assert places.by_lead.shape == (side**2, 12) and places.by_sample.shape == (side**2, 500)
    np.testing.assert_allclose([places.by_lead.sum(1), places.by_sample.sum(1)], 1)
    whole = places.spread(np.ones(side**2))
    expected = np.zeros(500)
    expected[slice(244, 256) if crop else slice(None)] = 1
    np.testing.assert_allclose(whole / whole.max(), np.broadcast_to(expected, (12, 500)), atol=1e-6)
    first = places.spread(np.eye(side**2)[side])  # the second row's first square
    assert np.flatnonzero(first.sum(1)).tolist() == ([0, 1] if kind == "vit" else [1, 2, 3])
