"""Causal self-attention: grouped heads, rotary positions, windows, caps.

Axes: B batch, T tokens given, S tokens attended to (those given, or those of a cache), D width, H query heads,
K key/value heads, G = H / K, C head width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.layers import Linear, Norm, soft_cap, split_key

_QUERIES = 128  # of a block


class Attention(nnx.Module):
    """Queries, keys and values of the residual stream, mixed and projected back."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = Linear(config.width, queries, config.qkv_bias, config, rngs)
        self.k = Linear(config.width, keys, config.qkv_bias, config, rngs)
        self.v = Linear(config.width, keys, config.qkv_bias, config, rngs)
        self.o = Linear(queries, config.width, config.o_bias, config, rngs)
        self.q_norm = nnx.data(Norm(config.head_dim, config, "rms") if config.qk_norm else None)
        self.k_norm = nnx.data(Norm(config.head_dim, config, "rms") if config.qk_norm else None)

    def __call__(self, x, rope, masks, past, key):
        """x [B, T, D] -> ([B, T, D], (keys, values) of these tokens).

        past: (keys [B, K, C, S], values [B, K, S, C]) of the tokens before them, in any number of parts, each of B rows or of
        fewer that the B share evenly; masks: a bool [B, 1, T, S] for each part, and the last one [B, 1, T, T] for the tokens
        themselves.
        """
        *inward, ko = split_key(key, 4)
        q, k, v = self._project(x, rope, inward)
        mixed = attend(q, [*past, (k, v)], masks, self.config)  # [B, T, H, C]
        return self.o(mixed.reshape(*x.shape[:2], -1), ko), (k, v)

    def weights(self, x, rope, mask):
        """What `__call__` mixes the values by, for those who look at it: x [B, T, D], mask bool [B, 1, T, T] -> float32
        [B, H, T, T], rows that sum to 1.
        """
        q, k, _ = self._project(x, rope, (None,) * 3)
        weights = _weights(q, [k], [mask], self.config)  # [B, K, G, T, T]
        return weights.reshape(weights.shape[0], -1, *weights.shape[-2:])

    def _project(self, x, rope, keys):
        """Queries [B, T, H, C], keys [B, K, C, T] and values [B, K, T, C], normed and turned as they are compared.

        `keys` draw dropout.
        """
        cfg, (b, t, _) = self.config, x.shape
        kq, kk, kv = keys
        q = self.q(x, kq).reshape(b, t, cfg.heads, cfg.head_dim)  # [B, T, H, C]
        k = self.k(x, kk).reshape(b, t, cfg.kv_heads, cfg.head_dim)  # [B, T, K, C]
        v = self.v(x, kv).reshape(b, t, cfg.kv_heads, cfg.head_dim)  # [B, T, K, C]
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)


Part = tuple[jax.Array, jax.Array]  # keys [B, K, C, S], values [B, K, S, C]: as the products read them


def attend(q: jax.Array, parts: Sequence[Part], masks: Sequence[jax.Array], config: DecoderConfig) -> jax.Array:
    """q [B, T, H, C], the parts attended to and a mask bool [B, 1, T, S] for each -> [B, T, H, C]; softmax in float32.

    The last part is that of the tokens themselves (S = T): a block of queries looks at its keys up to the block's own end
    alone, which is half the work, and no [B, H, T, T] at once.
    """
    tokens, (*past, (k, v)) = q.shape[1], parts
    mixed = []
    for start in range(0, tokens, _QUERIES):
        end = min(start + _QUERIES, tokens)
        seen = [mask[:, :, start:end] for mask in masks]
        seen[-1] = seen[-1][..., :end]
        mixed.append(_attend(q[:, start:end], [*past, (k[..., :end], v[:, :, :end])], seen, config))
    return jnp.concatenate(mixed, axis=1)


def _attend(q: jax.Array, parts: Sequence[Part], masks: Sequence[jax.Array], config: DecoderConfig) -> jax.Array:
    b, t, h, c = q.shape
    weights = _weights(q, [k for k, _ in parts], masks, config).astype(q.dtype)
    weights = weights.reshape(b, config.kv_heads, -1, weights.shape[-1])  # [B, K, GT, S]
    shares = jnp.split(weights, np.cumsum([mask.shape[3] for mask in masks])[:-1], axis=-1)
    mixed = sum(_by_row("bkqs,bksc->bkqc", share, v) for share, (_, v) in zip(shares, parts))
    return mixed.reshape(b, config.kv_heads, -1, t, c).transpose(0, 3, 1, 2, 4).reshape(b, t, h, c)


def _weights(q: jax.Array, keys: Sequence[jax.Array], masks: Sequence[jax.Array], config: DecoderConfig) -> jax.Array:
    """The softmax of the scores over all parts together, float32 [B, K, G, T, S].

    The G heads that share a key head are rows of one matrix: fewer and larger products than a head at a time.
    """
    b, t, h, c = q.shape
    kv = config.kv_heads
    grouped = q.reshape(b, t, kv, -1, c).transpose(0, 2, 3, 1, 4).reshape(b, kv, -1, c)  # [B, K, GT, C]
    scores = [_by_row("bkqc,bkcs->bkqs", grouped, k, preferred_element_type=jnp.float32) for k in keys]
    scores = soft_cap((config.query_scale or c**-0.5) * jnp.concatenate(scores, axis=-1), config.attention_cap)
    mask = jnp.concatenate(masks, axis=-1)[:, :, None]  # [B, 1, 1, T, S]
    return jax.nn.softmax(jnp.where(mask, scores.reshape(b, kv, h // kv, t, -1), jnp.finfo(jnp.float32).min), axis=-1)


def _by_row(product: str, left: jax.Array, right: jax.Array, **how) -> jax.Array:
    """`product` of left [B, K, Q, .] and right [P, K, ., .]; R = B / P rows that follow one another share one of `right`."""
    (b, k, n, _), p = left.shape, len(right)
    if b == p:
        return jnp.einsum(product, left, right, **how)
    together = left.reshape(p, b // p, k, n, -1).transpose(0, 2, 1, 3, 4).reshape(p, k, b // p * n, -1)  # [P, K, RQ, .]
    found = jnp.einsum(product, together, right, **how)
    return found.reshape(p, k, b // p, n, -1).transpose(0, 2, 1, 3, 4).reshape(b, k, n, -1)


def causal_mask(segments: jax.Array) -> jax.Array:
    """What tokens may see of each other, bool [B, 1, T, T]: their own segment (int32 [B, T], 0 is padding), nothing later."""
    same = (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, None, :]
    return (same & jnp.tri(segments.shape[1], dtype=bool))[:, None]


def count_positions(segments: jax.Array) -> jax.Array:
    """The position of every token among the real ones of its segment, int32 [B, S]; segments are numbered upwards from 1."""
    counted = jnp.cumsum(segments != 0, axis=1) - 1
    before = jnp.pad(jax.lax.cummax(segments, axis=1), ((0, 0), (1, 0)))[:, :-1]
    starts = jax.lax.cummax(jnp.where(segments > before, counted, 0), axis=1)
    return jnp.maximum(counted - starts, 0).astype(jnp.int32)


def within(mask: jax.Array, positions: jax.Array, seen: jax.Array, window: jax.Array | int) -> jax.Array:
    """The mask [B, 1, T, S] with nothing in it that lies `window` positions back or more; 0 is no limit.

    positions int32 [B, T] of the tokens, seen [B, S] of what they attend to.
    """
    back = positions[:, None, :, None] - seen[:, None, None, :]
    return mask & ((window == 0) | (back < window))


def _inverse_frequencies(config: DecoderConfig) -> np.ndarray:
    """float32 [C / 2], in radians a position (Su et al. 2021; scaled as Llama 3.1 does where config.json says so)."""
    frequencies = config.rope_theta ** -(np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies.astype(np.float32)
    turns = scaling.original_max_positions * frequencies / (2 * np.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    share = np.clip(share, 0.0, 1.0)  # 1: kept as it is, 0: divided by the factor
    return (frequencies * (share + (1 - share) / scaling.factor)).astype(np.float32)


def rope_angles(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of each position [B, T], float32 [B, T, 1, C / 2]."""
    angles = positions[..., None, None].astype(jnp.float32) * _inverse_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns the pairs (c, c + C / 2) of x [B, T, heads, C] by their angles."""
    cos, sin = rope
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
