"""The step, compiled for all lengths of rows that a training has: the next ones while the first steps run."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ecgbyte_jax.inputs.plan import Plan
from ecgbyte_jax.model.sharding import batch_sharding
from ecgbyte_jax.run.console import console
from ecgbyte_jax.train.step import TrainState

_LOOKED_AT = 500  # steps whose lengths are compiled ahead; others when they come
_THREADS = 2
_SILENT = 3  # s of waiting for a compiler until it is said


@contextmanager
def compiled_ahead(
    step: Callable, plan: Plan, start: int, state: TrainState, frozen: Any, mesh: Mesh, signals: tuple[int, ...] = ()
) -> Iterator[Callable]:
    """The same step, whose programs are compiled by threads in the order in which the steps after `start` need them.

    One process of several compiles as it needs them: all must do so in the same order. At the end, what is being compiled is
    waited for. signals: see `batch_shapes`.
    """
    if jax.process_count() > 1:
        yield step
        return
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (state, frozen))
    lengths = dict.fromkeys(plan[number].length for number in range(start, min(start + _LOOKED_AT, len(plan))))
    batches = {length: batch_shapes(plan, length, mesh, signals) for length in lengths}

    def compile_for(length: int) -> jax.stages.Compiled:
        with jax.set_mesh(mesh):  # which each thread has for itself
            return step.lower(*shapes, batches[length], 1).compile()

    threads = ThreadPoolExecutor(_THREADS)
    programs = {length: threads.submit(compile_for, length) for length in lengths}

    def take(state: TrainState, frozen: Any, batch: dict[str, jax.Array], number: int) -> tuple[TrainState, dict]:
        length = batch["input_ids"].shape[1]
        known = length in programs and _kinds(batch) == _kinds(batches[length])
        return (_wait(programs[length], length) if known else step)(state, frozen, batch, number)

    try:
        yield take
    finally:
        threads.shutdown(cancel_futures=True)


def batch_shapes(plan: Plan, length: int, mesh: Mesh, signals: tuple[int, ...] = ()) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of `inputs.batches.training_batches` with rows of so many tokens.

    signals: the shape of those of a row, (S, 12, L), where a model reads vectors.
    """
    rows, sharding = len(plan[0].rows), batch_sharding(mesh)
    places = dict.fromkeys(("input_ids", "positions", "segment_ids"), length)
    places |= dict.fromkeys(("answer_places", "targets", "answer_mask"), plan.answer_tokens)
    kinds = {name: jnp.bool if name == "answer_mask" else jnp.int32 for name in places}
    shapes = {name: jax.ShapeDtypeStruct((rows, size), kinds[name], sharding=sharding) for name, size in places.items()}
    return shapes | ({"signals": jax.ShapeDtypeStruct((rows, *signals), jnp.float32, sharding=sharding)} if signals else {})


def _kinds(batch: dict[str, Any]) -> dict[str, tuple]:
    """The shape and type of every array."""
    return {name: (rows.shape, rows.dtype) for name, rows in batch.items()}


def _wait(program: Future[jax.stages.Compiled], length: int) -> jax.stages.Compiled:
    """The compiled program; a long wait for it is said."""
    start = time.monotonic()
    try:
        return program.result(timeout=_SILENT)
    except TimeoutError:
        console.print(f"train: compiling the step for rows of {length} tokens, once for each of their lengths")
        compiled = program.result()
        console.print(f"train: waited {time.monotonic() - start:.0f} s for it")
        return compiled
