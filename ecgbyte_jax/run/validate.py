"""Scores on the validation split while a training goes on."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ecgbyte_jax.run.build import Parts
from ecgbyte_jax.run.feed import plan_batches
from ecgbyte_jax.run.prepare import Prepared
from ecgbyte_jax.run.sharding import put_batch
from ecgbyte_jax.run.step import answer_loss, answer_tokens


def make_validation(config: ConfigDict, prepared: Prepared, parts: Parts, mesh: Mesh) -> Callable[[Any], dict] | None:
    """(trained parameters) -> {valid_loss}: the mean over the answer tokens of the same batches each time, without dropout.

    None where the split does not fill a batch.
    """
    if prepared.manifest.splits["valid"].sequences < config.train.batch_size:
        return None
    _, batches = plan_batches(config, prepared, "valid", 1.0)
    batches = [batches[i] for i in range(min(len(batches), config.train.valid_batches))]

    @jax.jit
    def score(params: Any, frozen: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return answer_loss(nnx.merge(parts.graphdef, params, frozen), batch), answer_tokens(batch)

    def validate(params: Any) -> dict[str, float]:
        found = [score(params, parts.frozen, put_batch(batch, mesh)) for batch in batches]
        return {"valid_loss": float(sum(loss for loss, _ in found) / sum(count for _, count in found))}

    return validate
