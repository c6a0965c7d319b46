"""Causal self-attention: grouped heads, rotary positions, windows, caps.

Axes: B batch, T tokens given, S tokens attended to (the cache's length where there is one), D width, H query heads,
K key/value heads, G = H / K, C head width.
"""

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

    def __call__(self, x, rope, mask, past, key):
        """x [B, T, D], mask bool [B, 1, T, S], past (keys, values, index) or None -> ([B, T, D], (keys, values)).

        Several tokens and a past: they are the prompt, the first ones in an empty cache, and attend to themselves (S = T).
        """
        cfg, (b, t, _) = self.config, x.shape
        *inward, ko = split_key(key, 4)
        q, k, v = self._project(x, rope, inward)
        if past is not None:
            keys, values, index = past
            keys = jax.lax.dynamic_update_slice(keys, k, (0, index, 0, 0))  # [B, S, K, C]
            values = jax.lax.dynamic_update_slice(values, v, (0, index, 0, 0))
        alone = past is None or t > 1
        mixed = attend(q, k, v, mask, cfg) if alone else attend(q, keys, values, mask, cfg)  # [B, T, H, C]
        return self.o(mixed.reshape(b, t, -1), ko), None if past is None else (keys, values)

    def weights(self, x, rope, mask):
        """What `__call__` mixes the values by, for those who look at it: x [B, T, D], mask bool [B, 1, T, T] -> float32
        [B, H, T, T], rows that sum to 1.
        """
        q, k, _ = self._project(x, rope, (None,) * 3)
        weights = _weights(q, k, mask, self.config)  # [B, K, G, T, T]
        return weights.reshape(weights.shape[0], -1, *weights.shape[-2:])

    def _project(self, x, rope, keys):
        """Queries [B, T, H, C], keys and values [B, T, K, C], normed and turned as they are compared; `keys` draw dropout."""
        cfg, (b, t, _) = self.config, x.shape
        kq, kk, kv = keys
        q = self.q(x, kq).reshape(b, t, cfg.heads, cfg.head_dim)  # [B, T, H, C]
        k = self.k(x, kk).reshape(b, t, cfg.kv_heads, cfg.head_dim)  # [B, T, K, C]
        v = self.v(x, kv).reshape(b, t, cfg.kv_heads, cfg.head_dim)  # [B, T, K, C]
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q, k, v


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, config: DecoderConfig) -> jax.Array:
    """q [B, T, H, C], k and v [B, S, K, C], mask bool [B, 1, T, S] -> [B, T, H, C]; softmax in float32.

    Where the tokens attend to themselves (S = T) a block of queries looks at the keys up to its own end alone: half the work,
    and no [B, H, T, T] at once.
    """
    tokens = q.shape[1]
    if k.shape[1] != tokens or tokens <= _QUERIES:
        return _attend(q, k, v, mask, config)
    blocks = [(start, min(start + _QUERIES, tokens)) for start in range(0, tokens, _QUERIES)]
    mixed = [_attend(q[:, a:b], k[:, :b], v[:, :b], mask[:, :, a:b, :b], config) for a, b in blocks]
    return jnp.concatenate(mixed, axis=1)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, config: DecoderConfig) -> jax.Array:
    b, t, h, c = q.shape
    weights = _weights(q, k, mask, config).astype(v.dtype).reshape(b, k.shape[2], -1, k.shape[1])  # [B, K, GT, S]
    mixed = jnp.einsum("bkqs,bskc->bkqc", weights, v)
    return mixed.reshape(b, k.shape[2], -1, t, c).transpose(0, 3, 1, 2, 4).reshape(b, t, h, c)


def _weights(q: jax.Array, k: jax.Array, mask: jax.Array, config: DecoderConfig) -> jax.Array:
    """The softmax of the scores, float32 [B, K, G, T, S].

    The G heads that share a key head are rows of one matrix: fewer and larger products than a head at a time.
    """
    b, t, h, c = q.shape
    s, kv = k.shape[1:3]
    grouped = q.reshape(b, t, kv, -1, c).transpose(0, 2, 3, 1, 4).reshape(b, kv, -1, c)  # [B, K, GT, C]
    scores = jnp.einsum("bkqc,bskc->bkqs", grouped, k, preferred_element_type=jnp.float32)
    scores = soft_cap((config.query_scale or c**-0.5) * scores, config.attention_cap).reshape(b, kv, h // kv, t, s)
    return jax.nn.softmax(jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min), axis=-1)


def causal_mask(segments: jax.Array, start: jax.Array, tokens: int) -> tuple[jax.Array, jax.Array]:
    """(what may be attended to, bool [B, 1, T, S]; how far back it lies, int32 [T, S] in places).

    segments int32 [B, S] is 0 on padding, and a token sees its own segment alone; the T tokens given stand at places `start`
    to `start` + T - 1.
    """
    back = start + jnp.arange(tokens)[:, None] - jnp.arange(segments.shape[1])  # [T, S]
    own = jax.lax.dynamic_slice_in_dim(segments, start, tokens, axis=1)  # [B, T]
    same = (own[:, :, None] == segments[:, None, :]) & (segments != 0)[:, None, :]  # [B, T, S]
    return (back >= 0)[None, None] & same[:, None], back


def count_positions(segments: jax.Array) -> jax.Array:
    """The position of every token among the real ones of its segment, int32 [B, S]; segments are numbered upwards from 1."""
    counted = jnp.cumsum(segments != 0, axis=1) - 1
    before = jnp.pad(jax.lax.cummax(segments, axis=1), ((0, 0), (1, 0)))[:, :-1]
    starts = jax.lax.cummax(jnp.where(segments > before, counted, 0), axis=1)
    return jnp.maximum(counted - starts, 0).astype(jnp.int32)


def within(mask: jax.Array, back: jax.Array, window: jax.Array | int) -> jax.Array:
    """The mask with nothing in it that lies `window` places back or more; 0 is no limit."""
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
