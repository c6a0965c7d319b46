"""A causal decoder in Flax NNX; a config says which of Hugging Face's families it is.

Axes: B batch, T tokens given, S tokens attended to (the cache's length where there is one), D width, K key/value heads,
C head width, V vocabulary, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.attention import Attention, causal_mask, count_positions, rope_angles, within
from ecgbyte_jax.model.config import BATCH_AXES, TENSOR_AXIS, DecoderConfig
from ecgbyte_jax.model.layers import MLP, Linear, Norm, normal, soft_cap, split_key


class NewRows(nnx.LoRAParam):
    """Embeddings of new tokens that are trained where the old ones are frozen."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens so far, one [B, S, K, C] a layer, and where the next token goes (int32 [])."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    index: jax.Array

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, length: int) -> "Cache":
        """Room for `length` tokens of `batch` rows, the heads split over the mesh where it divides them."""
        mesh = jax.sharding.get_abstract_mesh()
        splits = TENSOR_AXIS in mesh.axis_names and config.kv_heads % mesh.shape[TENSOR_AXIS] == 0
        one = jnp.zeros((batch, length, config.kv_heads, config.head_dim), config.dtype)
        one = _split_over_mesh(one, None, TENSOR_AXIS if splits else None, None)
        return cls((one,) * config.layers, (one,) * config.layers, jnp.int32(0))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm (and before another one in Gemma 2) and added to the residual stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = Norm(config.width, config)
        self.attention = Attention(config, rngs)
        self.post_attention_norm = nnx.data(Norm(config.width, config) if config.post_norms else None)
        self.mlp_norm = Norm(config.width, config)
        self.mlp = MLP(config, rngs)
        self.post_mlp_norm = nnx.data(Norm(config.width, config) if config.post_norms else None)

    def __call__(self, x, rope, mask, past, key):
        ka, km = split_key(key, 2)
        mixed, kept = self.attention(self.attention_norm(x), rope, mask, past, ka)
        x = x + (mixed if self.post_attention_norm is None else self.post_attention_norm(mixed))
        mapped = self.mlp(self.mlp_norm(x), km)
        return x + (mapped if self.post_mlp_norm is None else self.post_mlp_norm(mapped)), kept


class Decoder(nnx.Module):
    """Token ids to logits."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Param(normal(rngs, (config.vocab_size, config.width), config.width, config))  # [V, D]
        learned = config.rope_theta is None
        rows = (config.max_positions + config.position_offset, config.width)
        self.positions = nnx.data(nnx.Param(normal(rngs, rows, config.width, config)) if learned else None)
        blocks = [Block(config, rngs) for _ in range(config.layers)]
        self.blocks = nnx.data(_stack(blocks)) if config.scan_layers else nnx.List(blocks)
        self.norm = Norm(config.width, config)
        tied = config.tied_embeddings
        self.head = nnx.data(None if tied else Linear(config.width, config.vocab_size, False, config, rngs))
        self.new_rows = nnx.data(None)  # [V - rows of the embedding, D], see `hf.grow_vocabulary`
        self.new_head_rows = nnx.data(None)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Ids [B, T] to float32 logits [B, T, V]; attention_mask [B, T] is 1 on tokens, 0 on padding.

        Several examples in one row are numbered 1, 2, 3 ... in the mask, and do not see each other. Positions count the real
        tokens of each unless they are given. Raises ConfigError for more tokens than the model has positions.
        """
        return _logits(*nnx.split(self), input_ids, attention_mask, positions)

    def hidden(self, input_ids, attention_mask=None, positions=None, *, cache=None, dropout_key=None):
        """Ids [B, T] to the last hidden states [B, T, D], and the cache with these tokens in it (None without one).

        With a cache, attention_mask is [B, S] over all its places; the whole prompt comes first, then a token at a time.
        `dropout_key` switches LoRA's dropout on.
        """
        b, t = input_ids.shape
        if cache is None and t > self.config.max_positions:
            raise ConfigError(
                f"input_ids: rows of {t} tokens found, at most the model's {self.config.max_positions} positions wanted"
            )
        start = jnp.int32(0) if cache is None else cache.index
        if attention_mask is None:
            attention_mask = jnp.ones((b, t if cache is None else cache.keys[0].shape[1]), bool)
        segments = attention_mask.astype(jnp.int32)  # [B, S]
        if positions is None:
            positions = jax.lax.dynamic_slice_in_dim(count_positions(segments), start, t, axis=1)  # [B, T]
        x = _split_over_mesh(self.embed(input_ids, positions), None, None)  # [B, T, D]
        rope = None if self.config.rope_theta is None else rope_angles(self.config, positions)
        prompt = cache is not None and t > 1  # attends to itself: the cache is empty
        mask, back = causal_mask(segments[:, :t] if prompt else segments, start, t)  # [B, 1, T, S], [T, S]
        if cache is None:
            return self.norm(self._run_blocks(x, rope, mask, back, dropout_key)), None
        kept = []
        for block, window, keys, values in zip(self.layers(), self.config.layer_windows, cache.keys, cache.values):
            x, kv = block(x, rope, within(mask, back, window), (keys, values, start), None)
            kept.append(kv)
        return self.norm(x), Cache(tuple(k for k, _ in kept), tuple(v for _, v in kept), start + t)

    def layers(self) -> Sequence[Block]:
        """The blocks one by one, also where their parameters are stacked."""
        if not self.config.scan_layers:
            return self.blocks
        graphdef, state = nnx.split(self.blocks)
        return [nnx.merge(graphdef, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(self.config.layers)]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [B, T, D] to float32 logits [B, T, V]."""
        dtype = self.config.dtype
        kernel = self.embedding[...].T if self.head is None else self.head.kernel[...]  # [D, V]
        logits = jnp.einsum("btd,dv->btv", hidden, kernel.astype(dtype), preferred_element_type=jnp.float32)
        new = self.new_rows if self.head is None else self.new_head_rows
        if new is not None:
            more = jnp.einsum("btd,vd->btv", hidden, new[...].astype(dtype), preferred_element_type=jnp.float32)
            logits = jnp.concatenate([logits, more], axis=-1)
        return soft_cap(logits, self.config.logit_cap)

    def embed(self, ids: jax.Array, positions: jax.Array) -> jax.Array:
        """What enters the first block: ids and positions [B, T] to [B, T, D]."""
        config, rows = self.config, self.embedding[...]
        x = rows[jnp.minimum(ids, len(rows) - 1)].astype(config.dtype)
        if self.new_rows is not None:
            new = self.new_rows[...][jnp.maximum(ids - len(rows), 0)].astype(config.dtype)
            x = jnp.where((ids >= len(rows))[..., None], new, x)
        if config.embedding_scale:
            x = x * jnp.asarray(config.width**0.5, x.dtype)
        if self.positions is not None:
            x = x + self.positions[...][positions + config.position_offset].astype(config.dtype)
        return x

    def _run_blocks(self, x, rope, mask, back, dropout_key):
        """All blocks, without a cache: a loop, or one compiled block over stacked parameters."""
        config = self.config

        def run(block, x, window, key):
            return block(x, rope, within(mask, back, window) if config.windows else mask, None, key)[0]

        if config.remat:
            run = jax.checkpoint(run, policy=getattr(jax.checkpoint_policies, config.remat))
        keys = split_key(dropout_key, config.layers)
        if not config.scan_layers:
            for block, window, key in zip(self.blocks, config.layer_windows, keys):
                x = run(block, x, jnp.int32(window), key)
            return x
        graphdef, state = nnx.split(self.blocks)

        def step(x, layer):
            state, window, key = layer
            return run(nnx.merge(graphdef, state), x, window, key), None

        keys = None if dropout_key is None else keys
        return jax.lax.scan(step, x, (state, jnp.array(config.layer_windows, jnp.int32), keys))[0]


@partial(jax.jit, static_argnums=0)
def _logits(graphdef, state, input_ids, attention_mask, positions):
    """Compiled as one: by itself every operation of a model called from Python would be."""
    model: Decoder = nnx.merge(graphdef, state)
    return model.logits(model.hidden(input_ids, attention_mask, positions)[0])


def unstack(model: Decoder) -> Decoder:
    """The same model with its blocks one by one: while decoding, stacked parameters would be copied for every token."""
    if not model.config.scan_layers:
        return model
    graphdef, state = nnx.split(model)
    copy = nnx.merge(graphdef, state)
    copy.config = replace(model.config, scan_layers=False)
    copy.blocks = nnx.List(model.layers())
    return copy


def _stack(blocks: list[Block]) -> Block:
    """One block whose parameters have an axis of layers before their own."""
    graphdef, _ = nnx.split(blocks[0])
    return nnx.merge(graphdef, jax.tree.map(lambda *layers: jnp.stack(layers), *(nnx.state(block) for block in blocks)))


def _split_over_mesh(x: jax.Array, *others: str | None) -> jax.Array:
    """Holds x [B, ...] to a split over the batch, and over the `others` axes; without a mesh in force it does nothing.

    Left to itself the partitioner follows the embedding's own sharding and splits D of the residual stream instead.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *others)) if axes else x
