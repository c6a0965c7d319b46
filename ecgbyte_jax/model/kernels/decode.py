"""Attention of one new token of each row to a cache, for NVIDIA GPUs, in Pallas: one kernel for what takes XLA twelve.

A generated token's attention is short, and launching kernels is most of its time.

Axes: B batch, P rows of a part of the cache, S its tokens, H query heads, K key/value heads, G = H / K, C head width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec

from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.kernels.flash import LEAST, LOG2_E, TILE, UNSEEN, dot, tile_of
from ecgbyte_jax.model.kernels.fused import mesh_axes, platform, splits_rows

Part = tuple[jax.Array, jax.Array, jax.Array]  # keys [P, K, C, S], values [P, K, S, C], bool [B, S]: what each row sees


def decodes(config: DecoderConfig, batch: int, rows: Sequence[int]) -> bool:
    """Whether the kernel attends for B rows to parts with these numbers of rows, on the current mesh."""
    fits = config.head_dim >= LEAST and pl.next_power_of_2(config.head_dim) == config.head_dim
    return config.attention_kernel == "flash" and fits and splits_rows(batch, *rows)


def padded(tokens: int) -> int:
    """The length rounded up to whole tiles."""
    return -(-tokens // TILE) * TILE


def decode_attention(q: jax.Array, own: tuple[jax.Array, jax.Array], parts: Sequence[Part], config: DecoderConfig) -> jax.Array:
    """Attends from q [B, 1, H, C] to the token's own key [B, K, C, 1] and value [B, K, 1, C], and to the parts -> [B, 1, H, C].

    A part has B rows, or P rows each shared by B / P consecutive ones. Parts of `padded` lengths are read where they lie, and
    others copied. As `attention.attend` does, up to rounding; each device computes its own rows and heads.
    """
    b, _, h, c = q.shape
    grouped = q.reshape(b, config.kv_heads, -1, c)
    arrays = [grouped, own[0][..., 0], own[1][:, :, 0]]
    for keys, values, seen in parts:
        more = padded(seen.shape[1]) - seen.shape[1]
        arrays += [jnp.pad(keys, [(0, 0)] * 3 + [(0, more)]), jnp.pad(values, [(0, 0)] * 2 + [(0, more), (0, 0)])]
        arrays.append(jnp.pad(seen, [(0, 0), (0, more)]))
    (on_rows, on_heads), attend = mesh_axes(config), partial(_attend, config=config)
    if on_rows:
        by_head = PartitionSpec(on_rows, on_heads)
        specs = tuple(by_head if array.ndim > 2 else PartitionSpec(on_rows) for array in arrays)
        attend = jax.shard_map(attend, in_specs=specs, out_specs=by_head, check_vma=False)
    return attend(*arrays).reshape(b, 1, h, c)


def _attend(q: jax.Array, *arrays: jax.Array, config: DecoderConfig) -> jax.Array:
    """The mixed values [B, K, G, C] of q [B, K, G, C]; the arrays are the own key and value, and those of each part."""
    b, kv, groups, c = q.shape
    rows = max(LEAST, pl.next_power_of_2(groups))
    q = jnp.pad(q, ((0, 0), (0, 0), (0, rows - groups), (0, 0)))
    head = pl.BlockSpec((None, None, rows, c), lambda i, n: (i, n, 0, 0))
    specs = [head, *[pl.BlockSpec((None, None, c), lambda i, n: (i, n, 0))] * 2]
    for keys, _, seen in zip(arrays[2::3], arrays[3::3], arrays[4::3]):
        shared, tokens = b // len(keys), seen.shape[1]
        specs.append(pl.BlockSpec((None, None, c, tokens), lambda i, n, shared=shared: (i // shared, n, 0, 0)))
        specs.append(pl.BlockSpec((None, None, tokens, c), lambda i, n, shared=shared: (i // shared, n, 0, 0)))
        specs.append(pl.BlockSpec((None, tokens), lambda i, n: (i, 0)))
    interpret = platform() == "cpu"
    mixed = pl.pallas_call(
        partial(_kernel, scale=config.query_scale or c**-0.5, cap=config.attention_cap),
        grid=(b, kv),
        in_specs=specs,
        out_specs=head,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        interpret=interpret,
        compiler_params=None if interpret else triton.CompilerParams(num_warps=4, num_stages=3),
    )(q, *arrays)
    return mixed[:, :, :groups]


def _kernel(q_ref: Any, own_key_ref: Any, own_value_ref: Any, *refs: Any, scale: float, cap: float) -> None:
    *parts, mixed_ref = refs
    q = q_ref[...]
    tile = tile_of(q.shape[1], q.dtype)

    def scored(products: jax.Array) -> jax.Array:
        """Scores times log2(e), as GPUs have a fast 2^x."""
        scores = scale * products
        return (cap * jnp.tanh(scores / cap) if cap else scores) * LOG2_E

    def add(j: jax.Array, so_far: tuple[jax.Array, ...], *, keys: Any, values: Any, seen: Any) -> tuple[jax.Array, ...]:
        mixed, total, highest = so_far
        here = pl.ds(j * tile, tile)
        scores = jnp.where(seen[here][None, :], scored(dot(q, keys[:, here])), UNSEEN)
        higher = jnp.maximum(highest, jnp.max(scores, axis=1))
        weights, kept = jnp.exp2(scores - higher[:, None]), jnp.exp2(highest - higher)
        mixed = mixed * kept[:, None] + dot(weights.astype(q.dtype), values[here, :])
        return mixed, total * kept + jnp.sum(weights, axis=1), higher

    own = jnp.sum(q.astype(jnp.float32) * own_key_ref[...].astype(jnp.float32)[None, :], axis=1)
    own_value = jnp.broadcast_to(own_value_ref[...].astype(jnp.float32)[None, :], q.shape)
    so_far = own_value, jnp.ones(q.shape[0], jnp.float32), scored(own)
    for keys, values, seen in zip(parts[::3], parts[1::3], parts[2::3]):
        step = partial(add, keys=keys, values=values, seen=seen)
        so_far = jax.lax.fori_loop(0, seen.shape[0] // tile, step, so_far)
    mixed, total, _ = so_far
    mixed_ref[...] = (mixed / total[:, None]).astype(mixed_ref.dtype)
