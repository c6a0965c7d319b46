"""A causal decoder in Flax NNX for all of Hugging Face's families in `families/`.

Axes: B batch, T input tokens, S tokens of a cache, D width, K key/value heads, C head width, V vocabulary, L layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.attention import Attention, Mix, Part, attend, causal_mask, count_positions, within
from ecgbyte_jax.model.config import BATCH_AXES, KEPT, TENSOR_AXIS, DecoderConfig, DynamicScaling
from ecgbyte_jax.model.delta_net import DeltaNet, State, empty_state
from ecgbyte_jax.model.kernels.decode import decode_attention, decodes, padded
from ecgbyte_jax.model.kernels.fused import fused_attention, splits_rows
from ecgbyte_jax.model.layers import MLP, Linear, Norm, apply_norm, float32_product, normal, soft_cap, split_key
from ecgbyte_jax.model.rope import Rope, example_lengths, layer_ropes, rope_chooser


class NewRows(nnx.LoRAParam):
    """Embeddings of new tokens, which are trained while the old ones are frozen."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The keys [B, K, C, S] and values [B, K, S, C] of earlier tokens, by layer with attention.

    there: bool [B, S], False on padding and on room not yet used. positions: int32 [B, S]. states: by layer with a delta net,
    after the last token; those of the last part of a past hold for all of it.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    there: jax.Array
    positions: jax.Array
    states: tuple[State, ...] = ()

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, length: int, past: Sequence["Cache"] = ()) -> "Cache":
        """A cache with room for at least `length` tokens in each of `batch` rows, which follow those of `past`."""
        length = padded(length) if config.attention_kernel == "flash" else length
        keys = jnp.zeros((batch, config.kv_heads, config.head_dim, length), config.dtype)
        values = jnp.zeros((batch, config.kv_heads, length, config.head_dim), config.dtype)
        there = jnp.zeros((batch, length), bool)
        keys, values = _split_heads(keys, config), _split_heads(values, config)
        count = len(config.attention_layers)
        return cls((keys,) * count, (values,) * count, there, there.astype(jnp.int32), _last_states(config, past, batch))

    def widened(self, length: int) -> "Cache":
        """The cache with room for `length` tokens, those that it has at the front."""

        def widen(x: jax.Array, axis: int) -> jax.Array:
            return jnp.pad(x, [(0, length - x.shape[axis] if at == axis else 0) for at in range(x.ndim)])

        keys, values = (tuple(widen(x, axis) for x in layers) for layers, axis in ((self.keys, 3), (self.values, 2)))
        return Cache(keys, values, widen(self.there, 1), widen(self.positions, 1), self.states)

    def put(self, tokens: "Cache", place: jax.Array) -> "Cache":
        """The cache with `tokens` written from index `place` on."""

        def write(target: jax.Array, update: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(target, update, place, axis)

        return Cache(
            tuple(write(*pair, 3) for pair in zip(self.keys, tokens.keys)),
            tuple(write(*pair, 2) for pair in zip(self.values, tokens.values)),
            write(self.there, tokens.there, 1),
            write(self.positions, tokens.positions, 1),
            tokens.states,
        )


class Block(nnx.Module):
    """Attention or a delta net, then an MLP, each after a norm (in Gemma 2 also before one, in OLMo 2 only).

    Both are added to the residual stream.
    """

    def __init__(self, config: DecoderConfig, layer: int, rngs: nnx.Rngs):
        delta = config.delta if config.delta and layer in config.delta.layers else None
        self.attention_norm = nnx.data(Norm(config.width, config) if config.pre_norms else None)
        self.attention = nnx.data(None if delta else Attention(config, rngs))
        self.delta_net = nnx.data(DeltaNet(config, delta, rngs) if delta else None)
        self.post_attention_norm = nnx.data(Norm(config.width, config) if config.post_norms else None)
        self.mlp_norm = nnx.data(Norm(config.width, config) if config.pre_norms else None)
        self.mlp = MLP(config, rngs)
        self.post_mlp_norm = nnx.data(Norm(config.width, config) if config.post_norms else None)

    def __call__(self, x: jax.Array, context: tuple, key: jax.Array | None) -> tuple[jax.Array, Any]:
        """Maps x [B, T, D] to ([B, T, D], what later tokens need of these); `key` draws LoRA's dropout.

        context: the arguments of `Attention.__call__` or `DeltaNet.__call__` between x and key.
        """
        ka, km = split_key(key, 2)
        mixer = self.attention if self.delta_net is None else self.delta_net
        mixed, kept = mixer(apply_norm(self.attention_norm, x), *context, ka)
        x = x + apply_norm(self.post_attention_norm, mixed)
        mapped = self.mlp(apply_norm(self.mlp_norm, x), km)
        return x + apply_norm(self.post_mlp_norm, mapped), kept


class Decoder(nnx.Module):
    """A causal language model: token ids to logits."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Param(normal(rngs, (config.vocab_size, config.width), config.width, config))  # [V, D]
        learned = config.rope_theta is None
        rows = (config.max_positions + config.position_offset, config.width)
        self.positions = nnx.data(nnx.Param(normal(rngs, rows, config.width, config)) if learned else None)
        blocks = [Block(config, layer, rngs) for layer in range(config.layers)]
        self.blocks = nnx.data(_stack(blocks)) if config.scan_layers else nnx.List(blocks)
        self.norm = Norm(config.width, config)
        tied = config.tied_embeddings
        self.head = nnx.data(None if tied else Linear(config.width, config.vocab_size, False, config, rngs))
        self.new_rows = nnx.data(None)  # [V - rows of the embedding, D], see `vocabulary.grow_vocabulary`
        self.new_head_rows = nnx.data(None)
        # From signals [B, 12, L] of ECGs to vectors [B, N, D] that are laid over the ids `vector_id`.
        self.ecg_input: nnx.Module | None = nnx.data(None)
        self.vector_id = -1

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Maps ids [B, T] to float32 logits [B, T, V]; attention_mask [B, T] is 1 on tokens, 0 on padding.

        Several examples in one row are numbered 1, 2, 3 ... in the mask (`segment_ids`) and do not attend to each other. By
        default positions [B, T] count the real tokens of each example. Raises ConfigError for more tokens than the model has
        positions and, except inside jit, for ids outside the vocabulary and positions outside a learned table or, with dynamic
        scaling, beyond those of the model.
        """
        _check_range("input_ids", input_ids, attention_mask, self.config.vocab_size)
        limited = self.positions is not None or isinstance(self.config.rope_scaling, DynamicScaling)
        if limited and positions is not None:
            _check_range("positions", positions, attention_mask, self.config.max_positions)
        return _logits(*nnx.split(self), input_ids, attention_mask, positions)

    def hidden(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        *,
        signals: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """As `__call__`, but returns the last hidden states [B, T, D]; `dropout_key` switches LoRA's dropout on.

        signals: see `embed`.
        """
        b, t = input_ids.shape
        if t > self.config.max_positions:
            raise ConfigError(
                f"input_ids: rows of {t} tokens found, at most the model's {self.config.max_positions} positions expected"
            )
        segment_ids = jnp.ones((b, t), jnp.int32) if attention_mask is None else attention_mask.astype(jnp.int32)
        if positions is None:
            positions = count_positions(segment_ids)  # [B, T]
        x = self._enter(input_ids, positions, signals)
        return self.norm(self._run_blocks(x, segment_ids, positions, dropout_key))

    def extend(
        self,
        input_ids: jax.Array,
        there: jax.Array,
        past: Sequence[Cache] = (),
        lengths: jax.Array | None = None,
        signals: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """The last hidden states [B, T, D] of ids [B, T] that follow the tokens of `past`, and the cache of these ids.

        there: bool [B, T], False on padding, which is at a row's ends. The parts of the past follow one another, each with its
        own padding; a part has B rows, or P rows each shared by B / P consecutive ones. lengths: int32 [B], see `layer_ropes`;
        by default those so far. signals: see `embed`.
        """
        (b, t), segment_ids = input_ids.shape, there.astype(jnp.int32)
        past_there = [jnp.repeat(part.there, b // len(part.there), axis=0) for part in past]  # [B, S]
        before = sum((jnp.sum(part, axis=1, keepdims=True) for part in past_there), jnp.zeros((b, 1), jnp.int32))
        positions = before + count_positions(segment_ids)  # [B, T]
        masks = [jnp.broadcast_to(part[:, None, None], (b, 1, t, part.shape[1])) for part in past_there]
        masks.append(causal_mask(segment_ids))
        key_positions = [jnp.repeat(part.positions, b // len(part.there), axis=0) for part in past] + [positions]
        if lengths is None:
            lengths = before[:, 0] + jnp.sum(there, axis=1)
        x, ropes = self._enter(input_ids, positions, signals), layer_ropes(self.config, positions, lengths[:, None])
        fused = bool(self.config.attention_kernel) and not past and splits_rows(b)
        past_states, keys, values, states = iter(_last_states(self.config, past, b)), [], [], []
        for block, rope, window in zip(self.layers(), ropes, self.config.layer_windows):
            if block.attention is None:
                x, state = block(x, (segment_ids, next(past_states)), None)
                states.append(state)
                continue
            if fused:
                mix = self._attend_fused(segment_ids, window)
            else:
                near = masks
                if self.config.windows:
                    near = [within(mask, positions, at, window) for mask, at in zip(masks, key_positions)]
                mix = self._attend_to([(part.keys[len(keys)], part.values[len(keys)]) for part in past], near)
            x, (k, v) = block(x, (rope, mix), None)
            keys.append(_split_heads(k, self.config))
            values.append(_split_heads(v, self.config))
        return self.norm(x), Cache(tuple(keys), tuple(values), there, positions, tuple(states))

    def _enter(self, input_ids: jax.Array, positions: jax.Array, signals: jax.Array | None) -> jax.Array:
        """The input [B, T, D] of the first block, split over the mesh."""
        return _split_over_mesh(self.embed(input_ids, positions, signals), None, None)

    def layers(self) -> Sequence[Block]:
        """The single blocks, also where their parameters are stacked."""
        if not self.config.scan_layers:
            return self.blocks
        graphdef, state = nnx.split(self.blocks)
        return [nnx.merge(graphdef, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(self.config.layers)]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Maps hidden states [B, T, D] to float32 logits [B, T, V], -inf for rows that are no token."""
        dtype = self.config.dtype
        kernel = self.embedding[...].T if self.head is None else self.head.kernel[...]  # [D, V]
        logits = float32_product(hidden, kernel.astype(dtype))
        new = self.new_rows if self.head is None else self.new_head_rows
        if new is not None:
            logits = jnp.concatenate([logits, float32_product(hidden, new[...].T.astype(dtype))], axis=-1)
        logits = soft_cap(logits, self.config.logit_cap)
        if self.config.spare_rows:
            tokens = self.config.vocab_size - self.config.spare_rows
            logits = jnp.where(jnp.arange(self.config.vocab_size) < tokens, logits, -jnp.inf)
        return logits

    def embed(self, ids: jax.Array, positions: jax.Array, signals: jax.Array | None = None) -> jax.Array:
        """Maps ids and positions [B, T] to the input of the first block, [B, T, D].

        signals: float32 [B, E, 12, L] in mV, the ECGs of each row in their order, whose vectors are laid over its `vector_id`s;
        of no length where it shows none.
        """
        config, rows = self.config, self.embedding[...]
        x = rows[jnp.minimum(ids, len(rows) - 1)].astype(config.dtype)
        if self.new_rows is not None:
            new = self.new_rows[...][jnp.maximum(ids - len(rows), 0)].astype(config.dtype)
            x = jnp.where((ids >= len(rows))[..., None], new, x)
        if config.embedding_scale:
            x = x * jnp.asarray(config.width**0.5, x.dtype)
        if signals is not None and signals.size:
            x = self._lay_over(x, ids, signals)
        if self.positions is not None:
            x = x + self.positions[...][positions + config.position_offset].astype(config.dtype)
        return x

    def _lay_over(self, x: jax.Array, ids: jax.Array, signals: jax.Array) -> jax.Array:
        """The embeddings [B, T, D] with the n-th vector of a row's ECGs [B, E, 12, L] at its n-th `vector_id`."""
        vectors = self.ecg_input(signals.reshape(-1, *signals.shape[2:]))  # [B E, N, D]
        vectors = vectors.reshape(len(x), -1, x.shape[-1]).astype(x.dtype)
        here = ids == self.vector_id  # [B, T]
        numbers = jnp.maximum(jnp.cumsum(here, axis=1) - 1, 0)
        return jnp.where(here[..., None], jnp.take_along_axis(vectors, numbers[..., None], axis=1), x)

    def _attend_fused(self, segment_ids: jax.Array, window: jax.Array | int) -> Mix:
        """Attention to the tokens' own keys by the platform's kernel; segment_ids int32 [B, T], window a number or int32 []."""
        return partial(fused_attention, segment_ids=segment_ids, window=window, config=self.config)

    def _attend_to(self, past: Sequence[Part], masks: Sequence[jax.Array]) -> Mix:
        """Attention to parts of the past and to the tokens' own, with a mask for each."""

        def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            if q.shape[1] == 1 and past and decodes(self.config, len(q), [len(keys) for keys, _ in past]):
                seen = [mask[:, 0, 0] for mask in masks]
                return decode_attention(q, (k, v), [(*part, there) for part, there in zip(past, seen)], self.config)
            return attend(q, [*past, (k, v)], masks, self.config)

        return mix

    def _run_blocks(
        self, x: jax.Array, segment_ids: jax.Array, positions: jax.Array, dropout_key: jax.Array | None
    ) -> jax.Array:
        """Runs all blocks without a cache: in a loop, or as one compiled block over stacked parameters."""
        config, mask = self.config, causal_mask(segment_ids)
        ropes = layer_ropes(config, positions, example_lengths(segment_ids, positions))

        def run(block: Block, x: jax.Array, rope: Rope | None, window: jax.Array, key: jax.Array | None) -> jax.Array:
            if block.attention is None:
                return block(x, (segment_ids, None), key)[0]
            if config.attention_kernel:
                mix = self._attend_fused(segment_ids, window)
            else:
                mix = self._attend_to([], [within(mask, positions, positions, window) if config.windows else mask])
            return block(x, (rope, mix), key)[0]

        keys = split_key(dropout_key, config.layers)
        if not config.scan_layers:
            run_block = self._remat(run)
            for block, rope, window, key in zip(self.blocks, ropes, config.layer_windows, keys):
                x = run_block(block, x, rope, jnp.int32(window), key)
            return x
        graphdef, state = nnx.split(self.blocks)
        choose_rope, rope_numbers = rope_chooser(config, ropes)

        @self._remat
        def run_stacked(block: Block, x: jax.Array, rope: jax.Array, window: jax.Array, key: jax.Array | None) -> jax.Array:
            return run(block, x, choose_rope(rope), window, key)

        def step(x: jax.Array, layer: tuple) -> tuple[jax.Array, None]:
            state, rope, window, key = layer
            return run_stacked(nnx.merge(graphdef, state), x, rope, window, key), None

        keys = None if dropout_key is None else keys
        return jax.lax.scan(step, x, (state, rope_numbers, jnp.array(config.layer_windows, jnp.int32), keys))[0]

    def _remat(self, run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        """The function, keeping for the backward pass only what `remat` says."""
        if not self.config.remat:
            return run
        kept = jax.checkpoint_policies.save_only_these_names(*KEPT[self.config.remat])
        return jax.checkpoint(run, policy=kept, prevent_cse=not self.config.scan_layers)


def _check_range(name: str, numbers: jax.Array, mask: jax.Array | None, end: int) -> None:
    """Raises ConfigError where numbers [B, T], padding aside, are not in 0 to `end` - 1; under jit nothing is checked."""
    if not all(x is None or _is_known(x) for x in (numbers, mask)) or not numbers.size:
        return
    real = np.where(True if mask is None else np.asarray(mask) != 0, np.asarray(numbers), 0)
    low, high = real.min(), real.max()
    if low < 0 or high >= end:
        raise ConfigError(f"{name}: {low if low < 0 else high} found, 0 to {end - 1} of this model expected")


def _is_known(x: jax.Array | np.ndarray) -> bool:
    """Whether this process can read all values of x."""
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)


@partial(jax.jit, static_argnums=0)
def _logits(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    input_ids: jax.Array,
    attention_mask: jax.Array | None,
    positions: jax.Array | None,
) -> jax.Array:
    """One program for a model called from Python, instead of one for each operation."""
    model: Decoder = nnx.merge(graphdef, state)
    return model.logits(model.hidden(input_ids, attention_mask, positions))


def unstack(model: Decoder) -> Decoder:
    """The same model with separate blocks: in decoding, stacked parameters would be copied for every token."""
    if not model.config.scan_layers:
        return model
    graphdef, state = nnx.split(model)
    copy = nnx.merge(graphdef, state)
    copy.config = replace(model.config, scan_layers=False)
    copy.blocks = nnx.List(model.layers())
    return copy


def _stack(blocks: list[Block]) -> Block:
    """One block whose parameters begin with an axis of layers."""
    graphdef, _ = nnx.split(blocks[0])
    return nnx.merge(graphdef, jax.tree.map(lambda *layers: jnp.stack(layers), *(nnx.state(block) for block in blocks)))


def _last_states(config: DecoderConfig, past: Sequence[Cache], batch: int) -> tuple[State, ...]:
    """The states [B, ...] of all delta nets after the tokens of `past`, with B rows."""
    if config.delta is None:
        return ()
    if past:
        states = past[-1].states
        return jax.tree.map(lambda x: jnp.repeat(x, batch // len(x), axis=0), states)
    empty = empty_state(config, config.delta, batch)
    return (jax.tree.map(lambda x: _split_over_mesh(x, *(None,) * (x.ndim - 1)), empty),) * len(config.delta.layers)


def _split_over_mesh(x: jax.Array, *other_axes: str | None) -> jax.Array:
    """Constrains x [B, ...] to be split over the batch axes and `other_axes`; does nothing outside a mesh.

    Without the constraint the partitioner follows the embedding's sharding and splits D of the residual stream.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *other_axes)) if axes else x


def _split_heads(x: jax.Array, config: DecoderConfig) -> jax.Array:
    """Constrains keys or values [B, K, ...] to be split over the batch, and the heads over `tensor` where it divides them."""
    mesh = jax.sharding.get_abstract_mesh()
    splits = TENSOR_AXIS in mesh.axis_names and config.kv_heads % mesh.shape[TENSOR_AXIS] == 0
    return _split_over_mesh(x, TENSOR_AXIS if splits else None, None, None)
