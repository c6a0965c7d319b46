"""Embeddings for new tokens: how many a model has, and how theirs begin.

Axes: V vocabulary, D width, E described tokens, F features.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ecgbyte_jax.model.decoder import Decoder, NewRows

_DRAWS = 2**22  # random float32 numbers in memory at once, see `_append_rows`


class Described(NamedTuple):
    """What is known of tokens: ids int [E], features float32 [E, F]; those below `first` have trained rows already."""

    ids: np.ndarray
    features: np.ndarray
    first: int


def grow_vocabulary(
    model: Decoder,
    size: int,
    key: jax.Array,
    *,
    train_from: int | None = None,
    described: Described | None = None,
) -> Decoder:
    """Grows the embedding (and head) to at least `size` rows, as `transformers` does with mean_resizing; returns the model.

    New rows are drawn from a normal with the old rows' mean and 1e-9 times their covariance. A random mixture of the centred
    rows has exactly that covariance, so no [D, D] matrix is needed. `train_from`: the rows of this id and above become separate
    parameters (NewRows), which are trained while the others are frozen. `described`: what is known of new tokens; their rows,
    also those that were spare, are then as far from the mean as the old ones, and alike for like tokens.
    """
    added = max(0, size - model.config.vocab_size)
    for_embedding, for_head = jax.random.split(key)
    rows = _append_rows(model.embedding[...], added, for_embedding)
    if described is not None:
        rows = _describe_rows(rows, described, jax.random.fold_in(key, 2))
    columns = None if model.head is None else _append_rows(model.head.kernel[...].T, added, for_head)
    if train_from is not None:
        model.new_rows = NewRows(rows[train_from:].astype(jnp.float32))
        rows = rows[:train_from]
        if columns is not None:
            model.new_head_rows = NewRows(columns[train_from:].astype(jnp.float32))
            columns = columns[:train_from]
    model.embedding = nnx.Param(rows)
    if columns is not None:
        model.head.kernel = nnx.Param(columns.T)
    model.config = replace(model.config, vocab_size=model.config.vocab_size + added)
    return model


def _describe_rows(rows: jax.Array, described: Described, key: jax.Array) -> jax.Array:
    """Draws the rows from `first` on of [V, D] anew: half noise, by which tokens differ, half a projection of features."""
    ids, features, first = described
    mean, deviation = (statistic(rows[:first].astype(jnp.float32), axis=0) for statistic in (jnp.mean, jnp.std))
    for_noise, for_projection = jax.random.split(key)
    drawn = jax.random.normal(for_noise, (len(rows) - first, rows.shape[1]))
    places = ids[ids >= first] - first
    projected = features[ids >= first] @ jax.random.normal(for_projection, (features.shape[1], rows.shape[1]))
    if len(places):
        drawn = drawn.at[places].set((drawn[places] + projected / projected.std()) / 2**0.5)
    return rows.at[first:].set((mean + deviation * drawn).astype(rows.dtype))


@partial(jax.jit, static_argnums=1)
def _append_rows(rows: jax.Array, added: int, key: jax.Array) -> jax.Array:
    """Maps rows [V, D] to [V + added, D]; each new row has its own key, and `_DRAWS` limits how many are drawn at once."""
    if not added:
        return rows
    old = rows.astype(jnp.float32)
    mean = old.mean(axis=0)
    centred = (old - mean) * (1e-9 / len(old)) ** 0.5

    def draw(number: jax.Array) -> jax.Array:
        return mean + jax.random.normal(jax.random.fold_in(key, number), (len(old),)) @ centred

    new = jax.lax.map(draw, jnp.arange(added), batch_size=min(added, max(1, _DRAWS // len(old))))
    return jnp.concatenate([rows, new.astype(rows.dtype)])
