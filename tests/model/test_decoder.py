from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.decoder import Decoder, DecoderConfig
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.lora import LoraConfig, add_lora

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


def test_a_token_sees_only_what_stands_before_it(ids):
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


def test_given_positions_are_used(ids):
    model = make()
    np.testing.assert_array_equal(model(ids, None, np.tile(np.arange(12), (3, 1))), model(ids))
    assert np.abs(model(ids, None, 3 * np.tile(np.arange(12), (3, 1))) - model(ids)).max() > 1e-3


def test_rematerialisation_changes_no_gradient(ids):
    def gradient(remat: bool):
        graphdef, state = nnx.split(make(remat=remat))
        return jax.grad(lambda s: nnx.merge(graphdef, s)(ids).var())(state)

    for plain, remat in zip(jax.tree.leaves(gradient(False)), jax.tree.leaves(gradient(True)), strict=True):
        np.testing.assert_allclose(plain, remat, atol=1e-6)


def test_generation_with_the_cache_is_generation_without_it(ids):
    model = make()
    mask = np.arange(12) >= np.array([[0], [3], [7]])
    grown, seen = ids, mask
    for _ in range(6):
        token = np.asarray(model(grown, seen)[:, -1].argmax(-1), np.int32)[:, None]
        grown, seen = np.concatenate([grown, token], 1), np.concatenate([seen, np.ones((3, 1), bool)], 1)
    np.testing.assert_array_equal(generate(model, ids, mask, 6), grown[:, 12:])


def test_a_row_that_has_ended_is_padded_and_the_others_go_on(ids):
    model = make()
    free = np.asarray(generate(model, ids, np.ones_like(ids), 8))
    stop = int(free[0, 2])
    stopped = np.asarray(generate(model, ids, np.ones_like(ids), 8, stop_ids=(stop,), pad_id=49))
    for row, whole in zip(stopped, free, strict=True):
        ends = np.flatnonzero(whole == stop)
        end = ends[0] + 1 if ends.size else 8
        np.testing.assert_array_equal(row[:end], whole[:end])
        assert (row[end:] == 49).all()
    assert (stopped[0, 3:] == 49).all()


def test_lora_has_no_effect_at_first_and_trains_its_own_parameters_alone(ids):
    model = make()
    before = model(ids)
    add_lora(model, LORA, nnx.Rngs(1))
    np.testing.assert_array_equal(model(ids), before)
    paths = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))}
    kernels = ("attention/q", "mlp/down")
    assert paths == {f"blocks/{i}/{kernel}/lora/{part}" for i in (0, 1) for kernel in kernels for part in "ab"}


def test_lora_adds_its_scaled_product_to_the_kernel(ids):
    model = make()
    add_lora(model, LORA, nnx.Rngs(1))
    merged = make()
    for block, plain in zip(model.blocks, merged.blocks):
        for linear, target in ((block.attention.q, plain.attention.q), (block.mlp.down, plain.mlp.down)):
            linear.lora.b[...] = jax.random.normal(jax.random.key(3), linear.lora.b.shape)
            target.kernel[...] = target.kernel[...] + 8.0 / 4 * linear.lora.a[...] @ linear.lora.b[...]
    np.testing.assert_allclose(model(ids), merged(ids), atol=1e-4)


def test_dropout_needs_a_key_and_keeps_the_mean():
    x = jnp.ones((400, 24))
    model = make()
    add_lora(model, LORA, nnx.Rngs(1))
    lora = model.blocks[0].attention.q.lora
    lora.b[...] = jnp.ones(lora.b.shape)
    still, dropped = lora(x, None), lora(x, jax.random.key(0))
    np.testing.assert_array_equal(still[0], still[1])
    assert np.abs(dropped[0] - dropped[1]).max() > 1e-3
    np.testing.assert_allclose(dropped.mean(0), still[0], atol=0.2 * float(np.abs(dropped).std()))


def test_unknown_lora_target_is_refused():
    with pytest.raises(ConfigError, match=r"\['query'\]"):
        add_lora(make(), replace(LORA, targets=("q", "query")), nnx.Rngs(0))
