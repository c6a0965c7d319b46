"""Attributions against NumPy by hand, finite differences, and transformers' own attention weights."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.attribution import attribute, run_blocks
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.hf import load_pretrained
from ecgbyte_jax.model.lora import LoraConfig, add_lora

CONFIG = DecoderConfig(
    vocab_size=40, width=24, layers=3, heads=4, kv_heads=2, head_dim=6, mlp_width=32, max_positions=100, rope_theta=1e4,
    windows=(0, 5, 0), attention_cap=3.0,
)  # fmt: skip
PROMPT, ANSWER = np.arange(1, 18), np.array([30, 31, 2])


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(CONFIG, nnx.Rngs(0))


def layer_weights(model, ids) -> np.ndarray:
    """[L, T, T] of the unpadded sequence, mean over heads."""
    return np.asarray(jitted_weights(*nnx.split(model), jnp.asarray(ids)[None]))


@partial(jax.jit, static_argnums=0)
def jitted_weights(graphdef, state, ids):
    model = nnx.merge(graphdef, state)
    positions = jnp.arange(ids.shape[1])[None]
    shares = jnp.full(model.config.heads, 1 / model.config.heads)
    _, weights = run_blocks(model, model.embed(ids, positions), ids >= 0, positions, shares)
    return jnp.stack([mean for _, mean in weights])


def test_a_token_s_weights_are_on_itself_and_earlier_tokens_and_sum_to_1(model):
    weights = layer_weights(model, np.concatenate([PROMPT, ANSWER]))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    assert (np.triu(weights, 1) == 0).all() and (weights >= 0).all()
    back = np.subtract.outer(np.arange(20), np.arange(20))
    assert (weights[1][back >= 5] == 0).all() and weights[0][back >= 5].max() > 0  # the second layer's window


def test_rows_are_those_of_the_tokens_that_predicted_the_answer(model):
    attribution = attribute(model, PROMPT, ANSWER)
    weights = layer_weights(model, np.concatenate([PROMPT, ANSWER]))
    np.testing.assert_allclose(attribution.attention, weights.mean(axis=0)[16:19, :17], atol=1e-6)
    np.testing.assert_allclose(attribution.attention[0].sum(), 1, atol=1e-6)  # no answer token precedes the first one
    logits = model(np.concatenate([PROMPT, ANSWER])[None])[0]
    expected = [jax.nn.log_softmax(logits[16 + i])[token] for i, token in enumerate(ANSWER)]
    np.testing.assert_allclose(attribution.log_probs, expected, atol=1e-5)


def test_layers_and_heads_can_be_chosen(model):
    single = [[attribute(model, PROMPT, ANSWER, [i], [j]).attention for j in range(4)] for i in range(3)]
    chosen = attribute(model, PROMPT, ANSWER, layers=(0, 2), heads=(1, 3)).attention
    np.testing.assert_allclose(chosen, np.mean([single[i][j] for i in (0, 2) for j in (1, 3)], axis=0), atol=1e-6)
    assert np.abs(chosen - attribute(model, PROMPT, ANSWER).attention).max() > 1e-3
    for wrong in ({"layers": [3]}, {"heads": [-1]}):
        with pytest.raises(ConfigError, match="numbers from 0 to"):
            attribute(model, PROMPT, ANSWER, **wrong)


def test_rollout_is_that_of_abnar_and_zuidema(model):
    """Section 3: A = 0.5 W + 0.5 I, rows normalised, multiplied from the first layer up."""
    rollout = np.eye(20)
    for weights in layer_weights(model, np.concatenate([PROMPT, ANSWER])).astype(np.float64):
        mixed = 0.5 * weights + 0.5 * np.eye(20)
        rollout = mixed / mixed.sum(axis=-1, keepdims=True) @ rollout
    attribution = attribute(model, PROMPT, ANSWER)
    np.testing.assert_allclose(attribution.rollout, rollout[16:19, :17], atol=1e-6)
    np.testing.assert_allclose(attribution.rollout[0].sum(), 1, atol=1e-6)


def test_gradient_times_input_is_the_slope_of_the_log_probability_along_each_token(model):
    """By central differences: d/ds of log p(answer | token t's embedding times 1 + s)."""
    ids = jnp.asarray(np.concatenate([PROMPT, ANSWER]))[None]
    positions = jnp.arange(20)[None]
    embedded = model.embed(ids, positions)

    @jax.jit
    def log_prob(scale):
        hidden, _ = run_blocks(model, embedded * scale[None, :, None], ids >= 0, positions, None)
        rows = jax.nn.log_softmax(model.logits(hidden)[0, 16:19])
        return rows[jnp.arange(3), ANSWER].sum()

    step = 1e-2 * np.eye(20, dtype=np.float32)[:17]
    slopes = [(log_prob(1 + s) - log_prob(1 - s)) / 2e-2 for s in step]
    np.testing.assert_allclose(attribute(model, PROMPT, ANSWER).gradient_input, slopes, rtol=2e-2, atol=2e-3)


def test_the_length_of_the_padding_changes_nothing(model):
    """64 and 65 tokens are padded to different lengths."""
    for length in (61, 62):
        prompt = np.resize(PROMPT, length)
        weights = layer_weights(model, np.concatenate([prompt, ANSWER])).mean(axis=0)
        np.testing.assert_allclose(attribute(model, prompt, ANSWER).attention, weights[-4:-1, :-3], atol=1e-6)


@pytest.mark.slow
def test_stacked_and_lora_models_are_attributed_as_they_answer(model):
    stacked = Decoder(DecoderConfig(**{**vars(CONFIG), "scan_layers": True}), nnx.Rngs(0))
    np.testing.assert_allclose(
        attribute(stacked, PROMPT, ANSWER).attention,
        layer_weights(stacked, np.concatenate([PROMPT, ANSWER])).mean(axis=0)[16:19, :17],
        atol=1e-6,
    )
    adapted = Decoder(CONFIG, nnx.Rngs(0))
    add_lora(adapted, LoraConfig(4, 8.0, 0.5, ("q", "v")), jax.random.key(0))
    plain = attribute(model, PROMPT, ANSWER)
    np.testing.assert_allclose(attribute(adapted, PROMPT, ANSWER).attention, plain.attention, atol=1e-6)  # b is 0
    for block in adapted.blocks:
        block.attention.q.lora.b[...] += 0.3
    changed = attribute(adapted, PROMPT, ANSWER)
    assert np.abs(changed.attention - plain.attention).max() > 1e-3
    logits = adapted(np.concatenate([PROMPT, ANSWER])[None])[0]
    np.testing.assert_allclose(changed.log_probs[0], jax.nn.log_softmax(logits[16])[ANSWER[0]], atol=1e-5)


def test_empty_and_overlong_sequences_are_refused(model):
    for prompt, answer in (([], [1]), ([1], [])):
        with pytest.raises(ConfigError, match="at least one token each expected"):
            attribute(model, prompt, answer)
    with pytest.raises(ConfigError, match="at most the model's 100 positions expected"):
        attribute(model, np.ones(99), np.ones(2))


@pytest.mark.parametrize(
    "name", ["gemma2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama3", "mistral", "qwen3", "gpt2", "opt"))]
)
def test_weights_match_transformers(shared, name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    transformers = pytest.importorskip("transformers")
    folder = shared / "fixtures/hf_torch" / name
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = np.random.default_rng(1).integers(0, json.loads((folder / "config.json").read_text())["vocab_size"], 24)
    with torch.no_grad():
        expected = reference(torch.tensor(ids[None]), output_attentions=True).attentions  # L of [1, H, T, T]
    model, _ = load_pretrained(folder)
    for layer, weights in enumerate(expected):
        for head in range(weights.shape[1]):
            attention = attribute(model, ids[:21], ids[21:], [layer], [head]).attention
            np.testing.assert_allclose(attention, weights[0, head, 20:23, :21], atol=2e-5)
