"""The parts of the encoders: linear maps, layer norm, attention, a pre-norm block, fixed positions.

Axes: B batch, T tokens, D width, H heads, C channels of a head.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.encoders.config import Stack


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

    def __init__(self, width: int, epsilon: float = 1e-5):
        self.epsilon = epsilon
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x [..., width] over its last axis."""
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.epsilon)
        return x * self.scale[...] + self.bias[...]


class Attention(nnx.Module):
    """softmax(q k^T / sqrt(C)) v in each head, over all tokens or, causal, those up to a query's own (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, causal: bool = False):
        self.q, self.k, self.v, self.o = (Linear(width, width, rngs) for _ in range(4))
        self.heads, self.causal = heads, causal

    def __call__(self, queries: jax.Array, tokens: jax.Array) -> jax.Array:
        """What each of the queries [B, T', D] takes from the tokens [B, T, D]: [B, T', D]."""
        q, k, v = (self._split(each) for each in (self.q(queries), self.k(tokens), self.v(tokens)))  # [B, T, H, C]
        return self.o(jax.nn.dot_product_attention(q, k, v, is_causal=self.causal).reshape(queries.shape))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with a GELU (Dosovitskiy et al. 2021, section 3.1)."""

    def __init__(self, stack: Stack, rngs: nnx.Rngs):
        self.quick = stack.gelu == "quick"
        self.attention_norm, self.mlp_norm = (LayerNorm(stack.width, stack.epsilon) for _ in range(2))
        self.attention = Attention(stack.width, stack.heads, rngs, stack.causal)
        self.up, self.down = Linear(stack.width, stack.mlp_width, rngs), Linear(stack.mlp_width, stack.width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed)
        hidden = self.up(self.mlp_norm(x))
        return x + self.down(hidden * jax.nn.sigmoid(1.702 * hidden) if self.quick else jax.nn.gelu(hidden, approximate=False))

    def flops(self, tokens: int) -> float:
        """For so many tokens: 2 a parameter and token, and 4 T^2 D in the attention."""
        sizes, width = sum(part.size for part in jax.tree.leaves(nnx.state(self))), self.attention_norm.scale.size
        return 2.0 * tokens * (sizes + 2 * tokens * width)


class Transformer(nnx.Module):
    """Pre-norm blocks and a last layer norm."""

    def __init__(self, stack: Stack, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(stack, rngs) for _ in range(stack.layers)])
        self.norm = LayerNorm(stack.width, stack.epsilon)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def flops(self, tokens: int) -> float:
        """Of the blocks, for so many tokens."""
        return sum(block.flops(tokens) for block in self.blocks)


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
