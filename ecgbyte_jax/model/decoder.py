"""A causal decoder of the Llama architecture in Flax NNX.

Axes: B batch, T tokens given, S tokens attended to (the cache's length where there is one), D width, H query heads,
K key/value heads, G = H / K, C head width, F MLP width, V vocabulary, R LoRA rank.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

# The mesh axes that a batch is split over; see run/sharding.py for those of the parameters.
BATCH_AXES = ("data", "fsdp")


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the low rotary frequencies (`rope_type: llama3` in config.json)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that makes one decoder; sizes as in the axis legend. dtype computes, param_dtype stores."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    max_positions: int
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied_embeddings: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens so far, one [B, S, K, C] a layer, and where the next token goes (int32 [])."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    index: jax.Array

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, length: int) -> "Cache":
        """Room for `length` tokens of `batch` rows."""
        one = jnp.zeros((batch, length, config.kv_heads, config.head_dim), config.dtype)
        return cls((one,) * config.layers, (one,) * config.layers, jnp.int32(0))


class Linear(nnx.Module):
    """x @ kernel without bias, plus a LoRA path where `lora.add_lora` put one."""

    def __init__(self, n_in: int, n_out: int, config: DecoderConfig, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_normal(rngs, (n_in, n_out), n_in, config))
        self.dtype = config.dtype
        self.lora = nnx.data(None)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[..., n_in] -> [..., n_out]; `key` draws LoRA's dropout, None leaves it off."""
        y = x @ self.kernel[...].astype(self.dtype)
        return y if self.lora is None else y + self.lora(x, key)


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), computed in float32."""

    def __init__(self, width: int, config: DecoderConfig):
        self.scale = nnx.Param(jnp.ones((width,), config.param_dtype))
        self.eps = config.norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        return (normed * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
    """Causal self-attention with grouped heads and rotary positions."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = Linear(config.width, queries, config, rngs)
        self.k = Linear(config.width, keys, config, rngs)
        self.v = Linear(config.width, keys, config, rngs)
        self.o = Linear(queries, config.width, config, rngs)

    def __call__(self, x, rope, mask, past, key):
        """x [B, T, D], mask bool [B, 1, T, S], past (keys, values, index) or None -> ([B, T, D], (keys, values))."""
        cfg, (b, t, _) = self.config, x.shape
        kq, kk, kv, ko = _split_key(key, 4)
        q = _rotate(self.q(x, kq).reshape(b, t, cfg.heads, cfg.head_dim), rope)  # [B, T, H, C]
        k = _rotate(self.k(x, kk).reshape(b, t, cfg.kv_heads, cfg.head_dim), rope)  # [B, T, K, C]
        v = self.v(x, kv).reshape(b, t, cfg.kv_heads, cfg.head_dim)  # [B, T, K, C]
        if past is not None:
            keys, values, index = past
            k = jax.lax.dynamic_update_slice(keys, k, (0, index, 0, 0))  # [B, S, K, C]
            v = jax.lax.dynamic_update_slice(values, v, (0, index, 0, 0))
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)  # [B, T, H, C]
        return self.o(mixed.reshape(b, t, -1), ko), (k, v)


class MLP(nnx.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.gate = Linear(config.width, config.mlp_width, config, rngs)
        self.up = Linear(config.width, config.mlp_width, config, rngs)
        self.down = Linear(config.mlp_width, config.width, config, rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        kg, ku, kd = _split_key(key, 3)
        return self.down(jax.nn.silu(self.gate(x, kg)) * self.up(x, ku), kd)  # [B, T, D]


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, config)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.width, config)
        self.mlp = MLP(config, rngs)

    def __call__(self, x, rope, mask, past, key):
        ka, km = _split_key(key, 2)
        mixed, kept = self.attention(self.attention_norm(x), rope, mask, past, ka)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x), km), kept


class Decoder(nnx.Module):
    """Token ids to logits."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Param(_normal(rngs, (config.vocab_size, config.width), config.width, config))  # [V, D]
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.layers)])
        self.norm = RMSNorm(config.width, config)
        self.head = nnx.data(None if config.tied_embeddings else Linear(config.width, config.vocab_size, config, rngs))

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Ids [B, T] to float32 logits [B, T, V]; attention_mask [B, T] is 1 on tokens, 0 on padding.

        Positions count the real tokens unless they are given.
        """
        return self.logits(self.hidden(input_ids, attention_mask, positions)[0])

    def hidden(self, input_ids, attention_mask=None, positions=None, *, cache=None, dropout_key=None):
        """Ids [B, T] to the last hidden states [B, T, D], and the cache with these tokens in it (None without one).

        With a cache, attention_mask is [B, S] over all its places. `dropout_key` switches LoRA's dropout on.
        """
        b, t = input_ids.shape
        start = jnp.int32(0) if cache is None else cache.index
        if attention_mask is None:
            attention_mask = jnp.ones((b, t if cache is None else cache.keys[0].shape[1]), bool)
        valid = attention_mask.astype(bool)  # [B, S]
        if positions is None:
            counted = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)  # [B, S]
            positions = jax.lax.dynamic_slice_in_dim(counted, start, t, axis=1)  # [B, T]
        causal = jnp.arange(valid.shape[1]) <= start + jnp.arange(t)[:, None]  # [T, S]
        mask = causal[None, None] & valid[:, None, None, :]  # [B, 1, T, S]
        rope = _rope_angles(self.config, positions)
        x = _split_over_mesh(self.embedding[...].astype(self.config.dtype)[input_ids])  # [B, T, D]
        keys = _split_key(dropout_key, len(self.blocks))
        apply = jax.checkpoint(_apply_block) if self.config.remat else _apply_block
        kept = []
        for i, block in enumerate(self.blocks):
            past = None if cache is None else (cache.keys[i], cache.values[i], start)
            x, kv = apply(block, x, rope, mask, past, keys[i])
            kept.append(kv)
        if cache is not None:
            cache = Cache(tuple(k for k, _ in kept), tuple(v for _, v in kept), start + t)
        return self.norm(x), cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [B, T, D] to float32 logits [B, T, V]."""
        if self.head is None:
            kernel = self.embedding[...].astype(self.config.dtype).T  # [D, V]
        else:
            kernel = self.head.kernel[...].astype(self.config.dtype)
        return jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)


def _apply_block(block, x, rope, mask, past, key):
    return block(x, rope, mask, past, key)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, config: DecoderConfig) -> jax.Array:
    """Standard deviation fan_in^-0.5 (LeCun): Llama's 0.02 is that of a width of 2,500, too small for small models."""
    return fan_in**-0.5 * jax.random.normal(rngs.params(), shape, config.param_dtype)


def _split_key(key: jax.Array | None, count: int):
    return [None] * count if key is None else jax.random.split(key, count)


def _split_over_mesh(x: jax.Array) -> jax.Array:
    """Holds the residual stream [B, T, D] to a split over the batch; without a mesh in force it does nothing.

    Left to itself the partitioner follows the embedding's own sharding and splits D instead.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, None, None)) if axes else x


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


def _rope_angles(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of each position, float32 [B, T, 1, C / 2]."""
    angles = positions[..., None, None].astype(jnp.float32) * _inverse_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns the pairs (c, c + C / 2) of x [B, T, heads, C] by their angles."""
    cos, sin = rope
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
