from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.random import key_data

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model import attention
from ecgbyte_jax.model import lora as lora_module
from ecgbyte_jax.model.config import KERNELS, DecoderConfig, DynamicScaling, LongScaling
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.layers import float32_product
from ecgbyte_jax.model.lora import LoraConfig, LowRankPath, add_lora, kernels, merge_lora, unmerge_lora

CONFIG = DecoderConfig(
    vocab_size=50, width=24, layers=2, heads=6, kv_heads=2, head_dim=8, mlp_width=40, max_positions=64, rope_theta=1e4
)
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.5, targets=("q", "down"))


def make(**changes) -> Decoder:
    return Decoder(replace(CONFIG, **changes), nnx.Rngs(0))


@pytest.fixture
def ids(rng) -> np.ndarray:
    return rng.integers(0, 50, (3, 12)).astype(np.int32)


def test_logits_are_float32_of_the_vocabulary(ids):
    logits = make(dtype="bfloat16", param_dtype="bfloat16")(ids)
    assert logits.shape == (3, 12, 50) and logits.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_head_s_gradients_are_products_of_bfloat16_in_such_models_alone(rng, dtype):
    x, kernel = (jnp.array(rng.normal(size=shape), dtype) for shape in ((2, 5, 24), (24, 50)))
    weights = jnp.array(rng.normal(size=(2, 5, 50)), jnp.float32)

    def weighted(x, kernel, product=float32_product):
        return jnp.sum(weights * product(x, kernel))

    dots = [line for line in str(jax.make_jaxpr(jax.grad(weighted, (0, 1)))(x, kernel)).splitlines() if "dot_general" in line]
    found = jax.grad(weighted, (0, 1))(x, kernel)
    exact = jax.grad(weighted, (0, 1))(*(operand.astype(jnp.float32) for operand in (x, kernel)), jnp.matmul)
    for ours, right in zip(found, exact, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(
            ours.astype(jnp.float32), right, rtol=0, atol={"float32": 1e-5, "float16": 0.02, "bfloat16": 0.1}[dtype]
        )
    assert all(f":{'bf16' if dtype == 'bfloat16' else 'f32'}[" in line for line in dots[-2:])


def test_a_token_sees_only_earlier_tokens(ids):
    model, changed = make(), ids.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    before, after = model(ids), model(changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_padding_on_the_left_changes_nothing(ids, tied):
    model = make(tied_embeddings=tied)
    padded = np.pad(ids, ((0, 0), (5, 0)), constant_values=9)
    mask = np.arange(17) >= np.full((3, 1), 5)
    np.testing.assert_allclose(model(padded, mask)[:, 5:], model(ids), atol=1e-5)


def test_tokens_without_a_past_extend_to_the_states_of_the_whole_sequence(ids):
    model, there = make(), np.ones(ids.shape, bool)
    there[1, :4] = False
    np.testing.assert_allclose(model.extend(ids, there)[0][there], model.hidden(ids, there)[there], atol=1e-6)


def test_given_positions_are_used(ids):
    model = make()
    np.testing.assert_array_equal(model(ids, None, np.tile(np.arange(12), (3, 1))), model(ids))
    assert np.abs(model(ids, None, 3 * np.tile(np.arange(12), (3, 1))) - model(ids)).max() > 1e-3


def assert_same_trees(first, second, atol: float) -> None:
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("remat", ["products", "attention", "inputs"])
@pytest.mark.parametrize("scan", [False, True])
def test_rematerialisation_changes_no_gradient(ids, remat, scan):
    def gradient(remat: str):
        graphdef, state = nnx.split(make(remat=remat, scan_layers=scan))
        return jax.jit(jax.grad(lambda s: nnx.merge(graphdef, s)(ids).var()))(state)

    assert_same_trees(gradient(""), gradient(remat), 1e-6)


_DIFFERENT_LAYERS = {"windows": (3, 0), "local_rope_theta": 10.0, "unrotated_layers": (1,), "qk_norm": "all"}


@pytest.mark.parametrize("changes", [pytest.param({}, marks=pytest.mark.slow), _DIFFERENT_LAYERS])
def test_stacked_layers_are_the_same_model(ids, changes):
    lora = replace(LORA, targets=("q", "v", "down"))
    looped, scanned = make(**changes), make(scan_layers=True, **changes)
    np.testing.assert_allclose(scanned(ids), looped(ids), atol=1e-5)
    for model in (looped, scanned):
        add_lora(model, lora, jax.random.key(1))
        for _, layer, linear in kernels(model):
            if linear.lora is not None:
                b = linear.lora.b
                draws = jax.random.normal(jax.random.key(2), (2, *b.shape[-2:]))
                linear.lora.b = nnx.LoRAParam(draws if layer is None else draws[layer])
    np.testing.assert_allclose(scanned(ids), looped(ids), atol=1e-4)

    def drop(model: Decoder) -> jax.Array:
        graphdef, state = nnx.split(model)
        key = jax.random.key(3)
        return jax.jit(lambda s: (m := nnx.merge(graphdef, s)).logits(m.hidden(ids, dropout_key=key)))(state)

    dropped = [drop(model) for model in (looped, scanned)]
    np.testing.assert_allclose(dropped[1], dropped[0], atol=1e-4)
    mask = np.ones_like(ids)
    np.testing.assert_array_equal(generate(scanned, ids, mask, 5), generate(looped, ids, mask, 5))


def test_a_window_hides_tokens_further_back(ids):
    model, changed = make(windows=(3, 3)), ids.copy()
    changed[:, 0] = (changed[:, 0] + 1) % 50
    difference = np.abs(model(ids) - model(changed)).max(axis=(0, 2))
    assert (difference[:5] > 1e-6).all()  # two layers with windows of three reach four back
    np.testing.assert_array_equal(difference[5:], 0)


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ConfigError, match="rows of 65 tokens found, at most the model's 64 positions expected"):
        make()(np.zeros((1, 65), np.int32))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"input_ids": [[1, 50]]}, "input_ids: 50 found, 0 to 49 of this model expected"),
        ({"input_ids": [[1, -1]]}, "input_ids: -1 found"),
        ({"input_ids": [[1, 2]], "positions": [[0, 64]]}, "positions: 64 found, 0 to 63"),
    ],
)
def test_ids_and_positions_outside_the_tables_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        make(rope_theta=None)(**{name: np.array(numbers) for name, numbers in given.items()})


def test_positions_at_which_dynamic_scaling_would_change_the_base_are_refused():
    model = make(rope_scaling=DynamicScaling(2.0))
    ids = np.array([[1, 2]])
    np.testing.assert_array_equal(model(ids, None, np.array([[0, 63]])), make()(ids, None, np.array([[0, 63]])))
    with pytest.raises(ConfigError, match="positions: 64 found, 0 to 63"):
        model(ids, None, np.array([[0, 64]]))


def test_each_example_in_a_row_has_the_rotary_frequencies_of_its_own_length(ids):
    scaling = LongScaling((1.0, 2.0, 3.0, 4.0), (4.0, 5.0, 6.0, 7.0), 5, 1.2)
    model = make(rope_scaling=scaling)
    segments = np.tile([1] * 7 + [2] * 5, (3, 1))  # a long example and a short one
    packed = model(ids, segments)
    np.testing.assert_allclose(packed[:, :7], model(ids[:, :7]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 7:], model(ids[:, 7:]), atol=1e-5)
    short = make(rope_scaling=replace(scaling, long_factors=scaling.short_factors))(ids, segments)
    np.testing.assert_allclose(packed[:, 7:], short[:, 7:], atol=1e-5)
    assert np.abs(packed[:, :7] - short[:, :7]).max() > 1e-3


def test_a_model_called_inside_jit_accepts_concrete_ids(ids):
    model = make(rope_theta=None)
    mask = jnp.ones((3, 12), int)
    np.testing.assert_allclose(jax.jit(lambda: model(ids, mask, np.tile(np.arange(12), (3, 1))))(), model(ids), atol=1e-5)


def test_merging_lora_keeps_the_logits_and_unmerging_restores_the_paths(ids):
    model = make()
    add_lora(model, LORA, jax.random.key(1))
    for block in model.blocks:
        block.mlp.down.lora.b[...] = jax.random.normal(jax.random.key(3), block.mlp.down.lora.b.shape)
    before, kernel = model(ids), np.asarray(model.blocks[0].mlp.down.kernel[...])
    paths = merge_lora(model)
    assert not nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))
    np.testing.assert_allclose(model(ids), before, atol=1e-4)
    unmerge_lora(model, paths)
    np.testing.assert_allclose(model.blocks[0].mlp.down.kernel[...], kernel, atol=1e-6)
    np.testing.assert_allclose(model(ids), before, atol=1e-4)


def test_generation_with_the_cache_equals_generation_without_it(ids):
    model = make()
    mask = np.arange(12) >= np.array([[0], [3], [7]])
    new = np.asarray(generate(model, ids, mask, 6))
    # One pass over the finished rows: every new token is the likeliest after its predecessors.
    rows, seen = np.concatenate([ids, new], 1), np.pad(mask, ((0, 0), (0, 6)), constant_values=True)
    np.testing.assert_array_equal(model(rows, seen).argmax(-1)[:, 11:-1], new)


def test_a_row_that_has_ended_is_padded_while_the_others_go_on(ids):
    model = make()
    free = np.asarray(generate(model, ids, np.ones_like(ids), 8))
    stop = int(free[0, 2])
    stopped = np.asarray(generate(model, ids, np.ones_like(ids), 8, stop_ids=(stop,), pad_id=49))
    for row, free_row in zip(stopped, free, strict=True):
        ends = np.flatnonzero(free_row == stop)
        end = ends[0] + 1 if ends.size else 8
        np.testing.assert_array_equal(row[:end], free_row[:end])
        assert (row[end:] == 49).all()
    assert (stopped[0, 3:] == 49).all()


def test_lora_has_no_effect_at_first_and_only_its_parameters_are_trained(ids):
    model = make()
    before = model(ids)
    add_lora(model, LORA, jax.random.key(1))
    np.testing.assert_array_equal(model(ids), before)
    paths = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))}
    kernels = ("attention/q", "mlp/down")
    assert paths == {f"blocks/{i}/{kernel}/lora/{part}" for i in (0, 1) for kernel in kernels for part in "ab"}


def test_gradients_of_a_lora_path_are_those_of_the_plain_product():
    shapes = {"x": (2, 5, 8), "a": (8, 3), "b": (3, 6), "weights": (2, 5, 6)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    x, a, b, weights = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes.values()))

    def of_path(x, a, b):
        return jnp.sum(weights * LowRankPath(a, b, 2.0, 0.0, "float32")(x, None))

    def of_product(x, a, b):
        return jnp.sum(weights * 2.0 * (x @ a @ b))

    for got, expected in zip(jax.grad(of_path, (0, 1, 2))(x, a, b), jax.grad(of_product, (0, 1, 2))(x, a, b)):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_lora_adds_its_scaled_product_to_the_kernel(ids):
    model = make()
    add_lora(model, LORA, jax.random.key(1))
    merged = make()
    for block, plain in zip(model.blocks, merged.blocks):
        for linear, target in ((block.attention.q, plain.attention.q), (block.mlp.down, plain.mlp.down)):
            linear.lora.b[...] = jax.random.normal(jax.random.key(3), linear.lora.b.shape)
            target.kernel[...] = target.kernel[...] + 8.0 / 4 * linear.lora.a[...] @ linear.lora.b[...]
    np.testing.assert_allclose(model(ids), merged(ids), atol=1e-4)


def test_dropout_needs_a_key_and_keeps_the_mean():
    x = jnp.ones((400, 24))
    model = make()
    add_lora(model, LORA, jax.random.key(1))
    lora = model.blocks[0].attention.q.lora
    lora.b[...] = jnp.ones(lora.b.shape)
    still, dropped = lora(x, None), lora(x, jax.random.key(0))
    np.testing.assert_array_equal(still[0], still[1])
    assert np.abs(dropped[0] - dropped[1]).max() > 1e-3
    np.testing.assert_allclose(dropped.mean(0), still[0], atol=0.2 * float(np.abs(dropped).std()))


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_dropout_zeroes_its_share_of_the_inputs_and_scales_the_others_up(rate):
    path = LowRankPath(jnp.eye(24), jnp.eye(24), 1.0, rate, "float32")
    dropped = np.asarray(path(jnp.ones((1000, 24)), jax.random.key(0)))
    assert np.mean(dropped == 0) == pytest.approx(rate, rel=0.1)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_dropout_is_drawn_independently_by_row_column_and_key(rate):
    path = LowRankPath(jnp.eye(96), jnp.eye(96), 1.0, rate, "float32")
    masks = [np.asarray(path(jnp.ones((4, 500, 96)), jax.random.key(seed))).reshape(-1, 96) == 0 for seed in (0, 1)]

    def deviation(shares: np.ndarray, share: float, draws: int) -> np.ndarray:
        return np.abs(shares - share) / (share * (1 - share) / draws) ** 0.5

    first, second = masks
    assert deviation(first.mean(axis=0), rate, len(first)).max() < 5
    assert deviation(first.mean(axis=1), rate, 96).max() < 6  # of 2,000 rows
    for left, right in [(first, second), (first[1:], first[:-1]), (first[500:], first[:-500]), (first[:, 1:], first[:, :-1])]:
        assert deviation((left & right).mean(), rate**2, left.size) < 5
    for shift in (1, 7, 48):  # whole rows, and whole columns, are not copies of one another
        assert (np.roll(first, shift, axis=1) != first).any(axis=0).all()
        assert deviation((np.roll(first, shift, axis=1) & first).mean(axis=0), rate**2, len(first)).max() < 5


def test_maps_of_one_input_drop_the_same_of_it(monkeypatch):
    keys = []
    draw = lora_module._draw_kept
    monkeypatch.setattr(
        lora_module, "_draw_kept", lambda key, *how: keys.append((*np.asarray(key_data(key)),)) or draw(key, *how)
    )
    model = make(layers=1)
    add_lora(model, replace(LORA, targets=KERNELS), jax.random.key(1))
    model.blocks[0](jnp.ones((1, 5, 24)), (None, lambda q, k, v: q), jax.random.key(0))
    q, k, v, o, first, second, down = keys
    assert q == k == v and first == second and len({q, o, first, down}) == 4


def test_lora_from_a_layer_on_leaves_the_others_without_a_path_or_a_gradient(ids):
    model = make()
    add_lora(model, replace(LORA, first_layer=1), jax.random.key(1))
    assert {layer for _, layer, linear in kernels(model) if linear.lora is not None} == set(range(1, model.config.layers))
    whole = make()
    add_lora(whole, LORA, jax.random.key(1))
    np.testing.assert_array_equal(model.blocks[1].attention.q.lora.a[...], whole.blocks[1].attention.q.lora.a[...])
    graphdef, trained, frozen = nnx.split(model, nnx.LoRAParam, ...)
    compute = jax.make_jaxpr(jax.grad(lambda p: nnx.merge(graphdef, p, frozen)(ids).sum()))(trained)
    every = jax.make_jaxpr(jax.grad(lambda p: nnx.merge(*nnx.split(whole, nnx.LoRAParam, ...)[:1], p, frozen)(ids).sum()))
    assert str(compute).count("dot_general") < str(every(nnx.split(whole, nnx.LoRAParam, ...)[1])).count("dot_general")
    with pytest.raises(ConfigError, match=f"first_layer: {model.config.layers} found, below"):
        add_lora(make(), replace(LORA, first_layer=model.config.layers), jax.random.key(1))
    with pytest.raises(ConfigError, match=r"first_layer: 1 found for stacked layers"):
        add_lora(make(scan_layers=True), replace(LORA, first_layer=1), jax.random.key(1))


def test_a_lora_target_that_the_model_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"lora\.targets: \['gate'\] found, some of this model's kernels"):
        add_lora(make(gated=False), replace(LORA, targets=("q", "gate")), jax.random.key(0))


@pytest.mark.parametrize("changes", [{}, {"windows": (30, 0)}, {"attention_cap": 3.0}])
def test_attention_in_blocks_of_queries_equals_attention_at_once(rng, monkeypatch, changes):
    model = make(max_positions=400, **changes)
    ids, mask = rng.integers(0, 50, (2, 300)), np.arange(300) >= np.array([[0], [170]])
    blocked = model(ids, mask)
    monkeypatch.setattr(attention, "_QUERIES", 1000)
    jax.clear_caches()
    np.testing.assert_allclose(np.asarray(blocked)[mask], np.asarray(model(ids, mask))[mask], atol=1e-4)
