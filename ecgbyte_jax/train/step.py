"""One step of training: loss over the answers, gradients, update.

Axes: B rows of a batch, T places of a row, A answer tokens of a row at most, D width, V vocabulary, N parts of a batch whose
gradients are added up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from ecgbyte_jax.model.build import Parts
from ecgbyte_jax.model.config import BATCH_AXES, TENSOR_AXIS
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.sharding import abstract, make_sharded, place

_LOGITS_BYTES = 2**28  # held by a device at once; the gradient takes as much again


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step changes: the trained parameters, the optimizer's state, the number of steps taken (int32 []).

    statistics: what norms keep of the batches they have seen, without gradients; None for a model that has no such norms.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    statistics: Any = None


def start_state(trained: Any, optimizer: optax.GradientTransformation, mesh: Mesh, statistics: Any = None) -> TrainState:
    """Step 0; the optimizer's moments are split over the mesh like their parameters."""
    opt_state = make_sharded(lambda: optimizer.init(jax.tree.map(jnp.zeros_like, trained)), mesh)
    return TrainState(trained, opt_state, place(jnp.int32(0), mesh), statistics)


def abstract_state(trained: Any, optimizer: optax.GradientTransformation, mesh: Mesh, statistics: Any = None) -> TrainState:
    """The shapes, types and shardings of a state, for a checkpoint to be read into; `trained` may be abstract."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return abstract(TrainState(trained, jax.eval_shape(optimizer.init, trained), step, statistics), mesh)


def answer_loss(model: Decoder, batch: dict[str, jax.Array], dropout_key: jax.Array | None = None) -> jax.Array:
    """Cross-entropy in nats, summed over the answers' tokens, float32 []; logits are computed at their places alone.

    batch: see `inputs.batches.training_batches`; `dropout_key` switches LoRA's dropout on. Logits that would take
    more than `_LOGITS_BYTES` of a device are computed a few places at a time, and again for the gradient.
    """
    rows = batch["input_ids"], batch["segment_ids"], batch["positions"]
    hidden = model.hidden(*rows, signals=batch.get("signals"), dropout_key=dropout_key)
    chosen = jnp.take_along_axis(hidden, batch["answer_places"][..., None], axis=1)  # [B, A, D]
    answers = chosen, batch["targets"], batch["answer_mask"]

    def loss_of(chosen: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.sum(_cross_entropy(model.logits(chosen), targets) * mask)

    places = _LOGITS_BYTES // _logits_bytes(model, len(chosen))
    if places >= chosen.shape[1]:
        return loss_of(*answers)
    again = jax.checkpoint(loss_of, prevent_cse=False)  # a scan keeps the two computations apart itself
    loss, _ = jax.lax.scan(lambda sum, piece: (sum + again(*piece), None), jnp.float32(0), _pieces(answers, max(places, 1)))
    return loss


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[target], float32 [B, A], of logits [B, A, V]; NaN for a target that is no row of them.

    The target's logit is a masked sum: a look-up's gradient is written to zeros of the logits' size, a pass over them more.
    """
    own = jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0)
    known = (targets >= 0) & (targets < logits.shape[-1])
    return jnp.where(known, jax.nn.logsumexp(logits, axis=-1) - jnp.sum(own, axis=-1), jnp.nan)


def _logits_bytes(model: Decoder, rows: int) -> int:
    """The bytes of the float32 logits of one place of every row, [B, 1, V], on each device of the current mesh."""
    sizes, vocabulary = jax.sharding.get_abstract_mesh().shape, model.config.vocab_size
    parts = math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)
    split = sizes.get(TENSOR_AXIS, 1)
    return 4 * -(-rows // parts) * (vocabulary // split if vocabulary % split == 0 else vocabulary)


def _pieces(answers: tuple[jax.Array, ...], size: int) -> tuple[jax.Array, ...]:
    """[B, A, ...] to [A / size, B, size, ...], the last piece padded with zeros; every device keeps its own rows."""

    def split(values: jax.Array) -> jax.Array:
        rows, places, *rest = values.shape
        filled = jnp.pad(values, [(0, 0), (0, -places % size)] + [(0, 0)] * len(rest))
        return filled.reshape(rows, -1, size, *rest).swapaxes(0, 1)

    return tuple(split(values) for values in answers)


def answer_tokens(batch: dict[str, jax.Array]) -> jax.Array:
    """The number of supervised tokens of a batch, int32 [], to divide by: 1 where there is none."""
    return jnp.maximum(jnp.sum(batch["answer_mask"]), 1)


def make_step(
    parts: Parts, optimizer: optax.GradientTransformation, dropout: float = 0.0, seed: int = 0, accumulate: int = 1
) -> Callable[[TrainState, Any, dict, int], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step (state, frozen, batch, number) -> (state, {loss, grad_norm}); it reuses the old state's memory.

    The loss is the mean over the batch's answer tokens, whichever part of the batch they are in. A non-finite loss or gradient
    leaves the state unchanged, as do all later steps, whose `number` no longer matches.
    """

    def gradients_of(
        state: TrainState, frozen: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """(loss, gradients) of one batch, or of its parts one after the other."""
        tokens = answer_tokens(batch)

        def loss_of(params: Any, part: dict[str, jax.Array], key: jax.Array | None) -> jax.Array:
            return answer_loss(nnx.merge(parts.graphdef, params, frozen), part, key) / tokens

        if accumulate == 1:
            return jax.value_and_grad(loss_of)(state.params, batch, key)

        def add(sums: tuple[jax.Array, Any], part: tuple[dict, jax.Array]) -> tuple[tuple[jax.Array, Any], None]:
            rows, number = part
            own_key = None if key is None else jax.random.fold_in(key, number)
            terms = jax.value_and_grad(loss_of)(state.params, rows, own_key)
            return jax.tree.map(lambda total, new: total + new.astype(jnp.float32), sums, terms), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.params)
        sums, _ = jax.lax.scan(add, (jnp.float32(0), zeros), (_split(batch, accumulate), jnp.arange(accumulate)))
        return sums[0], jax.tree.map(lambda total, p: total.astype(p.dtype), sums[1], state.params)

    return make_update(lambda state, *rest: (*gradients_of(state, *rest), None), optimizer, seed if dropout > 0 else None)


def make_update(
    gradients_of: Callable[[TrainState, Any, dict, jax.Array | None], tuple[jax.Array, Any, Any]],
    optimizer: optax.GradientTransformation,
    seed: int | None,
) -> Callable[[TrainState, Any, dict, int], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step, as `make_step` has it, of (state, frozen, batch, key) -> (loss, gradients, new statistics).

    The key follows from `seed` and the number of the step; None where `seed` is.
    """

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, frozen: Any, batch: dict[str, jax.Array], number: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = None if seed is None else jax.random.fold_in(jax.random.key(seed), state.step)
        loss, gradients, statistics = gradients_of(state, frozen, batch, key)
        norm = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new = TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1, statistics)
        taken = jnp.isfinite(loss) & jnp.isfinite(norm) & (new.step == number)
        return jax.tree.map(partial(jnp.where, taken), new, state), {"loss": loss, "grad_norm": norm}

    return step


def _split(batch: dict[str, jax.Array], parts: int) -> dict[str, jax.Array]:
    """[B, ...] to [N, B / N, ...]; every device keeps its own rows."""
    return {name: rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1) for name, rows in batch.items()}
