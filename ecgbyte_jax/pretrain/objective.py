"""The training of a masked autoencoder: its parameters on the mesh, its step, its validation, its features.

Axes: B batch, T samples, G groups, N patches of a group, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ecgbyte_jax.encoders.config import EncoderConfig, Grid, patch_grid
from ecgbyte_jax.encoders.masked import MaskedAutoencoder
from ecgbyte_jax.model.sharding import abstract, make_sharded, put_batch, put_whole, settle
from ecgbyte_jax.train.step import TrainState, make_update


@dataclass(frozen=True)
class EncoderParts:
    """An encoder in parts: `nnx.merge(graphdef, params["encoder"])` is the encoder at its start."""

    grid: Grid
    graphdef: Any
    params: dict[str, nnx.State]

    def merge(self, params: dict[str, nnx.State]) -> MaskedAutoencoder:
        """The encoder with these parameters."""
        return nnx.merge(self.graphdef, params["encoder"])


def build_encoder(config: EncoderConfig, samples: int, seed: int, mesh: Mesh, *, to_restore: bool = False) -> EncoderParts:
    """The encoder of segments of so many samples, with random weights, the same on any mesh; abstract ones `to_restore`."""

    def make() -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(MaskedAutoencoder(config, samples, nnx.Rngs(jax.random.key(seed))), nnx.Param)

    graphdef, shapes = nnx.eval_shape(make)
    params = abstract({"encoder": shapes}, mesh) if to_restore else make_sharded(lambda: {"encoder": make()[1]}, mesh)
    return EncoderParts(patch_grid(config, samples), graphdef, params)


def make_encoder_step(
    parts: EncoderParts, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[TrainState, Any, dict, int], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step, see `make_update`; which patches are hidden follows from the seed and the number of the step."""

    def gradients_of(state: TrainState, frozen: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, Any]:
        return jax.value_and_grad(lambda params: jnp.mean(_errors(parts, params, batch["signals"], key)))(state.params)

    return make_update(gradients_of, optimizer, seed)


def make_encoder_validation(
    parts: EncoderParts, batches: grain.MapDataset, count: int, seed: int, mesh: Mesh
) -> Callable[[Any], dict[str, float]]:
    """(parameters) -> {valid_loss}: the mean error of the hidden patches of the first `count` batches, each time the same."""
    chosen = [batches[number] for number in range(min(len(batches), count))]
    key = jax.random.fold_in(jax.random.key(seed), 2**31)  # of no step

    @jax.jit
    def score(params: Any, signals: jax.Array, number: int) -> jax.Array:
        return jnp.mean(_errors(parts, params, signals, jax.random.fold_in(key, number)))

    def validate(params: Any) -> dict[str, float]:
        losses = [settle(score(params, put_batch(batch, mesh)["signals"], n)) for n, batch in enumerate(chosen)]
        return {"valid_loss": float(sum(losses) / len(losses))}

    return validate


def _errors(parts: EncoderParts, params: Any, signals: jax.Array, key: jax.Array) -> jax.Array:
    noise = jax.random.uniform(key, (len(signals), parts.grid.groups, parts.grid.patches))
    return parts.merge(params).errors(signals, noise)


def make_features(
    parts: EncoderParts, signals: grain.MapDataset, batch_size: int, mesh: Mesh
) -> Callable[[Any, Sequence[int]], dict[int, np.ndarray]]:
    """(parameters, numbers of segments) -> the encoder's features float32 [D] of each segment, the same on all hosts."""

    def compute(params: Any, batch: jax.Array) -> jax.Array:
        return parts.merge(params).features(batch)

    compiled = jax.jit(compute, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def features(params: Any, numbers: Sequence[int]) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(numbers), batch_size):
            chosen = numbers[start : start + batch_size]
            batch = np.stack([signals[number] for number in chosen])
            batch = np.pad(batch, ((0, batch_size - len(chosen)), (0, 0), (0, 0)))
            found |= zip(chosen, np.asarray(settle(compiled(params, put_whole(batch, mesh)))))
        return found

    return features
