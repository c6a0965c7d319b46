"""The kernels of generation, interpreted, beside plain attention: for the prompt, and from one token to a cache."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.model import generate as generation
from ecgbyte_jax.model.attention import attend
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.kernels.decode import decode_attention, decodes, padded
from ecgbyte_jax.model.sharding import make_mesh

CONFIG = DecoderConfig(
    vocab_size=50, width=32, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_width=40, max_positions=256, rope_theta=1e4
)
FLASH = replace(CONFIG, attention_kernel="flash")


def prompts(rows: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) [rows, tokens], the second row padded on the left."""
    mask = np.ones((rows, tokens), int)
    mask[1, : tokens // 3] = 0
    return np.random.default_rng(tokens).integers(0, 50, (rows, tokens)), mask


def generated(config: DecoderConfig, shared: bool, layout: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """20 tokens and their log-probabilities after 4 prompts, which begin with 2 shared prefixes or with none."""
    how = {"shared": prompts(2, 45)} if shared else {}
    mesh = make_mesh(*(layout or (1, 1, 1)), jax.devices()[: int(np.prod(layout or 1))])
    with jax.set_mesh(mesh):
        model = Decoder(config, nnx.Rngs(0))
        tokens, log_probs = generate(model, *prompts(4, 9 if shared else 70), 20, return_log_probs=True, **how)
    return np.asarray(tokens), np.asarray(log_probs)


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared prefixes"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"windows": (20, 0), "attention_cap": 5.0, "query_scale": 0.2},
        pytest.param({"kv_heads": 4, "head_dim": 32}, marks=pytest.mark.slow),
        pytest.param({"kv_heads": 1}, marks=pytest.mark.slow),
        pytest.param({"heads": 2, "kv_heads": 1, "head_dim": 256}, marks=pytest.mark.slow),
    ],
    ids=["grouped", "window and cap", "a key head a head", "one key head", "wide heads"],
)
def test_the_kernel_generates_what_plain_attention_does(changes, shared):
    plain, fused = (generated(replace(config, **changes), shared) for config in (CONFIG, FLASH))
    np.testing.assert_array_equal(fused[0], plain[0])
    np.testing.assert_allclose(fused[1], plain[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(2, 1, 1), (1, 2, 2), (1, 1, 4), (4, 1, 1)], ids=str)
def test_the_kernel_is_split_over_a_mesh(layout):
    """4 prompts of 2 shared prefixes, which four devices cannot split: plain attention computes these."""
    plain, fused = generated(CONFIG, True), generated(FLASH, True, layout)
    np.testing.assert_array_equal(fused[0], plain[0])
    np.testing.assert_allclose(fused[1], plain[1], atol=1e-5)


def attention(dtype: str, config: DecoderConfig, fused: bool) -> np.ndarray:
    """Of one token of each of 4 rows to a part of 2 rows, one of 4, and itself."""
    keys = iter(jax.random.split(jax.random.key(0), 9))

    def draw(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape).astype(jnp.bfloat16).astype(dtype)

    q, own = draw(4, 1, 4, 16), (draw(4, 2, 16, 1), draw(4, 2, 1, 16))
    parts = [(draw(rows, 2, 16, tokens), draw(rows, 2, tokens, 16)) for rows, tokens in ((2, 70), (4, 64))]
    seen = [jax.random.bernoulli(next(keys), 0.7, (4, tokens)) for tokens in (70, 64)]
    if fused:
        mixed = decode_attention(q, own, [(*part, there) for part, there in zip(parts, seen)], config)
    else:
        masks = [there[:, None, None] for there in (*seen, jnp.ones((4, 1), bool))]
        mixed = attend(q, [*parts, own], masks, config)
    return np.asarray(mixed.astype(jnp.float32))


def test_the_kernel_errs_in_bfloat16_as_plain_attention_does():
    exact = attention("float32", CONFIG, False)
    np.testing.assert_allclose(attention("float32", CONFIG, True), exact, atol=1e-6)
    ours, theirs = (attention("bfloat16", CONFIG, fused) - exact for fused in (True, False))
    assert 0 < np.sqrt(np.mean(ours**2)) <= 1.1 * np.sqrt(np.mean(theirs**2))


def test_plain_attention_computes_what_the_kernel_cannot():
    assert decodes(FLASH, 4, [2, 4])
    assert not decodes(CONFIG, 4, [4]) and not decodes(replace(FLASH, attention_kernel="splash"), 4, [4])
    assert not decodes(replace(FLASH, head_dim=24), 4, [4]) and not decodes(replace(FLASH, head_dim=8), 4, [4])
    with jax.set_mesh(make_mesh(2, 1, 1, jax.devices()[:2])):
        assert decodes(FLASH, 4, [2]) and not decodes(FLASH, 4, [1]) and not decodes(FLASH, 3, [3])


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared prefixes"])
@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param({"windows": (20, 0), "attention_cap": 5.0}, marks=pytest.mark.slow)],
    ids=["grouped", "window and cap"],
)
def test_prompts_through_tpus_kernel_are_continued_as_through_plain_attention(changes, shared):
    plain, fused = (generated(replace(CONFIG, attention_kernel=kernel, **changes), shared) for kernel in ("", "splash"))
    np.testing.assert_array_equal(fused[0], plain[0])
    np.testing.assert_allclose(fused[1], plain[1], atol=1e-5)


def test_one_kernel_a_layer_runs_for_the_prompt_and_for_a_token_and_finds_no_cut_tile():
    graphdef, state = nnx.split(Decoder(FLASH, nnx.Rngs(0)))
    parts = [(jnp.zeros((4, 70), jnp.int32), jnp.ones((4, 70), bool))]
    greedy, key = generation._Sampling(0.0, 0, 1.0), jax.random.key(0)
    program = str(generation._generate.trace(graphdef, state, parts, None, key, 20, (), 0, greedy).jaxpr)
    assert program.count("pallas_call[") == 2 * FLASH.layers
    # The prompt's last token is fed with the new ones; the parts of the cache are widened once, and not for every token.
    assert program.count(":f32[4,2,16,128] = pad[") == program.count(":f32[4,2,128,16] = pad[") == FLASH.layers
    assert padded(69) == 128
