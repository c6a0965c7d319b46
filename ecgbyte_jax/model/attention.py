"""Causal self-attention: grouped heads, windows, caps.

Axes: B batch, T input tokens, S attended tokens (the input's or a cache's), D width, H query heads, K key/value heads,
G = H / K, C head width.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ecgbyte_jax.model.config import ATTENTION, DecoderConfig
from ecgbyte_jax.model.layers import Linear, Norm, soft_cap, split_key
from ecgbyte_jax.model.rope import Rope, rotate

_QUERIES = 128  # per block, see `attend`

Part = tuple[jax.Array, jax.Array]  # keys [B, K, C, S], values [B, K, S, C]: the layouts that the products read
# Attends from queries [B, T, H, C] to their tokens' own keys [B, K, C, T] and values [B, K, T, C], and to earlier ones if it
# knows any -> [B, T, H, C]: `attend` or `kernels.fused.fused_attention`, bound to masks.
Mix = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Attention(nnx.Module):
    """Self-attention with its projections from and to the residual stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = Linear(config.width, queries * (1 + config.attention_gate), config.qkv_bias, config, rngs)
        self.k = Linear(config.width, keys, config.qkv_bias, config, rngs)
        self.v = Linear(config.width, keys, config.qkv_bias, config, rngs)
        self.o = Linear(queries, config.width, config.o_bias, config, rngs)
        normed = {"": None, "head": (config.head_dim, config.head_dim), "all": (queries, keys)}[config.qk_norm]
        self.q_norm = nnx.data(Norm(normed[0], config, "rms") if normed else None)
        self.k_norm = nnx.data(Norm(normed[1], config, "rms") if normed else None)

    def __call__(self, x: jax.Array, rope: Rope | None, mix: Mix, key: jax.Array | None) -> tuple[jax.Array, Part]:
        """Maps x [B, T, D] to ([B, T, D], (keys, values) of these tokens); `key` draws LoRA's dropout."""
        kx, ko = split_key(key, 2)
        q, k, v, gate = self._project(x, rope, kx)
        mixed = checkpoint_name(mix(q, k, v), ATTENTION)  # [B, T, H, C]
        if gate is not None:
            mixed = mixed * jax.nn.sigmoid(gate)
        return checkpoint_name(self.o(mixed.reshape(*x.shape[:2], -1), ko), ATTENTION), (k, v)

    def weights(self, x: jax.Array, rope: Rope | None, mask: jax.Array) -> jax.Array:
        """The attention weights float32 [B, H, T, T] of x [B, T, D] under mask bool [B, 1, T, T]; rows sum to 1."""
        q, k, _, _ = self._project(x, rope, None)
        weights = jax.nn.softmax(_scores(q, k, mask, self.config), axis=-1)  # [B, K, G, T, T]
        return weights.reshape(weights.shape[0], -1, *weights.shape[-2:])

    def _project(
        self, x: jax.Array, rope: Rope | None, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        """Queries [B, T, H, C], keys [B, K, C, T] and values [B, K, T, C], with norms and rotary positions applied.

        Last, what gates the output [B, T, H, C], None where nothing does.
        """
        cfg, (b, t, _) = self.config, x.shape
        q, k, v = (checkpoint_name(part, ATTENTION) for part in (self.q(x, key), self.k(x, key), self.v(x, key)))
        gate = None
        if cfg.attention_gate:
            q, gate = jnp.split(q.reshape(b, t, cfg.heads, -1), 2, axis=-1)  # [B, T, H, C] each
            q = q.reshape(b, t, -1)
        if cfg.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.reshape(b, t, cfg.heads, cfg.head_dim)  # [B, T, H, C]
        k = k.reshape(b, t, cfg.kv_heads, cfg.head_dim)  # [B, T, K, C]
        v = v.reshape(b, t, cfg.kv_heads, cfg.head_dim)  # [B, T, K, C]
        if cfg.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), gate


def attend(q: jax.Array, parts: Sequence[Part], masks: Sequence[jax.Array], config: DecoderConfig) -> jax.Array:
    """Attends from q [B, T, H, C] to the parts, under a mask bool [B, 1, T, S] for each -> [B, T, H, C]; float32 softmax.

    A part has B rows, or P rows each shared by B / P consecutive ones; the last is the tokens' own (S = T). A block of queries
    reads its keys only up to the block's end: this halves the work, and no [B, H, T, T] is in memory at once.
    """
    tokens, (*past, (k, v)) = q.shape[1], parts
    mixed = []
    for start in range(0, tokens, _QUERIES):
        end = min(start + _QUERIES, tokens)
        block_masks = [mask[:, :, start:end] for mask in masks]
        block_masks[-1] = block_masks[-1][..., :end]
        mixed.append(_attend(q[:, start:end], [*past, (k[..., :end], v[:, :, :end])], block_masks, config))
    return jnp.concatenate(mixed, axis=1)


def _attend(q: jax.Array, parts: Sequence[Part], masks: Sequence[jax.Array], config: DecoderConfig) -> jax.Array:
    b, t, h, c = q.shape
    scores = [_scores(q, k, mask, config) for (k, _), mask in zip(parts, masks)]
    # A softmax over all parts without joining them: scores of a long past would be copied for every token.
    highest = jax.lax.stop_gradient(reduce(jnp.maximum, [jnp.max(own, axis=-1, keepdims=True) for own in scores]))
    weights = [jnp.exp(own - highest) for own in scores]
    total = sum(jnp.sum(own, axis=-1, keepdims=True) for own in weights)  # [B, K, G, T, 1]
    weights = [(own / total).astype(q.dtype).reshape(b, config.kv_heads, -1, own.shape[-1]) for own in weights]  # [B, K, GT, S]
    mixed = sum(_by_row("bkqs,bksc->bkqc", own, v) for own, (_, v) in zip(weights, parts))
    return mixed.reshape(b, config.kv_heads, -1, t, c).transpose(0, 3, 1, 2, 4).reshape(b, t, h, c)


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array, config: DecoderConfig) -> jax.Array:
    """The masked scores float32 [B, K, G, T, S] of q [B, T, H, C] and the keys of one part.

    The G query heads of a key head are rows of one matrix: fewer and larger products than one head at a time.
    """
    b, t, h, c = q.shape
    kv = config.kv_heads
    grouped = q.reshape(b, t, kv, -1, c).transpose(0, 2, 3, 1, 4).reshape(b, kv, -1, c)  # [B, K, GT, C]
    scores = _by_row("bkqc,bkcs->bkqs", grouped, k, preferred_element_type=jnp.float32)
    scores = soft_cap((config.query_scale or c**-0.5) * scores, config.attention_cap)
    return jnp.where(mask[:, :, None], scores.reshape(b, kv, h // kv, t, -1), jnp.finfo(jnp.float32).min)


def _by_row(equation: str, left: jax.Array, right: jax.Array, **options: Any) -> jax.Array:
    """The einsum of left [B, K, Q, .] and right [P, K, ., .]; each row of `right` serves R = B / P consecutive rows."""
    (b, k, n, _), p = left.shape, len(right)
    if b == p:
        return jnp.einsum(equation, left, right, **options)
    grouped = left.reshape(p, b // p, k, n, -1).transpose(0, 2, 1, 3, 4).reshape(p, k, b // p * n, -1)  # [P, K, RQ, .]
    mixed = jnp.einsum(equation, grouped, right, **options)
    return mixed.reshape(p, k, b // p, n, -1).transpose(0, 2, 1, 3, 4).reshape(b, k, n, -1)


def causal_mask(segment_ids: jax.Array) -> jax.Array:
    """The causal mask bool [B, 1, T, T] within each example; segment_ids int32 [B, T]: the example's number, 0 on padding."""
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids != 0)[:, None, :]
    return (same & jnp.tri(segment_ids.shape[1], dtype=bool))[:, None]


def count_positions(segment_ids: jax.Array) -> jax.Array:
    """Each token's position among the real tokens of its example, int32 [B, T]; segment_ids [B, T] rise from 1."""
    counted = jnp.cumsum(segment_ids != 0, axis=1) - 1
    before = jnp.pad(jax.lax.cummax(segment_ids, axis=1), ((0, 0), (1, 0)))[:, :-1]
    starts = jax.lax.cummax(jnp.where(segment_ids > before, counted, 0), axis=1)
    return jnp.maximum(counted - starts, 0).astype(jnp.int32)


def within(mask: jax.Array, positions: jax.Array, key_positions: jax.Array, window: jax.Array | int) -> jax.Array:
    """The mask [B, 1, T, S] without tokens that are `window` positions back or more; 0 is no limit.

    positions int32 [B, T] of the queries, key_positions [B, S] of the attended tokens.
    """
    back = positions[:, None, :, None] - key_positions[:, None, None, :]
    return mask & ((window == 0) | (back < window))
