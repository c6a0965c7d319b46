"""Twelve steps of the published optimisation in PyTorch (with PEFT), against the same steps here."""

import jax
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.inputs.prompt import supervise
from ecgbyte_jax.model.build import Parts
from ecgbyte_jax.model.hf import load_pretrained
from ecgbyte_jax.model.peft import load_adapter
from ecgbyte_jax.model.sharding import make_mesh, parameter_shardings, put_batch
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.optim import make_optimizer
from ecgbyte_jax.train.step import make_step, start_state
from experiments.common import get_defaults


def follow(folder, parts: Parts, mesh, config, accumulate=1):
    """Our state after the fixture's batches, and what every step reported."""
    trajectory = np.load(folder / "trajectory.npz")
    optimizer, schedule = make_optimizer(Settings.of(config).optim, parts.config.width, 12)
    state = start_state(parts.trained, optimizer, mesh)
    step = make_step(parts, optimizer, accumulate=accumulate)
    reported = []
    for i in range(12):
        ids, masks = trajectory["input_ids"][i], trajectory["labels"][i] != -100
        answers = [supervise(row, mask, ids.shape[1]) for row, mask in zip(ids, masks)]
        batch = {name: np.stack([row[name] for row in answers]) for name in answers[0]}
        batch |= {"input_ids": ids, "positions": trajectory["position_ids"][i], "segment_ids": trajectory["attention_mask"][i]}
        state, metrics = step(state, parts.frozen, put_batch(batch, mesh), i + 1)
        reported.append({name: float(value) for name, value in metrics.items()} | {"learning_rate": float(schedule(i))})
    return trajectory, state, {name: np.array([r[name] for r in reported]) for name in reported[0]}


def check(trajectory, reported):
    np.testing.assert_allclose(reported["loss"], trajectory["losses"], atol=1e-4)
    np.testing.assert_allclose(reported["grad_norm"], trajectory["grad_norms"], rtol=1e-3)
    np.testing.assert_allclose(reported["learning_rate"], trajectory["learning_rates"], rtol=1e-6)


@pytest.fixture
def config(shared):
    config = get_defaults()
    config.optim.warmup = int(np.load(shared / "fixtures/recipe/full/trajectory.npz")["warmup"])
    return config


@pytest.fixture
def mesh():
    mesh = make_mesh(2, 1, -1)
    with jax.set_mesh(mesh):
        yield mesh


def test_training_all_weights_follows_pytorch(shared, config, mesh):
    folder = shared / "fixtures/recipe/full"
    model, decoder = load_pretrained(shared / "fixtures/hf_torch/llama3")
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    parts = Parts(decoder, graphdef, *jax.device_put(states, parameter_shardings(states, mesh)))
    trajectory, state, reported = follow(folder, parts, mesh, config)
    check(trajectory, reported)
    final, _ = load_pretrained(folder / "model_final")
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(nnx.state(final, nnx.Param)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_training_lora_follows_peft(shared, config, mesh):
    folder = shared / "fixtures/recipe/lora"
    model, decoder = load_pretrained(shared / "fixtures/hf_torch/llama3")
    load_adapter(model, folder / "adapter_init")
    graphdef, *states = nnx.split(model, nnx.LoRAParam, ...)
    parts = Parts(decoder, graphdef, *jax.device_put(states, parameter_shardings(states, mesh)))
    trajectory, state, reported = follow(folder, parts, mesh, config)
    check(trajectory, reported)
    final, _ = load_pretrained(shared / "fixtures/hf_torch/llama3")
    load_adapter(final, folder / "adapter_final")
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(nnx.state(final, nnx.LoRAParam)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
