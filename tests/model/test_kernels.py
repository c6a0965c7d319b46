"""The fused kernels, interpreted, beside plain attention: values and gradients."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.model.attention import attend, causal_mask, count_positions, within
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.kernels.fused import first_seen, fused_attention, kernel_for
from ecgbyte_jax.model.sharding import batch_sharding, make_mesh

KERNELS = ("flash", "splash")
CONFIG = DecoderConfig(
    vocab_size=50, width=32, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_width=40, max_positions=256, rope_theta=1e4
)


def segments(tokens: int) -> jax.Array:
    """A row that is padded on the left, and a packed one with padding at its end."""
    rows = np.zeros((2, tokens), np.int32)
    rows[0, 7:] = 1
    rows[1, : tokens // 3], rows[1, tokens // 3 : tokens - 9] = 1, 2
    return jnp.array(rows)


def values_and_gradients(config: DecoderConfig, tokens: int, dtype: str = "float32") -> list[np.ndarray]:
    """The mixed values of real tokens, and the gradients of queries, keys and values of a weighted sum of them."""
    ids, window = segments(tokens), jnp.int32(config.layer_windows[0])
    positions, real = count_positions(ids), (ids != 0)[..., None, None]
    keys = jax.random.split(jax.random.key(0), 4)
    h, kv, c = config.heads, config.kv_heads, config.head_dim
    shapes = [(2, tokens, h, c), (2, kv, c, tokens), (2, kv, tokens, c)]
    inputs = [jax.random.normal(key, shape, "float32").astype(dtype) for key, shape in zip(keys, shapes)]
    weights = real * jax.random.normal(keys[3], shapes[0])

    def mix(q, k, v):
        if config.attention_kernel:
            return fused_attention(q, k, v, ids, window, config)
        mask = causal_mask(ids)
        return attend(q, [(k, v)], [within(mask, positions, positions, window)], config)

    def mixed(*inputs):
        values = mix(*inputs) * real
        return jnp.sum(values * weights), values

    gradients, values = jax.jit(jax.grad(mixed, (0, 1, 2), has_aux=True))(*inputs)
    return [np.asarray(array.astype(jnp.float32)) for array in (values, *gradients)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, 100),
        pytest.param({"heads": 3, "kv_heads": 3, "head_dim": 24}, 150, marks=pytest.mark.slow),
        pytest.param({"kv_heads": 1, "head_dim": 64, "attention_cap": 5.0, "query_scale": 0.2}, 70, marks=pytest.mark.slow),
        pytest.param({"windows": (20, 20)}, 150, marks=pytest.mark.slow),
        pytest.param({"windows": (9, 0), "attention_cap": 3.0}, 50, marks=pytest.mark.slow),
    ],
    ids=["grouped", "odd width", "cap", "window", "one window of two"],
)
def test_a_kernel_gives_plain_attention_s_values_and_gradients(kernel, changes, tokens):
    config = replace(CONFIG, **changes)
    for plain, fused in zip(
        values_and_gradients(config, tokens), values_and_gradients(replace(config, attention_kernel=kernel), tokens)
    ):
        np.testing.assert_allclose(fused, plain, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("width", [64, 128, 256])
def test_a_kernel_takes_wide_heads(kernel, width):
    config = replace(CONFIG, head_dim=width, heads=2, kv_heads=1)
    for plain, fused in zip(
        values_and_gradients(config, 200), values_and_gradients(replace(config, attention_kernel=kernel), 200)
    ):
        np.testing.assert_allclose(fused, plain, atol=2e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_errs_in_bfloat16_as_plain_attention_does(kernel):
    exact = values_and_gradients(CONFIG, 100)  # of other inputs than the rounded ones: both err by that too
    plain = values_and_gradients(CONFIG, 100, "bfloat16")
    fused = values_and_gradients(replace(CONFIG, attention_kernel=kernel), 100, "bfloat16")
    for right, ours, theirs in zip(exact, fused, plain, strict=True):
        assert np.sqrt(np.mean((ours - right) ** 2)) <= 1.1 * np.sqrt(np.mean((theirs - right) ** 2))


def test_a_token_s_first_seen_place_follows_examples_padding_and_window():
    ids = jnp.array([[0, 0, 1, 1, 1, 2, 2, 0]])
    assert first_seen(ids, jnp.int32(0)).tolist() == [[0, 1, 2, 2, 2, 5, 5, 7]]
    assert first_seen(ids, jnp.int32(2)).tolist() == [[0, 1, 2, 2, 3, 5, 5, 7]]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("tensor", "kv_heads"), [(4, 1), (4, 2), (2, 4)])
def test_each_device_attends_for_its_own_heads_alone(kernel, tensor, kv_heads):
    """Also where there are fewer key heads than devices."""
    config = replace(CONFIG, kv_heads=kv_heads, attention_kernel=kernel)
    q, ids = jnp.ones((1, 20, 4, 16)), jnp.ones((1, 20), jnp.int32)
    with jax.set_mesh(make_mesh(1, 1, tensor, jax.devices()[:tensor])):
        k, v = jnp.ones((1, kv_heads, 16, 20)), jnp.ones((1, kv_heads, 20, 16))
        program = jax.make_jaxpr(lambda *inputs: fused_attention(*inputs, ids, 0, config))(q, k, v)
    (mapped,) = (equation for equation in program.eqns if equation.primitive.name == "shard_map")
    shapes = {variable.aval.shape for variable in mapped.params["jaxpr"].invars}
    heads, key_heads = 4 // tensor, max(kv_heads // tensor, 1)
    assert shapes >= {(1, 20, heads, 16), (1, key_heads, 16, 20), (1, key_heads, 20, 16)}


def test_a_known_window_leaves_one_kernel_of_those_for_several_windows():
    config = replace(CONFIG, windows=(6, 0), attention_kernel="splash")
    q, k, v, ids = jnp.ones((1, 20, 4, 16)), jnp.ones((1, 2, 16, 20)), jnp.ones((1, 2, 20, 16)), jnp.ones((1, 20), jnp.int32)
    traced, known = (
        str(jax.make_jaxpr(lambda *inputs, window=window: fused_attention(*inputs, ids, window, config))(q, k, v))
        for window in (jnp.int32(6), 6)
    )
    assert [program.count("pallas_call[") for program in (traced, known)] == [2, 1]


def test_each_platform_has_its_kernel_or_a_reason():
    assert kernel_for("cuda", 64, "bfloat16") == ("flash", "") == kernel_for("gpu", 256, "float32")
    assert kernel_for("tpu", 64, "bfloat16") == ("splash", "")
    assert kernel_for("cpu", 64, "float32") == ("", "no kernel for 'cpu'")
    assert kernel_for("tpu", 512, "bfloat16") == ("", "no kernel for heads of 512 channels, 256 at most")
    assert kernel_for("tpu", 64, "float16") == ("", "no kernel for float16 on TPUs")


def loss_and_gradients(kernel: str, mesh=None, **changes) -> tuple[jax.Array, nnx.State]:
    graphdef, state = nnx.split(Decoder(replace(CONFIG, attention_kernel=kernel, **changes), nnx.Rngs(0)))
    ids = np.random.default_rng(0).integers(0, 50, (4, 40)).astype(np.int32)
    mask = np.tile(np.asarray(segments(40)), (2, 1))

    def loss(state, ids, mask):
        hidden = nnx.merge(graphdef, state).hidden(ids, mask)
        return jnp.sum(jnp.where(mask[..., None] != 0, jnp.sin(hidden), 0.0))

    if mesh is None:
        return jax.jit(jax.value_and_grad(loss))(state, ids, mask)
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss))(state, *jax.device_put((ids, mask), batch_sharding(mesh)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "changes"),
    [
        ("flash", {"windows": (6, 0), "scan_layers": True, "remat": "products"}),
        ("splash", {"windows": (6, 0), "remat": "attention"}),
    ],
)
def test_a_model_with_a_kernel_has_the_plain_model_s_gradients(kernel, changes):
    changes |= {"windows": (6, 0)}
    plain, fused = loss_and_gradients("", **changes), loss_and_gradients(kernel, **changes)
    for right, ours in zip(jax.tree.leaves(plain), jax.tree.leaves(fused), strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(2, 2, 1), (1, 2, 2), (1, 1, 4)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_is_split_over_a_mesh(kernel, layout):
    devices = jax.devices()[: int(np.prod(layout))]
    plain, fused = loss_and_gradients(""), loss_and_gradients(kernel, make_mesh(*layout, devices))
    for right, ours in zip(jax.tree.leaves(plain), jax.tree.leaves(fused), strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-4)
