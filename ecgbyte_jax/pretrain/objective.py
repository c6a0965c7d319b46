"""The training of an encoder: its parameters on the mesh, its step, its validation, its features.

Masked autoencoders: the mean over a batch of the squared error of the hidden patches, sum_h |x_h - x'_h|^2 / (P H). ViT: the
mean absolute error of the hidden pixels. MERL: C(ecg, report) + C(view 1, view 2), C(a, b) = -sum over both directions of
mean_i log(exp(s_ii / t) / sum_j exp(s_ij / t)) with cosines s of all rows of the batch and t = 0.07. CLIP: C(picture, report)
/ 2 with a learned t. See `masked.MaskedAutoencoder.errors`, `vit.MaskedViT.loss`, `merl.Merl.loss` and `clip.Clip.loss`.

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

from ecgbyte_jax.encoders.clip import Clip
from ecgbyte_jax.encoders.config import CONTRASTED, LEADS, SHARED_WIDTH, TEXT_PLACES, EncoderConfig
from ecgbyte_jax.encoders.encoder import Encoder, make_encoder
from ecgbyte_jax.encoders.merl import Merl
from ecgbyte_jax.encoders.vit import MaskedViT
from ecgbyte_jax.model.sharding import abstract, batch_sharding, make_sharded, put_batch, put_whole, settle
from ecgbyte_jax.pretrain.vision_weights import with_weights
from ecgbyte_jax.train.step import TrainState, make_update
from ecgbyte_jax.train.utilisation import product_flops


@dataclass(frozen=True)
class EncoderParts:
    """An encoder in parts: `merge(params, statistics)` is the encoder at its start.

    statistics: the running statistics of its batch norms, empty where it has none.
    """

    graphdef: Any
    params: dict[str, nnx.State]
    statistics: dict[str, nnx.State]

    def merge(self, params: dict[str, nnx.State], statistics: dict[str, nnx.State]) -> Encoder:
        """The encoder with these parameters and statistics, of which it has copies."""
        return nnx.merge(self.graphdef, params["encoder"], statistics["encoder"], copy=True)


def build_encoder(
    config: EncoderConfig, samples: int, seed: int, mesh: Mesh, text_size: int = 0, *, to_restore: bool = False
) -> EncoderParts:
    """The encoder of segments of so many samples, at its start, the same on any mesh; abstract weights `to_restore`.

    The weights are random, or those of `config.weights`. text_size: see `make_encoder`. Raises WeightsError as `with_weights`.
    """

    def make() -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        encoder = make_encoder(config, samples, nnx.Rngs(jax.random.key(seed)), text_size)
        return nnx.split(encoder, nnx.Param, nnx.BatchStat)

    graphdef, *shapes = nnx.eval_shape(make)
    if to_restore:
        params, statistics = (abstract({"encoder": part}, mesh) for part in shapes)
    else:
        params, statistics = make_sharded(lambda: tuple({"encoder": part} for part in make()[1:]), mesh)
        params = with_weights(config, params, mesh) if config.weights else params
    return EncoderParts(graphdef, params, statistics)


def batch_shapes(config: EncoderConfig, rows: int, samples: int, text_size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of `inputs.signals.signal_batches` on the mesh; text_size: see `make_encoder`."""
    shapes: dict[str, tuple] = {"signals": ((rows, LEADS, samples), jnp.float32)}
    if config.kind in CONTRASTED:
        merl = config.kind == "merl"
        shapes["reports"] = ((rows, text_size), jnp.float32) if merl else ((rows, TEXT_PLACES), jnp.int32)
    sharding = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(*shape, sharding=sharding) for name, shape in shapes.items()}


def make_encoder_step(
    parts: EncoderParts, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[TrainState, Any, dict, int], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step, see `make_update`; what is hidden or dropped follows from the seed and the number of the step."""

    def gradients_of(
        state: TrainState, frozen: Any, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Any, dict[str, nnx.State]]:
        def loss_of(params: dict[str, nnx.State]) -> tuple[jax.Array, dict[str, nnx.State]]:
            encoder = parts.merge(params, state.statistics)
            return _loss(encoder, batch, key, training=True), {"encoder": nnx.state(encoder, nnx.BatchStat)}

        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return loss, gradients, statistics

    return make_update(gradients_of, optimizer, seed)


def make_encoder_validation(
    parts: EncoderParts, batches: grain.MapDataset, count: int, seed: int, mesh: Mesh
) -> Callable[[TrainState], dict[str, float]]:
    """(state) -> {valid_loss}: the mean loss of the first `count` batches, each time with the same patches hidden."""
    chosen = [batches[number] for number in range(min(len(batches), count))]
    key = jax.random.fold_in(jax.random.key(seed), 2**31)  # of no step

    @jax.jit
    def score(params: Any, statistics: Any, batch: dict[str, jax.Array], number: int) -> jax.Array:
        return _loss(parts.merge(params, statistics), batch, jax.random.fold_in(key, number), training=False)

    def validate(state: TrainState) -> dict[str, float]:
        scores = (score(state.params, state.statistics, put_batch(batch, mesh), n) for n, batch in enumerate(chosen))
        return {"valid_loss": float(sum(map(settle, scores)) / len(chosen))}

    return validate


def _loss(encoder: Encoder, batch: dict[str, jax.Array], key: jax.Array, training: bool) -> jax.Array:
    """The loss of a batch, float32 []; in training MERL drops channels and its norms take the batch's statistics."""
    signals, rows = batch["signals"], len(batch["signals"])
    match encoder:
        case Merl():
            noise = jax.random.uniform(key, (2, rows, SHARED_WIDTH)) if training else None
            return encoder.loss(signals, batch["reports"], noise)
        case Clip():
            return encoder.loss(signals, batch["reports"])
        case MaskedViT():
            return encoder.loss(signals, jax.random.uniform(key, (rows, encoder.vision.patches)))
        case _:
            noise = jax.random.uniform(key, (rows, encoder.grid.groups, encoder.grid.patches))
            return jnp.mean(encoder.errors(signals, noise))


def objective_flops(parts: EncoderParts, batch: dict[str, jax.ShapeDtypeStruct]) -> float:
    """What a step on a batch of these shapes needs: the products of its loss forward, and twice as many backward.

    A masked autoencoder's encoder sees the patches alone that are not hidden, its decoder all of them.
    """

    def loss_of(params: dict[str, nnx.State], statistics: dict[str, nnx.State], batch: dict[str, jax.Array]) -> jax.Array:
        return _loss(parts.merge(params, statistics), batch, jax.random.key(0), training=True)

    return 3 * product_flops(loss_of, parts.params, parts.statistics, batch)


def make_features(
    parts: EncoderParts, signals: grain.MapDataset, batch_size: int, mesh: Mesh
) -> Callable[[Any, Any, Sequence[int]], dict[int, np.ndarray]]:
    """(parameters, statistics, numbers of segments) -> the encoder's features float32 [D] of each, the same on all hosts."""

    def compute(params: Any, statistics: Any, batch: jax.Array) -> jax.Array:
        return parts.merge(params, statistics).features(batch)

    compiled = jax.jit(compute, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def features(params: Any, statistics: Any, numbers: Sequence[int]) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(numbers), batch_size):
            chosen = numbers[start : start + batch_size]
            batch = np.stack([signals[number] for number in chosen])
            batch = np.pad(batch, ((0, batch_size - len(chosen)), (0, 0), (0, 0)))
            found |= zip(chosen, np.asarray(settle(compiled(params, statistics, put_whole(batch, mesh)))))
        return found

    return features
