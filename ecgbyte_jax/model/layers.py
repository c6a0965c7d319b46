"""The parts of the decoder that do not depend on positions: linear maps, norms, the MLP.

Axes: D width, F MLP width.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ecgbyte_jax.model.config import MLP_HIDDEN, DecoderConfig
from ecgbyte_jax.model.quantized.kernel import QuantizedKernel

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, config: DecoderConfig) -> jax.Array:
    """Normal weights of standard deviation fan_in^-0.5 (LeCun); Llama's 0.02 fits a width of 2,500, not small models."""
    return fan_in**-0.5 * jax.random.normal(rngs.params(), shape, config.param_dtype)


def split_key(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """`count` keys, or `count` times None without a key."""
    return [None] * count if key is None else jax.random.split(key, count)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """A soft cap, cap * tanh(x / cap), or x where cap is 0 (Gemma 2, section 2)."""
    return cap * jnp.tanh(x / cap) if cap else x


class Linear(nnx.Module):
    """x @ kernel, plus a bias where the family has one and a LoRA path where `lora.add_lora` added one."""

    def __init__(self, n_in: int, n_out: int, bias: bool, config: DecoderConfig, rngs: nnx.Rngs):
        self.kernel: nnx.Param | QuantizedKernel = nnx.Param(normal(rngs, (n_in, n_out), n_in, config))
        self.bias = nnx.data(nnx.Param(jnp.zeros((n_out,), config.param_dtype)) if bias else None)
        self.dtype = config.dtype
        self.lora = nnx.data(None)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps [..., n_in] to [..., n_out]; `key` draws LoRA's dropout, None switches it off.

        Maps of one input are called with one key: it is dropped once for all of them.
        """
        kernel = self.kernel
        y = kernel.multiply(x) if isinstance(kernel, QuantizedKernel) else x @ kernel[...].astype(self.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)
        return y if self.lora is None else y + self.lora(x, key)


@jax.custom_vjp
def float32_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies x [B, T, D] by kernel [D, V] in float32; gradients of bfloat16 come from products of it, as in PyTorch."""
    return jnp.einsum("btd,dv->btv", x, kernel, preferred_element_type=jnp.float32)


def _float32_product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return float32_product(x, kernel), (x, kernel)


def _float32_product_backward(kept: tuple[jax.Array, jax.Array], y_bar: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Products of float32 take accelerators several times as long; float16 would lose the small gradients.
    dtype = jnp.bfloat16 if kept[0].dtype == jnp.bfloat16 else jnp.float32
    _, gradients = jax.vjp(partial(jnp.einsum, "btd,dv->btv", preferred_element_type=dtype), *kept)
    return gradients(y_bar.astype(dtype))


float32_product.defvjp(_float32_product_forward, _float32_product_backward)


class Norm(nnx.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019) or layer norm (Ba et al. 2016), computed in float32."""

    def __init__(self, width: int, config: DecoderConfig, kind: str = ""):
        self.kind, self.eps, self.offset = kind or config.norm, config.norm_eps, config.norm_offset
        self.scale = nnx.Param(jnp.full((width,), 1.0 - self.offset, config.param_dtype))
        self.bias = nnx.data(nnx.Param(jnp.zeros((width,), config.param_dtype)) if self.kind == "layer" else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x [..., width] over its last axis and keeps its dtype."""
        x32 = x.astype(jnp.float32)
        if self.kind == "layer":
            x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        normed = normed * (self.offset + self.scale[...].astype(jnp.float32))
        if self.bias is not None:
            normed = normed + self.bias[...].astype(jnp.float32)
        return normed.astype(x.dtype)


def apply_norm(norm: Norm | None, x: jax.Array) -> jax.Array:
    """The normalised x [..., width], or x where the family has no norm there."""
    return x if norm is None else norm(x)


class MLP(nnx.Module):
    """Two linear maps around an activation, or three in a gated MLP (Shazeer 2020)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        sizes, bias = (config.width, config.mlp_width), config.mlp_bias
        self.gate = nnx.data(Linear(*sizes, bias, config, rngs) if config.gated else None)
        self.up = Linear(*sizes, bias, config, rngs)
        self.down = Linear(*sizes[::-1], bias, config, rngs)
        self.activation = config.activation

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; `key` draws LoRA's dropout."""
        kx, kd = split_key(key, 2)
        up, act = checkpoint_name(self.up(x, kx), MLP_HIDDEN), ACTIVATIONS[self.activation]  # [B, T, F]
        gated = act(up) if self.gate is None else act(checkpoint_name(self.gate(x, kx), MLP_HIDDEN)) * up
        return self.down(gated, kd)  # [B, T, D]
