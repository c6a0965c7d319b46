"""Splash attention, JAX's fused kernel for TPUs, with this decoder's shapes and masks.

Axes: B batch, T tokens, H query heads, K key/value heads, C head width.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from ecgbyte_jax.model.config import ATTENTION

_TILES = (512, 256, 128)  # tokens; the largest that divides a row


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    window: jax.Array,
    windows: Sequence[int],
    scale: float,
    cap: float = 0.0,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Attends from q [B, T, H, C] to k [B, K, C, T] and v [B, K, T, C] -> [B, T, H, C], as `attention.attend` does.

    segment_ids: int32 [B, T], the example's number of each token. window: int32 [], one of `windows`, which are known when the
    program is compiled; 0: no limit. interpret: without a TPU, which is slow.
    """
    tokens = q.shape[1]
    more = -tokens % _TILES[-1]
    pad = partial(jnp.pad, pad_width=((0, 0), (0, 0), (0, more), (0, 0)))
    heads = pad((scale * q).transpose(0, 2, 1, 3)), pad(k.swapaxes(2, 3)), pad(v)
    ids = jnp.pad(segment_ids, ((0, 0), (0, more)))
    limits = sorted({reach if reach < tokens else 0 for reach in windows})  # what is farther than the row is no limit
    tile = next(size for size in _TILES if ids.shape[1] % size == 0)
    paths = [partial(_attend, tile=tile, window=limit, cap=cap, interpret=interpret) for limit in limits]
    if len(paths) == 1:
        mixed = paths[0](*heads, ids)
    else:
        within = jnp.where(window < tokens, window, 0)
        mixed = jax.lax.switch(jnp.searchsorted(jnp.array(limits), within), paths, *heads, ids)
    return mixed.transpose(0, 2, 1, 3)[:, :tokens]


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, *, tile: int, window: int, cap: float,
    interpret: bool,
) -> jax.Array:  # fmt: skip
    """The mixed values [B, H, T, C] of scaled q [B, H, T, C], k and v [B, K, T, C]."""
    _, heads, tokens, _ = q.shape
    shape = (tokens, tokens)
    mask = masks.LocalMask(shape, (window - 1, 0), 0) if window else masks.CausalMask(shape)
    sizes = {name: tile for name in ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")}
    attend = kernel.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernel.BlockSizes(**sizes),
        attn_logits_soft_cap=cap or None,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )
    return jax.vmap(lambda q, k, v, ids: attend(q, k, v, kernel.SegmentIds(ids, ids)))(q, k, v, segment_ids)
