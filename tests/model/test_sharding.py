import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.model import sharding
from ecgbyte_jax.model.build import Parts, build_model
from ecgbyte_jax.model.sharding import (
    batch_sharding,
    bytes_a_device,
    check_batch_size,
    kept_whole,
    make_mesh,
    put_batch,
    rows_here,
)
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.feed import plan_batches
from ecgbyte_jax.train.optim import make_optimizer
from ecgbyte_jax.train.restore import positions
from ecgbyte_jax.train.step import answer_loss, make_step, start_state
from experiments.common import get_defaults

LAYOUTS = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]


def build(config, vocab_size, mesh) -> Parts:
    settings = Settings.of(config)
    return build_model(settings.model, settings.lora, settings.seed, positions(settings), vocab_size, mesh)


def specs(state) -> dict[str, P]:
    return {"/".join(map(str, path)): leaf.sharding.spec for path, leaf in nnx.to_flat_state(state)}


def test_parameters_are_split_by_the_table(config):
    config.lora.rank = 4
    parts = build(config, 512, make_mesh(2, 2, 2))
    frozen, trained = specs(parts.frozen), specs(parts.trained)
    assert frozen["embedding"] == P("tensor", "fsdp")
    assert frozen["blocks/0/attention/q/kernel"] == P("fsdp", "tensor")
    assert frozen["blocks/1/attention/o/kernel"] == P("tensor", "fsdp")
    assert frozen["blocks/1/mlp/down/kernel"] == P("tensor", "fsdp")
    assert frozen["blocks/0/mlp_norm/scale"] == P(None) == frozen["norm/scale"]
    assert trained["blocks/0/attention/q/lora/a"] == P(None, None)
    assert trained["blocks/0/attention/q/lora/b"] == P(None, "tensor")
    assert trained["blocks/0/mlp/down/lora/a"] == P("tensor", None)
    shard = parts.frozen["embedding"][...].addressable_shards[0].data
    assert shard.shape == (256, 16)


def test_optimizer_state_is_split_like_its_parameters(config):
    mesh = make_mesh(2, 2, 2)
    parts = build(config, 512, mesh)
    optimizer, _ = make_optimizer(Settings.of(config).optim, 32, 10)
    state = start_state(parts.trained, optimizer, mesh)
    for name in ("mu", "nu"):
        moments = jax.tree.leaves(optax.tree.get(state.opt_state, name))
        for moment, parameter in zip(moments, jax.tree.leaves(parts.trained), strict=True):
            assert moment.sharding.spec == parameter.sharding.spec


def test_an_axis_that_the_mesh_does_not_divide_is_not_split(config):
    parts = build(config, 511, make_mesh(2, 2, 2))
    assert specs(parts.trained)["embedding"] == P(None, "fsdp")


def test_unsplit_parameters_are_named_and_bytes_per_device_counted(config):
    mesh = make_mesh(1, 2, 4)
    parts = build(config, 511, mesh)
    assert kept_whole(parts.trained, mesh) == ["embedding [511, 32] over tensor (511 / 4)"]
    config.model.kv_heads, config.model.head_dim = 1, 2
    assert "blocks/*/attention/k/kernel [32, 2] over tensor (2 / 4)" in kept_whole(build(config, 512, mesh).trained, mesh)
    array = jax.ShapeDtypeStruct((6, 8), "bfloat16", sharding=NamedSharding(mesh, P("fsdp", None)))
    assert bytes_a_device({"first": array, "second": [array]}) == 2 * 3 * 8 * 2


@pytest.mark.slow
def test_the_padding_of_the_vocabulary_changes_no_loss_and_no_gradient(config, rng):
    rows = {"input_ids": rng.integers(0, 311, (4, 9)), "targets": rng.integers(0, 311, (4, 5))}
    rows |= {"answer_places": np.argsort(rng.random((4, 9)))[:, :5], "answer_mask": np.ones((4, 5), bool)}
    rows |= {"segment_ids": np.ones((4, 9), np.int32), "positions": np.tile(np.arange(9), (4, 1))}
    results, mesh = [], make_mesh(1, 2, 4)
    for multiple in (1, get_defaults().model.vocab_multiple):
        config.model.vocab_multiple = multiple
        parts = build(config, 311, mesh)
        with jax.set_mesh(mesh):
            loss = jax.jit(jax.value_and_grad(lambda p, graphdef=parts.graphdef: answer_loss(nnx.merge(graphdef, p), rows)))
            results.append((parts, *loss(parts.trained)))
    (plain, plain_loss, gradients), (padded, padded_loss, padded_gradients) = results
    assert specs(padded.trained)["embedding"] == P("tensor", "fsdp") and padded.config.vocab_size == 384
    np.testing.assert_allclose(padded.trained["embedding"][:311], plain.trained["embedding"][...], rtol=1e-6)
    assert float(padded_loss) == pytest.approx(float(plain_loss), rel=1e-6)
    np.testing.assert_allclose(padded_gradients["embedding"][:311], gradients["embedding"][...], atol=1e-5)
    assert not np.asarray(padded_gradients["embedding"][311:]).any()
    with jax.set_mesh(mesh):
        logits = np.asarray(padded.model(padded.trained)(rows["input_ids"]))
    assert np.isfinite(logits[..., :311]).all() and (logits[..., 311:] == -np.inf).all()


def test_batches_are_split_over_data_and_fsdp():
    mesh = make_mesh(2, 2, 2)
    batch = put_batch({"input_ids": np.arange(32).reshape(8, 4)}, mesh)["input_ids"]
    assert batch.sharding == batch_sharding(mesh) and batch.addressable_shards[0].data.shape == (2, 4)


def test_a_process_makes_the_rows_that_its_devices_hold(monkeypatch):
    mesh = make_mesh(4, 1, 2)
    assert rows_here(mesh, 8).tolist() == [*range(8)]
    monkeypatch.setattr(sharding, "_parts_here", lambda mesh: np.array([1, 3]))  # as one of several processes
    assert rows_here(mesh, 8).tolist() == [2, 3, 6, 7]


def test_the_same_seed_gives_the_same_weights_on_any_mesh(config):
    first, second = (jax.tree.leaves(build(config, 512, make_mesh(*layout)).trained) for layout in LAYOUTS[:2])
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # the last bit depends on the compiler


@pytest.mark.slow  # compiles for five meshes; test_main.py compares one device with eight
def test_losses_do_not_depend_on_the_mesh(config, prepared):
    def train(data, fsdp, tensor, devices=None):
        mesh = make_mesh(data, fsdp, tensor, devices)
        opened = load_prepared(Workdir(prepared))
        with jax.set_mesh(mesh):
            parts = build(config, len(opened.text_tokenizer), mesh)
            optimizer, _ = make_optimizer(Settings.of(config).optim, 32, 4)
            state = start_state(parts.trained, optimizer, mesh)
            step = make_step(parts, optimizer)
            (_, batches), losses = plan_batches(Settings.of(config), opened, "train", 1.0), []
            for i in range(4):
                state, metrics = step(state, parts.frozen, put_batch(batches[i], mesh), i + 1)
                losses.append(float(metrics["loss"]))
        return losses

    config.optim.warmup = 1
    expected = train(1, 1, 1, jax.devices()[:1])
    assert expected[-1] < expected[0] - 0.2
    for layout in LAYOUTS:
        np.testing.assert_allclose(train(*layout), expected, atol=1e-4)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (16, 1, 1), (0, 1, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(ConfigError, match="for 8 devices"):
        make_mesh(*sizes)


def test_a_batch_that_the_mesh_cannot_split_is_refused():
    with pytest.raises(ConfigError, match=r"train\.batch_size: 6 found, a multiple of the mesh's data x fsdp = 4"):
        check_batch_size(make_mesh(2, 2, 2), 6, "train.batch_size")
    with pytest.raises(ConfigError, match=r"train\.batch_size: 12 found, .* = 4 times train\.accumulate = 2 expected"):
        check_batch_size(make_mesh(2, 2, 2), 12, "train.batch_size", accumulate=2)
