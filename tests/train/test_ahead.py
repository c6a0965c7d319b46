"""Programs that are compiled while the first steps run."""

import threading
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ecgbyte_jax.inputs.plan import Layout, Plan
from ecgbyte_jax.model.sharding import make_mesh, put_batch
from ecgbyte_jax.train import ahead
from ecgbyte_jax.train.ahead import batch_shapes, compiled_ahead

LENGTHS = np.array([[20, 3], [30, 4], [60, 5], [64, 8]] * 4, np.int32)
FROZEN = jnp.float32(2)


@pytest.fixture
def mesh():
    return make_mesh(1, 1, 1, jax.devices()[:1])


def plan() -> Plan:
    return Plan(LENGTHS, Layout(64, buckets=(32,)), 2, 1.0, seed=0)


def counted_step(traced: list[int]):
    @jax.jit
    def step(state, frozen, batch, number):
        traced.append(batch["input_ids"].shape[1])
        return state + frozen * batch["input_ids"].sum(), {"loss": number * batch["answer_mask"].sum()}

    return step


def batch(length: int, mesh) -> dict:
    return put_batch(
        {name: np.ones(shape.shape, shape.dtype) for name, shape in batch_shapes(plan(), length, mesh).items()}, mesh
    )


def test_every_length_of_the_plan_is_compiled_once_and_gives_the_step_s_values(mesh):
    traced: list[int] = []
    step = counted_step(traced)
    with jax.set_mesh(mesh), compiled_ahead(step, plan(), 0, jnp.float32(1), FROZEN, mesh) as take:
        for length in (32, 64, 32, 64):
            state, metrics = take(jnp.float32(1), FROZEN, batch(length, mesh), 3)
            assert float(state) == 1 + 2 * 2 * length and int(metrics["loss"]) == 3 * 2 * 8
    assert sorted(traced) == [32, 64]


def test_a_length_that_was_not_looked_at_is_compiled_when_it_comes(mesh, monkeypatch):
    monkeypatch.setattr(ahead, "_LOOKED_AT", 1)
    traced: list[int] = []
    with jax.set_mesh(mesh), compiled_ahead(counted_step(traced), plan(), 0, jnp.float32(1), FROZEN, mesh) as take:
        for length in (32, 64):
            take(jnp.float32(1), FROZEN, batch(length, mesh), 1)
    assert sorted(traced) == [32, 64]


def test_a_batch_of_other_types_is_compiled_when_it_comes(mesh):
    with jax.set_mesh(mesh), compiled_ahead(counted_step([]), plan(), 0, jnp.float32(1), FROZEN, mesh) as take:
        odd = batch(32, mesh) | {"answer_mask": jnp.full((2, 8), 0.5)}
        assert float(take(jnp.float32(1), FROZEN, odd, 3)[1]["loss"]) == 3 * 8


def test_an_error_of_the_compiler_comes_out_where_the_program_is_needed(mesh):
    @jax.jit
    def step(state, frozen, batch, number):
        raise RuntimeError("RESOURCE_EXHAUSTED: no memory")

    with (
        jax.set_mesh(mesh),
        pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"),
        compiled_ahead(step, plan(), 0, jnp.float32(1), FROZEN, mesh) as take,
    ):
        take(jnp.float32(1), FROZEN, batch(32, mesh), 1)


def test_several_processes_compile_as_they_need(mesh, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    step = counted_step([])
    with compiled_ahead(step, plan(), 0, jnp.float32(1), FROZEN, mesh) as take:
        assert take is step


def test_a_long_wait_is_said(monkeypatch, capsys):
    monkeypatch.setattr(ahead, "_SILENT", 0.0)
    program = Future()
    threading.Timer(0.2, program.set_result, ("compiled",)).start()
    assert ahead._wait(program, 64) == "compiled"
    assert "compiling the step for rows of 64 tokens" in capsys.readouterr().out
