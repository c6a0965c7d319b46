"""The compiled programs of continuous batching: a piece of a prompt, a prompt into its slot, the next token of every slot.

A prompt is read alone, in pieces of a few sizes; then its keys and values are laid into a slot, and every step feeds one token
to each slot. The new tokens of all slots share a ring of columns: a slot that was filled at step s uses the columns s, s + 1,
... mod N, and is emptied before it comes round to its first.

Axes: B slots, P places of a prompt, Q of a piece, N new tokens at most, L samples, E ECGs.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ecgbyte_jax.model.decoder import Cache, Decoder, unstack

_SIZES = (16, 32, 64, 128, 256)  # of pieces
# For GPUs, XLA joins products that share an operand, and would copy the weights and the cache for that, for every token.
_OPTIONS = {"xla_gpu_dot_merger_threshold_mb": 0}


@dataclass(frozen=True, eq=False)
class Read:
    """What has been read of a prompt: its keys and values [1, P], and how many of their columns are used."""

    cache: Cache
    columns: int

    @property
    def bytes(self) -> int:
        """Of the whole cache."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.cache))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Running:
    """What a step changes: the number of steps so far, and the cache [B, N] of the new tokens."""

    step: jax.Array
    cache: Cache


@dataclass(frozen=True, eq=False)
class _Form:
    """A model but for its weights, hashed by its identity: the hash of a graph takes longer than many a program."""

    graphdef: nnx.GraphDef
    tree: jax.tree_util.PyTreeDef

    def model(self, weights: list[jax.Array]) -> Decoder:
        """The model with these weights."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.tree, weights))


class Slots:
    """B slots of one model. Its methods are called by one thread, in the context of the model's mesh."""

    def __init__(self, model: Decoder, count: int, longest: int, most: int, whole: bool):
        """longest: tokens of a prompt; most: N; whole: the ECGs of a prompt are read as one piece, for they are vectors."""
        graphdef, state = nnx.split(unstack(model))
        self._weights, tree = jax.tree.flatten(state)
        self._form = _Form(graphdef, tree)
        self._places = max(sum(cut(first, whole)) + sum(cut(longest - first)) for first in range(longest + 1))
        self._longest, self._empty = longest, Read(Cache.empty(model.config, 1, self._places), 0)
        self._config, self._count, self._most = model.config, count, most
        self.clear()

    def clear(self) -> None:
        """Empties all slots, also after a program that failed and took their arrays with it."""
        # An empty cache has one array for all layers; what is overwritten in place must have its own.
        self._prompts = jax.tree.map(jnp.copy, replace(Cache.empty(self._config, self._count, self._places), states=()))
        self._running = jax.tree.map(jnp.copy, _Running(jnp.int32(0), Cache.empty(self._config, self._count, self._most)))

    def warm(self) -> None:
        """Compiles every program, but for those of signals, before somebody waits for it."""
        for size in _SIZES:
            if size <= self._places:
                read = self.read(np.zeros(size, np.int32), size)
        self.fill(0, read)
        self.step(np.zeros(self._count, np.int32), np.zeros(self._count, bool), np.ones(self._count, np.int32))

    def read(self, ids: np.ndarray, length: int, before: Read | None = None, signals: np.ndarray | None = None) -> Read:
        """Reads ids int32 [n] that follow those of `before`.

        length: tokens of the complete prompt, see `rope.layer_ropes`. signals: float32 [1, E, 12, L] of the ECGs among the ids,
        which are then one piece, since their vectors are counted in it.
        """
        now = before or self._empty
        cache, column, sizes = now.cache, now.columns, cut(len(ids), signals is not None)
        padding = sum(sizes) - len(ids)
        ids, there = np.pad(ids, (padding, 0)), np.arange(padding + len(ids)) >= padding
        for size in sizes:
            piece = ids[None, :size], there[None, :size]
            cache = _read(self._form, self._weights, cache, *piece, np.int32(column), np.int32([length]), signals)
            ids, there, column = ids[size:], there[size:], column + size
        return Read(cache, column)

    def fill(self, slot: int, prompt: Read) -> None:
        """Lays a prompt, read up to its last token, into a slot."""
        self._prompts, self._running = _fill(self._prompts, self._running, prompt.cache, np.int32(slot))

    def step(self, last: np.ndarray, running: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Feeds the last token int32 [B] of every slot; the likeliest next ones int32 [B], their log-probabilities float32 [B].

        running: bool [B], False where a slot is empty; lengths: int32 [B], of the complete prompts.
        """
        fed = last, running, lengths
        self._running, token, log_prob = _step(self._form, self._weights, self._prompts, self._running, *fed)
        return np.asarray(token), np.asarray(log_prob)


def cut(count: int, whole: bool = False) -> tuple[int, ...]:
    """The sizes of the pieces that hold `count` tokens, ascending: few, and not much more than they hold.

    whole: one piece, which may be larger than the others.
    """
    if whole:
        return (max(_SIZES[0], 1 << max(count - 1, 0).bit_length()),)
    full, rest = divmod(count, _SIZES[-1])
    pairs = [(a, b) for b in _SIZES for a in _SIZES if a <= b and a + b >= rest]
    one = next(size for size in _SIZES if size >= rest)
    two = min(pairs, key=sum)
    ragged = () if not rest else two if sum(two) < one else (one,)
    return (*ragged, *(_SIZES[-1:] * full))


@partial(jax.jit, static_argnums=0, compiler_options=_OPTIONS)
def _read(
    form: _Form,
    weights: list[jax.Array],
    row: Cache,
    ids: jax.Array,
    there: jax.Array,
    column: jax.Array,
    length: jax.Array,
    signals: jax.Array | None,
) -> Cache:
    """The cache [1, P] with a piece [1, Q] of a prompt from a column on."""
    return row.put(form.model(weights).extend(ids, there, (row,), length, signals)[1], column)


@partial(jax.jit, donate_argnums=(0, 1))
def _fill(prompts: Cache, running: _Running, row: Cache, slot: jax.Array) -> tuple[Cache, _Running]:
    def lay(rows: jax.Array, own: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(rows, own, slot, 0)

    prompts = jax.tree.map(lay, prompts, replace(row, states=()))
    cache = running.cache
    states = jax.tree.map(lay, cache.states, row.states)
    return prompts, replace(running, cache=replace(cache, there=cache.there.at[slot].set(False), states=states))


@partial(jax.jit, static_argnums=0, donate_argnums=3, compiler_options=_OPTIONS)
def _step(
    form: _Form,
    weights: list[jax.Array],
    prompts: Cache,
    running: _Running,
    last: jax.Array,
    there: jax.Array,
    lengths: jax.Array,
) -> tuple[_Running, jax.Array, jax.Array]:
    model = form.model(weights)
    hidden, fed = model.extend(last[:, None], there[:, None], (prompts, running.cache), lengths)
    logits = model.logits(hidden)[:, 0]  # [B, V]
    token = logits.argmax(axis=-1).astype(jnp.int32)
    log_prob = logits.max(axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    cache = running.cache.put(fed, running.step % running.cache.there.shape[1])
    return _Running(running.step + 1, cache), token, log_prob
