"""Flash attention (Dao 2023) for NVIDIA GPUs, in Pallas: softmax and products block by block, no scores in the GPU's memory.

A query sees the keys from its `first` one up to its own place; this is all that padding, packed rows and windows need.

Axes: B batch, T tokens (also of the keys), H query heads, K key/value heads, G = H / K, C head width.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ecgbyte_jax.model.config import ATTENTION

UNSEEN = -1e30  # a score; the first key that is seen makes all weights of unseen ones 0
LOG2_E = math.log2(math.e)  # GPUs have a fast 2^x
TILE, LEAST = 64, 16  # tokens of a tile; the least size of a product on tensor cores
_TILE_BYTES = 2**14  # several tiles are in shared memory, of which the smallest GPUs have 100 KB


class Settings(NamedTuple):
    """The scale and the soft cap of the scores (0: none), the tokens of a tile, and whether the kernel is interpreted."""

    scale: float
    cap: float
    block: int
    interpret: bool


def flash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array, scale: float, cap: float = 0.0, *, interpret: bool = False
) -> jax.Array:
    """Attends from q [B, T, H, C] to k [B, K, C, T] and v [B, K, T, C] -> [B, T, H, C], as `attention.attend` does.

    first: int32 [B, T], the first key that each query sees, at most the query's own place and never falling along a row. cap:
    of the scores, see `layers.soft_cap`. interpret: without a GPU, which is slow.
    """
    tokens, width = q.shape[1], q.shape[3]
    padded_width = max(LEAST, pl.next_power_of_2(width))
    block = min(tile_of(padded_width, q.dtype), max(LEAST, pl.next_power_of_2(tokens)))
    more, wider = -tokens % block, padded_width - width
    q = jnp.pad(q, ((0, 0), (0, more), (0, 0), (0, wider)))
    k = jnp.pad(k, ((0, 0), (0, 0), (0, wider), (0, more)))
    v = jnp.pad(v, ((0, 0), (0, 0), (0, more), (0, wider)))
    own = jnp.broadcast_to(jnp.arange(tokens, tokens + more, dtype=jnp.int32), (len(q), more))
    mixed = _flash(q, k, v, jnp.concatenate([first, own], axis=1), Settings(scale, cap, block, interpret))
    return mixed[:, :tokens, :, :width]


def tile_of(width: int, dtype: Any) -> int:
    """The tokens of a tile of keys or values of this width, which divide `TILE`."""
    return min(TILE, max(LEAST, _TILE_BYTES // (width * jnp.dtype(dtype).itemsize)))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _flash(q: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array, how: Settings) -> jax.Array:
    return _forward(q, k, v, first, how)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array, how: Settings) -> tuple[jax.Array, jax.Array]:
    """The mixed values [B, T, H, C] and the base-2 logarithm of each query's sum of weights, float32 [B, H, T]."""
    (b, t, h, c), block = q.shape, how.block
    sums = jax.ShapeDtypeStruct((b, h, t), jnp.float32)
    call = _call(
        _forward_kernel,
        how,
        (t // block, b, h),
        [_queries(block, c), *_keys_and_values(t, c, h // k.shape[1]), _places(block)],
        [_queries(block, c), _sums(block)],
        [jax.ShapeDtypeStruct(q.shape, q.dtype), sums],
    )
    return call(q, k, v, first)


def _residuals(
    q: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array, how: Settings
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mixed, sums = (checkpoint_name(part, ATTENTION) for part in _forward(q, k, v, first, how))
    return mixed, (q, k, v, first, mixed, sums)


def _backward(
    how: Settings, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, first, mixed, sums = residuals
    b, t, h, c = q.shape
    block, kv, blocks = how.block, k.shape[1], t // how.block
    inner = jnp.einsum("bthc,bthc->bht", mixed, gradient, preferred_element_type=jnp.float32)
    dq = _call(
        _query_gradient_kernel,
        how,
        (blocks, b, h),
        [_queries(block, c), *_keys_and_values(t, c, h // kv), _places(block), _queries(block, c), _sums(block), _sums(block)],
        [_queries(block, c)],
        [jax.ShapeDtypeStruct(q.shape, q.dtype)],
    )(q, k, v, first, gradient, sums, inner)[0]
    ends = jnp.arange(block - 1, t, block)  # the last key of each block
    last = jnp.sum(first[:, None] <= ends[:, None], axis=2, dtype=jnp.int32) - 1  # the last query that sees it, [B, T / block]
    of_group = pl.BlockSpec((None, t, h // kv, c), lambda _, j, n: (j, 0, n, 0))
    sums_of_group = pl.BlockSpec((None, h // kv, t), lambda _, j, n: (j, n, 0))
    keys = pl.BlockSpec((None, None, c, block), lambda i, j, n: (j, n, 0, i))
    values = pl.BlockSpec((None, None, block, c), lambda i, j, n: (j, n, i, 0))
    firsts, lasts = (pl.BlockSpec((None, size), lambda _, j, n: (j, 0)) for size in (t, blocks))
    dk, dv = _call(
        partial(_key_gradients_kernel, groups=h // kv),
        how,
        (blocks, b, kv),
        [of_group, keys, values, firsts, lasts, of_group, sums_of_group, sums_of_group],
        [keys, values],
        [jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
    )(q, k, v, first, last, gradient, sums, inner)
    return dq, dk, dv, None


_flash.defvjp(_residuals, _backward)


def _call(kernel: Callable, how: Settings, grid: tuple[int, ...], inputs: list, outputs: list, shapes: list) -> Callable:
    """The kernel over a grid; warps and stages were the fastest of nine choices for heads of 64 on an H100."""
    narrow = inputs[0].block_shape[-1] * how.block * shapes[0].dtype.itemsize <= _TILE_BYTES // 2
    warps, stages = (4, 3) if narrow else (8, 2)
    return pl.pallas_call(
        partial(kernel, how=how),
        grid=grid,
        in_specs=inputs,
        out_specs=outputs,
        out_shape=shapes,
        interpret=how.interpret,
        compiler_params=None if how.interpret else triton.CompilerParams(num_warps=warps, num_stages=stages),
    )


def _queries(block: int, width: int) -> pl.BlockSpec:
    """One block of tokens of one head, of an array [B, T, H, C], in a grid of (blocks, B, H)."""
    return pl.BlockSpec((None, block, None, width), lambda i, j, n: (j, i, n, 0))


def _keys_and_values(tokens: int, width: int, groups: int) -> list[pl.BlockSpec]:
    """All keys and values of a query head, in a grid of (blocks, B, H)."""
    return [
        pl.BlockSpec((None, None, width, tokens), lambda _, j, n: (j, n // groups, 0, 0)),
        pl.BlockSpec((None, None, tokens, width), lambda _, j, n: (j, n // groups, 0, 0)),
    ]


def _places(block: int) -> pl.BlockSpec:
    """One block of an array [B, T], in a grid of (blocks, B, H)."""
    return pl.BlockSpec((None, block), lambda i, j, _: (j, i))


def _sums(block: int) -> pl.BlockSpec:
    """One block of an array [B, H, T], in a grid of (blocks, B, H)."""
    return pl.BlockSpec((None, None, block), lambda i, j, n: (j, n, i))


def _forward_kernel(q_ref: Any, k_ref: Any, v_ref: Any, first_ref: Any, o_ref: Any, sums_ref: Any, *, how: Settings) -> None:
    number, q, first, block = pl.program_id(0), q_ref[...], first_ref[...], how.block
    queries = _row(number, block).T

    def add(j: jax.Array, so_far: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        mixed, total, highest = so_far
        here = pl.ds(j * block, block)
        scores, _ = _scores(q, k_ref[:, here], how)
        scores = jnp.where(_seen(queries, first[:, None], _row(j, block)), scores, UNSEEN)
        higher = jnp.maximum(highest, jnp.max(scores, axis=1))
        weights, kept = jnp.exp2(scores - higher[:, None]), jnp.exp2(highest - higher)
        mixed = mixed * kept[:, None] + dot(weights.astype(q.dtype), v_ref[here, :])
        return mixed, total * kept + jnp.sum(weights, axis=1), higher

    start = jnp.zeros(q.shape, jnp.float32), jnp.zeros(block, jnp.float32), jnp.full(block, UNSEEN, jnp.float32)
    mixed, total, highest = jax.lax.fori_loop(jnp.min(first) // block, number + 1, add, start)
    o_ref[...] = (mixed / total[:, None]).astype(o_ref.dtype)
    sums_ref[...] = highest + jnp.log2(total)


def _query_gradient_kernel(
    q_ref: Any, k_ref: Any, v_ref: Any, first_ref: Any, gradient_ref: Any, sums_ref: Any, inner_ref: Any, dq_ref: Any,
    *, how: Settings,
) -> None:  # fmt: skip
    number, q, first, gradient, block = pl.program_id(0), q_ref[...], first_ref[...], gradient_ref[...], how.block
    queries, sums, inner = _row(number, block).T, sums_ref[...], inner_ref[...]

    def add(j: jax.Array, dq: jax.Array) -> jax.Array:
        here = pl.ds(j * block, block)
        k = k_ref[:, here]
        seen = _seen(queries, first[:, None], _row(j, block))
        _, slope = _weights_and_slopes(q, k, gradient, v_ref[here, :].T, sums[:, None], inner[:, None], seen, how)
        return dq + dot(slope.astype(q.dtype), k.T)

    dq = jax.lax.fori_loop(jnp.min(first) // block, number + 1, add, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = dq.astype(dq_ref.dtype)


def _key_gradients_kernel(
    q_ref: Any, k_ref: Any, v_ref: Any, first_ref: Any, last_ref: Any, gradient_ref: Any, sums_ref: Any, inner_ref: Any,
    dk_ref: Any, dv_ref: Any, *, how: Settings, groups: int,
) -> None:  # fmt: skip
    number, k, v, block = pl.program_id(0), k_ref[...].T, v_ref[...], how.block  # [keys, C] each
    keys = _row(number, block).T
    end = last_ref[number] // block + 1

    def add(n: jax.Array, so_far: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dk, dv = so_far
        group, i = n // (end - number), number + n % (end - number)
        here = pl.ds(i * block, block)
        q, gradient = q_ref[here, group, :], gradient_ref[here, group, :]
        seen = _seen(_row(i, block), first_ref[here][None, :], keys)
        sums, inner = sums_ref[group, here], inner_ref[group, here]
        # With the keys as rows nothing that was computed here is transposed.
        weights, slope = _weights_and_slopes(k, q.T, v, gradient.T, sums[None, :], inner[None, :], seen, how)
        return dk + dot(slope.astype(q.dtype), q), dv + dot(weights.astype(q.dtype), gradient)

    start = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    dk, dv = jax.lax.fori_loop(0, groups * (end - number), add, start)
    dk_ref[...], dv_ref[...] = dk.T.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)


def _scores(left: jax.Array, right: jax.Array, how: Settings) -> tuple[jax.Array, jax.Array | float]:
    """The scores left @ right times log2(e), and their derivative by the scaled product."""
    scores = how.scale * dot(left, right)
    if not how.cap:
        return scores * LOG2_E, 1.0
    share = jnp.tanh(scores / how.cap)
    return share * (how.cap * LOG2_E), 1 - share**2


def _weights_and_slopes(
    left: jax.Array, right: jax.Array, left_gradient: jax.Array, right_gradient: jax.Array, sums: jax.Array, inner: jax.Array,
    seen: jax.Array, how: Settings,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The attention weights, and the gradient of the products left @ right (Dao 2023, section 3.1).

    left, right: queries [N, C] and keys [C, N], or the other way round; left_gradient, right_gradient: likewise the outputs'
    gradients and the values. sums, inner: of each query, to be broadcast.
    """
    scores, derivative = _scores(left, right, how)
    weights = jnp.where(seen, jnp.exp2(scores - sums), 0.0)
    return weights, how.scale * derivative * weights * (dot(left_gradient, right_gradient) - inner)


def _row(number: jax.Array, block: int) -> jax.Array:
    """The places of a block's tokens, int32 [1, N]."""
    return number * block + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)


def _seen(queries: jax.Array, first: jax.Array, keys: jax.Array) -> jax.Array:
    """Whether queries see keys; all are places, to be broadcast."""
    return (keys <= queries) & (keys >= first)


def dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """The product of two tiles, float32."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jax.lax.dot(left, right, precision=precision, preferred_element_type=jnp.float32)
