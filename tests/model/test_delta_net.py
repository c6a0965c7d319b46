"""Delta nets against the recurrence written out, and in a decoder: packed, padded, cached, split over devices."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model import delta_net as module
from ecgbyte_jax.model.attribution import attribute
from ecgbyte_jax.model.config import DecoderConfig, DeltaConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.delta_net import delta_rule
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.lora import LoraConfig, add_lora, kernels
from ecgbyte_jax.model.sharding import make_mesh, place

CONFIG = DecoderConfig(
    vocab_size=40, width=24, layers=3, heads=2, kv_heads=1, head_dim=8, mlp_width=32, max_positions=200, rope_theta=1e4,
    rotary_channels=4, attention_gate=True, qk_norm="head", norm_offset=1.0, delta=DeltaConfig((0, 2), 2, 4, 6, 5, 4),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(CONFIG, nnx.Rngs(0))


def recurrence(q, k, v, beta, log_decay, segment_ids):
    """Token by token, in float64."""
    q, k, v, beta, log_decay = (np.asarray(x, np.float64) for x in (q, k, v, beta, log_decay))
    (b, tokens, heads, c), (r, width) = k.shape, v.shape[3:]
    mixed, states = np.zeros(v.shape), np.zeros((b, heads, r, c, width))
    for row in range(b):
        example = 1
        for t in range(tokens):
            if segment_ids[row, t] == 0:
                continue
            if segment_ids[row, t] != example:
                example, states[row] = segment_ids[row, t], 0
            for head in range(heads):
                for value_head in range(r):
                    state = states[row, head, value_head]
                    state *= np.exp(log_decay[row, t, head, value_head])
                    correction = v[row, t, head, value_head] - k[row, t, head] @ state
                    state += beta[row, t, head, value_head] * np.outer(k[row, t, head], correction)
                    mixed[row, t, head, value_head] = q[row, t, head] @ state
    return mixed, states


SEGMENTS = {
    "whole": [1] * 23,
    "padded on the left": [0] * 13 + [1] * 10,
    "packed": [1] * 5 + [2] * 1 + [3] * 12 + [0] * 5,
    "padding within": [0] * 3 + [1] * 6 + [0] * 6 + [2] * 8,
}


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_chunks_of_the_delta_rule_are_the_recurrence(rng, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    segment_ids = np.array([*SEGMENTS.values()])
    shape = (len(segment_ids), 23, 2)
    q, k = rng.normal(size=(2, *shape, 6))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v, beta = rng.normal(size=(*shape, 3, 5)), rng.random((*shape, 3))
    log_decay = -rng.exponential([0.01, 1.0, 30.0], (*shape, 3))
    given = [jnp.asarray(x, jnp.float32) for x in (q, k, v, beta, log_decay)]
    mixed, state = jax.jit(delta_rule)(*given, segment_ids, None)
    expected, expected_state = recurrence(q, k, v, beta, log_decay, segment_ids)
    real = segment_ids != 0
    np.testing.assert_allclose(np.asarray(mixed)[real], expected[real], atol=2e-5)
    np.testing.assert_allclose(state, expected_state, atol=2e-5)
    # In two parts, with the state handed on.
    start, first = jax.jit(delta_rule)(*(x[:2, :15] for x in given), segment_ids[:2, :15], None)
    end, last = jax.jit(delta_rule)(*(x[:2, 15:] for x in given), segment_ids[:2, 15:], first)
    np.testing.assert_allclose(np.concatenate([start, end], 1)[real[:2]], expected[:2][real[:2]], atol=2e-5)
    np.testing.assert_allclose(last, expected_state[:2], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [8, 64])
def test_packed_and_padded_examples_have_the_logits_and_gradients_of_each_alone(rng, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    graphdef, params = nnx.split(Decoder(replace(CONFIG, layers=2, delta=DeltaConfig((0,), 2, 4, 6, 5, 4)), nnx.Rngs(0)))
    lengths = np.array([9, 2, 9, 9])
    examples, weights = rng.integers(0, 40, lengths.sum()), rng.normal(size=(lengths.sum(), 40))
    ends = np.cumsum(lengths)

    @jax.jit
    def logits_and_gradient(params, ids, segment_ids, weights):
        def weighed(params):
            model = nnx.merge(graphdef, params)
            logits = model.logits(model.hidden(ids, segment_ids))
            return (logits * weights).sum(), logits

        (_, logits), gradient = jax.value_and_grad(weighed, has_aux=True)(params)
        return logits, jax.tree.leaves(gradient)

    def of_rows(segment_ids):
        """The logits of all real tokens, and the gradient; the tokens fill the rows in their order."""
        ids, spread = np.full(segment_ids.shape, 7), np.zeros((*segment_ids.shape, 40))
        ids[segment_ids != 0], spread[segment_ids != 0] = examples, weights
        logits, gradient = logits_and_gradient(params, ids, segment_ids, spread)
        return logits[segment_ids != 0], gradient

    packed = np.pad(np.repeat([1, 2, 3, 4], lengths), (3, 4))[None]
    padded = (np.arange(20) >= 20 - lengths[:, None]).astype(int)
    alone = [
        logits_and_gradient(params, *(x[None, end - length : end] for x in (examples, np.ones_like(examples), weights)))
        for length, end in zip(lengths, ends)
    ]
    expected = np.concatenate([logits[0] for logits, _ in alone])
    expected_gradient = [sum(parts) for parts in zip(*(gradient for _, gradient in alone))]
    for segment_ids in (packed, padded):
        logits, gradient = of_rows(segment_ids)
        np.testing.assert_allclose(logits, expected, atol=2e-5)
        for a, b in zip(gradient, expected_gradient, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


def left_padded(rows, length):
    mask = np.stack([np.arange(length) >= length - len(row) for row in rows])
    return np.stack([np.pad(row, (length - len(row), 0)) for row in rows]).astype(np.int32), mask


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_generation_over_states_is_that_over_whole_rows(rng, model, shared):
    prefixes = [rng.integers(0, 40, length) for length in (21, 2, 34)]
    ends = [rng.integers(0, 40, length) for length in (1, 9, 9, 2, 1, 3)]
    whole = [np.concatenate([prefixes[i // 2], end]) for i, end in enumerate(ends)]
    prompts = left_padded(ends, 14) if shared else left_padded(whole, 40)
    given = {"shared": left_padded(prefixes, 40)} if shared else {}
    tokens, log_probs = generate(model, *prompts, 6, return_log_probs=True, **given)
    finished = [np.concatenate([row, new]) for row, new in zip(whole, np.asarray(tokens))]
    ids, mask = left_padded(finished, 50)
    logits = model(ids, mask)[:, -7:-1]
    np.testing.assert_array_equal(logits.argmax(-1), tokens)
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(tokens)[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(log_probs, expected, atol=2e-5)


def test_a_token_sees_only_earlier_tokens(rng, model):
    ids = rng.integers(0, 40, (2, 90))
    changed = ids.copy()
    changed[:, 70:] = (changed[:, 70:] + 1) % 40
    before, after = model(ids), model(changed)
    np.testing.assert_allclose(before[:, :70], after[:, :70], atol=1e-6)
    assert np.abs(before[:, 70:] - after[:, 70:]).max() > 1e-3


def test_blocks_of_two_kinds_cannot_be_stacked():
    with pytest.raises(ConfigError, match="scan_layers: True found, False expected: a llama has blocks of two kinds"):
        replace(CONFIG, scan_layers=True)


@pytest.mark.slow
def test_a_mesh_and_rematerialisation_change_no_loss_and_no_gradient(rng):
    ids, segment_ids = rng.integers(0, 40, (8, 20)), np.sort(rng.integers(0, 3, (8, 20)))

    def loss(config, layout):
        decoder = Decoder(config, nnx.Rngs(0))
        add_lora(decoder, LoraConfig(4, 8.0, 0.5), jax.random.key(1))
        for _, _, linear in kernels(decoder):
            if linear.lora is not None:
                linear.lora.b[...] = 0.1 * jnp.ones(linear.lora.b.shape)
        graphdef, params = nnx.split(decoder)
        mesh = make_mesh(*layout, jax.devices()[: np.prod(layout)])

        @jax.jit
        def run(params):
            decoder = nnx.merge(graphdef, params)
            hidden = decoder.hidden(ids, segment_ids, dropout_key=jax.random.key(2))
            return jnp.where((segment_ids != 0)[..., None], decoder.logits(hidden) ** 2, 0).mean()

        with jax.set_mesh(mesh):
            value, gradient = jax.value_and_grad(run)(place(params, mesh))
        return float(value), jax.tree.map(np.asarray, jax.tree.leaves(gradient))

    config = replace(CONFIG, layers=2, delta=DeltaConfig((0,), 2, 4, 6, 8, 4))
    expected, expected_gradient = loss(config, (1, 1, 1))
    others = [(config, (1, 8, 1)), (config, (2, 2, 2)), (replace(config, remat="products"), (1, 1, 1))]
    for changed, layout in others:
        value, gradient = loss(changed, layout)
        assert value == pytest.approx(expected, rel=1e-5)
        for a, b in zip(gradient, expected_gradient, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_attention_is_attributed_by_the_layers_that_have_it(rng, model):
    prompt, answer = rng.integers(0, 40, 17), rng.integers(0, 40, 3)
    found = attribute(model, prompt, answer)
    np.testing.assert_array_equal(found.attention, attribute(model, prompt, answer, layers=[1]).attention)
    expected = 0.5 * found.attention + 0.5 * np.eye(20)[16:19, :17]  # a rollout through the one layer with attention
    np.testing.assert_allclose(found.rollout, expected, atol=1e-6)
    logits = model(np.concatenate([prompt, answer])[None])[0, 16:19]
    np.testing.assert_allclose(found.log_probs, jax.nn.log_softmax(logits)[np.arange(3), answer], atol=1e-5)
    with pytest.raises(ConfigError, match=r"layers: \(0,\) found, those with attention \(1,\) expected"):
        attribute(model, prompt, answer, layers=[0])
