"""The parts of the encoders: linear maps, layer norm, attention, a pre-norm block, fixed positions.

Axes: B batch, T tokens, D width, H heads, C channels of a head.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.encoders.config import Stack

_EPS = 1e-5


class Linear(nnx.Module):
    """x @ kernel + bias; Xavier-uniform kernel (Glorot & Bengio 2010), zero bias."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs, bias: bool = True):
        bound = (6 / (n_in + n_out)) ** 0.5
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (n_in, n_out), minval=-bound, maxval=bound))
        self.bias = nnx.data(nnx.Param(jnp.zeros(n_out)) if bias else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., n_in] to [..., n_out]."""
        y = x @ self.kernel[...]
        return y if self.bias is None else y + self.bias[...]


class LayerNorm(nnx.Module):
    """Layer norm (Ba et al. 2016)."""

    def __init__(self, width: int):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x [..., width] over its last axis."""
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + _EPS) * self.scale[...] + self.bias[...]


class Attention(nnx.Module):
    """softmax(q k^T / sqrt(C)) v in each head, without a mask (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.q, self.k, self.v, self.o = (Linear(width, width, rngs) for _ in range(4))
        self.heads = heads

    def __call__(self, queries: jax.Array, tokens: jax.Array) -> jax.Array:
        """What each of the queries [B, T', D] takes from the tokens [B, T, D]: [B, T', D]."""
        q, k, v = (self._split(each) for each in (self.q(queries), self.k(tokens), self.v(tokens)))  # [B, T, H, C]
        return self.o(jax.nn.dot_product_attention(q, k, v).reshape(queries.shape))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with an exact GELU (Dosovitskiy et al. 2021, section 3.1)."""

    def __init__(self, stack: Stack, rngs: nnx.Rngs):
        self.attention_norm, self.mlp_norm = LayerNorm(stack.width), LayerNorm(stack.width)
        self.attention = Attention(stack.width, stack.heads, rngs)
        self.up, self.down = Linear(stack.width, stack.mlp_width, rngs), Linear(stack.mlp_width, stack.width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed)
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x)), approximate=False))


class Transformer(nnx.Module):
    """Pre-norm blocks and a last layer norm."""

    def __init__(self, stack: Stack, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(stack, rngs) for _ in range(stack.layers)])
        self.norm = LayerNorm(stack.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def token_vector(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    """Learned tokens, drawn from N(0, 0.02)."""
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))


def sine_positions(count: int, width: int) -> jax.Array:
    """sin(p w_i) for the first half of the width, cos(p w_i) for the second, w_i = 1e4^(-2 i / D): float32 [count, D].

    Source: Vaswani et al. 2017, section 3.5.
    """
    frequencies = 1e4 ** (-jnp.arange(width // 2) / (width // 2))
    angles = jnp.arange(count)[:, None] * frequencies  # [count, D / 2]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
