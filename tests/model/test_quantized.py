"""Quantised kernels: their errors, their memory, and that a model computes the same with them as with dequantised floats."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model import hf
from ecgbyte_jax.model.build import build_model, check_fit, count
from ecgbyte_jax.model.config import DecoderConfig, LoraConfig, ModelConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.hf import load_pretrained, save_pretrained
from ecgbyte_jax.model.lora import add_lora, kernels, merge_lora, quantize_kernels
from ecgbyte_jax.model.quantized.formats import BLOCK, FORMATS, GROUP, LEVELS, dequantize, quantize
from ecgbyte_jax.model.quantized.kernel import QuantizedKernel
from ecgbyte_jax.model.sharding import bytes_a_device, make_mesh, parameter_shardings

CONFIG = DecoderConfig(
    vocab_size=48, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp_width=256, max_positions=64, rope_theta=1e4
)
# Dettmers et al. 2023, appendix E.
PUBLISHED_LEVELS = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of a small model that has learnt most of a noisy rule, and batches of it that it has not seen."""
    path = tmp_path_factory.mktemp("trained")
    graphdef, params = nnx.split(Decoder(CONFIG, nnx.Rngs(0)))
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, moments, ids):
        loss, gradient = jax.value_and_grad(lambda params: loss_of(nnx.merge(graphdef, params), ids))(params)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments, loss

    moments = optimizer.init(params)
    for number in range(120):
        params, moments, loss = step(params, moments, sequences(number))
    assert 1 < loss < 2.5 < np.log(CONFIG.vocab_size)
    save_pretrained(nnx.merge(graphdef, params), path)
    return path


def sequences(seed, rows=32, length=24):
    """Ids of which one in four is drawn at random, and the others follow from the two before them."""
    draws = np.random.default_rng(seed)
    ids = draws.integers(CONFIG.vocab_size, size=(length, rows))
    for place, ruled in enumerate(draws.random((length, rows)) < 0.75):
        if place > 1:
            ids[place] = np.where(ruled, (ids[place - 1] + 7 * (ids[place - 2] % 3)) % CONFIG.vocab_size, ids[place])
    return ids.T


def loss_of(model, ids):
    logits = model.logits(model.hidden(ids, jnp.ones_like(ids)))[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


def loaded(folder, kind, *, rank=4, **options):
    """The folder's model with LoRA, whose second matrices are not zero."""
    model, _ = load_pretrained(folder, quantize=kind, **options)
    if rank:
        add_lora(model, LoraConfig(rank=rank, dropout=0.0), jax.random.key(1))
        for _, layer, linear in kernels(model):
            linear.lora.b[...] += 0.01 * (1 + (layer or 0))
    return model


def test_the_levels_are_the_published_ones():
    np.testing.assert_allclose(LEVELS, PUBLISHED_LEVELS, atol=2e-7)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 255, 256, 300]), st.sampled_from([1e-30, 1e-3, 1.0, 1e4]))
def test_no_weight_is_off_by_more_than_promised(seed, n_out, size):
    draws = np.random.default_rng(seed)
    kernel = draws.standard_t(3, (2 * BLOCK, n_out)).astype(np.float32) * np.float32(size)
    kernel *= draws.choice([0, 1e-2, 1], (1, n_out))  # columns of zeros and of small weights
    kernel = kernel.astype(np.float32)
    parts = quantize(kernel, "int8")
    error = np.abs(dequantize(parts) - kernel)
    assert (error <= np.asarray(parts["scale"]) * 0.5001).all()
    parts = quantize(kernel, "nf4")
    error = np.abs(dequantize(parts) - kernel).reshape(2, BLOCK, n_out)
    absmax = np.abs(kernel).reshape(2, BLOCK, n_out).max(axis=1)
    scale = np.repeat(parts["absmax_scale"], GROUP, axis=1)[:, :n_out]
    assert (error <= np.maximum((absmax + scale / 2) * 0.15191, scale * 0.501)[:, None] * 1.0001).all()


def slow_nf4(kernel):
    """The kernel [n_in, n_out] after nf4, weight by weight."""
    n_in, n_out = kernel.shape
    result = np.zeros_like(kernel)
    for top in range(0, n_in, BLOCK):
        block = kernel[top : top + BLOCK]
        absmax = np.abs(block).max(axis=0)
        for left in range(0, n_out, GROUP):
            group = absmax[left : left + GROUP]
            low, step = group.min(), (group.max() - group.min()) / np.float32(255)
            for column in range(left, min(left + GROUP, n_out)):
                code = np.round((absmax[column] - low) / step) if step > 0 else np.float32(0)
                read = low + step * code
                for row in range(BLOCK):
                    level = LEVELS[np.argmin(np.abs(LEVELS - block[row, column] / read))] if read > 0 else 0
                    result[top + row, column] = level * read
    return result


def test_both_formats_are_those_of_a_slow_reference(rng):
    kernel = rng.normal(0, 0.02, (2 * BLOCK, GROUP + 40)).astype(np.float32)
    kernel[:, 5] = 0
    np.testing.assert_allclose(dequantize(quantize(kernel, "nf4")), slow_nf4(kernel), atol=1e-8)
    scale = np.abs(kernel).max(axis=0) / np.float32(127)
    expected = np.round(np.divide(kernel, scale, where=scale > 0, out=np.zeros_like(kernel))) * scale
    np.testing.assert_allclose(dequantize(quantize(kernel, "int8")), expected, atol=1e-8)


@pytest.mark.parametrize("kind, bits", [("int8", 8 + 32 / 512), ("nf4", 4 + 8 / 64 + 2 * 32 / (64 * 256))])
def test_a_weight_takes_its_bits_and_is_counted_once(kind, bits):
    kernel = nnx.eval_shape(lambda: QuantizedKernel(jnp.zeros((3, 512, 512)), kind))
    assert kernel.shape == (3, 512, 512)
    assert 8 * sum(part.size * part.dtype.itemsize for part in jax.tree.leaves(kernel)) == bits * 3 * 512**2
    assert count(nnx.state(kernel)) == 3 * 512**2


@pytest.mark.parametrize("kind", FORMATS)
def test_stacked_kernels_are_quantised_like_single_ones(kind, rng):
    layers = rng.normal(size=(3, 128, 96)).astype(np.float32)
    for layer, kernel in zip(dequantize(quantize(layers, kind)), layers):
        np.testing.assert_array_equal(layer, dequantize(quantize(kernel, kind)))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_loading_holds_one_kernel_in_floats_at_a_time(folder, kind, scan, monkeypatch):
    plain, _ = load_pretrained(folder)
    expected = {(name, layer): dequantize(quantize(linear.kernel[...], kind)) for name, layer, linear in kernels(plain)}
    sizes = {linear.kernel.shape for _, _, linear in kernels(plain)}
    size = bytes_a_device(nnx.state(plain))
    before = jax.live_arrays()
    made, seen = hf._quantizer, []

    def watched(*given):
        def watch(floats):
            floats_here = [array for array in jax.live_arrays() if array.shape in sizes and array.dtype == jnp.float32]
            seen.append(len({id(array) for array in floats_here} - {id(array) for array in before}))
            return made(*given)(floats)

        return watch

    monkeypatch.setattr(hf, "_quantizer", watched)
    model, _ = load_pretrained(folder, quantize=kind, scan_layers=scan)
    assert seen == [1] * len(expected)
    assert bytes_a_device(nnx.state(model)) < {"int8": 0.34, "nf4": 0.22}[kind] * size  # the embedding and norms are floats
    for name, layer, linear in kernels(model):
        floats = linear.kernel.floats()
        for number in range(CONFIG.layers) if layer is None else (layer,):
            own = floats[number] if layer is None else floats
            np.testing.assert_array_equal(own, expected[name, number], err_msg=f"{name} {number}")


@pytest.mark.parametrize(
    "kind, scan",
    [
        ("nf4", True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("int8", True), ("int8", False), ("nf4", False)]),
    ],
)
def test_losses_and_gradients_are_those_on_the_dequantised_base(folder, kind, scan):
    quantised, floats = (loaded(folder, kind, scan_layers=scan) for _ in range(2))
    for _, _, linear in kernels(floats):
        linear.kernel = nnx.Param(linear.kernel.floats())

    def run(model):
        graphdef, trained, frozen = nnx.split(model, nnx.LoRAParam, ...)
        return jax.jit(jax.value_and_grad(lambda t: loss_of(nnx.merge(graphdef, t, frozen), sequences(900, 4))))(trained)

    (loss, gradient), (expected_loss, expected) = run(quantised), run(floats)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    for (path, leaf), (_, other) in zip(nnx.to_flat_state(gradient), nnx.to_flat_state(expected), strict=True):
        np.testing.assert_allclose(leaf[...], other[...], atol=1e-5, err_msg=str(path))
        assert np.abs(other[...]).max() > 1e-5


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_in_floats_is_kept_for_the_backward_pass(kind, rng):
    kernel = QuantizedKernel(jnp.asarray(rng.normal(size=(128, 96)), jnp.float32), kind)
    y, backward = jax.vjp(kernel.multiply, jnp.ones((4, 128), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    kept = [leaf for leaf in jax.tree.leaves(backward) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert sum(leaf.size for leaf in kept) < 128 * 96 / 10  # scales and offsets


@pytest.mark.parametrize("kind", FORMATS)
def test_a_step_over_stacked_layers_never_holds_all_of_them_in_floats(kind):
    config = replace(CONFIG, layers=16, scan_layers=True)

    def make():
        model = quantize_kernels(Decoder(config, nnx.Rngs(0)), kind)
        add_lora(model, LoraConfig(rank=1, dropout=0.0), jax.random.key(1))
        return nnx.split(model, nnx.LoRAParam, ...)

    graphdef, trained, frozen = jax.eval_shape(make)

    def loss(trained, frozen):
        return loss_of(nnx.merge(graphdef, trained, frozen), sequences(900, 1, 4))

    used = jax.jit(jax.value_and_grad(loss)).lower(trained, frozen).compile().memory_analysis().temp_size_in_bytes
    assert used < 0.4 * 4 * count(frozen)  # of all layers in floats; 0.16 were measured, among it the layers' activations


@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_split_over_a_mesh_is_the_unsplit_one(folder, kind):
    whole, mesh = loaded(folder, kind, rank=0), make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        split = loaded(folder, kind, rank=0, shard=partial(parameter_shardings, mesh=mesh))
        logits = split(jnp.arange(24).reshape(2, 12))
    parts = dict(nnx.to_flat_state(nnx.state(split)))
    for path, leaf in nnx.to_flat_state(nnx.state(whole)):
        np.testing.assert_array_equal(leaf[...], parts[path][...], err_msg=str(path))
    codes = parts["blocks", 0, "mlp", "up", "kernel", kind][...]
    assert codes.addressable_shards[0].data.size == codes.size // 4
    np.testing.assert_allclose(logits, whole(jnp.arange(24).reshape(2, 12)), atol=1e-4)


def test_a_mesh_that_does_not_divide_the_blocks_is_refused(folder):
    shard = partial(parameter_shardings, mesh=make_mesh(2, 4, 1))
    with pytest.raises(ConfigError, match=r"^mesh\.fsdp: 4 found, a divisor of 2 expected, the nf4 blocks of blocks/0/att"):
        load_pretrained(folder, quantize="nf4", shard=shard)
    load_pretrained(folder, quantize="int8", shard=shard)


def test_a_model_whose_rows_are_no_whole_blocks_is_refused():
    model, lora = ModelConfig(pretrained="m", quantize="nf4"), LoraConfig(rank=1)
    with pytest.raises(ConfigError, match=r"quantize: 'nf4' found for a model of mlp_width 96, a multiple of 64 expected"):
        check_fit(model, lora, 8, replace(CONFIG, mlp_width=96))
    check_fit(replace(model, quantize="int8"), lora, 8, replace(CONFIG, mlp_width=96))


@pytest.mark.parametrize("kind, most", [("int8", 0.01), ("nf4", 0.03)])
def test_a_trained_model_loses_little(folder, kind, most):
    def loss(kind):
        model = build_model(
            ModelConfig(pretrained=str(folder), dtype="bfloat16", quantize=kind, vocab_multiple=1),
            *(LoraConfig(rank=4), 0, 64, CONFIG.vocab_size, make_mesh(8, 1, 1)),
        )
        graphdef, state = nnx.split(model.model(model.trained))
        return float(jax.jit(lambda state: loss_of(nnx.merge(graphdef, state), sequences(900, 256)))(state))

    plain, quantised = loss(""), loss(kind)
    print(f"loss {plain:.4f} in bfloat16, {quantised:.4f} in {kind}")
    assert quantised != plain
    assert abs(quantised - plain) < most * plain


@pytest.mark.parametrize("kind", FORMATS)
def test_a_merged_model_is_written_in_floats_and_answers_alike(folder, kind, tmp_path):
    model, ids = loaded(folder, kind), jnp.arange(24).reshape(2, 12)
    expected = model(ids)
    assert np.abs(expected - load_pretrained(folder)[0](ids)).max() > 0.01
    merge_lora(model)
    save_pretrained(model, tmp_path)
    again, _ = load_pretrained(tmp_path)
    np.testing.assert_allclose(again(ids), expected, atol=1e-4)
