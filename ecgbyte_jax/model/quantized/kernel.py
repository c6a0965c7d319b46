"""A frozen kernel in few bits, whose product with the activations makes floats of one kernel at a time."""

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.model.quantized.formats import LEVELS, Parts, dequantize, kernel_shape, quantize

_WEIGHTS = {"int8": 1, "nf4": 2}  # in an element


class Quantized(nnx.Variable):
    """One of the arrays of a quantised kernel, never trained; `weights`: of the kernel, in each of its elements."""

    weights: int


class QuantizedKernel(nnx.Module):
    """A kernel [..., n_in, n_out] in a format of `formats.quantize`, one variable for each of its arrays."""

    def __init__(self, kernel: jax.Array, kind: str):
        for name, array in quantize(kernel, kind).items():
            setattr(self, name, Quantized(array, weights=_WEIGHTS.get(name, 0)))

    @property
    def parts(self) -> Parts:
        """The arrays by name."""
        return {name: part.get_value() for name, part in vars(self).items() if isinstance(part, Quantized)}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel in floats."""
        return kernel_shape(self.parts)

    def floats(self) -> jax.Array:
        """The kernel in float32."""
        return dequantize(self.parts)

    def multiply(self, x: jax.Array) -> jax.Array:
        """Maps x [..., n_in] to x @ kernel [..., n_out] in x's dtype."""
        return _multiply(x, self.parts)


@jax.custom_vjp
def _multiply(x: jax.Array, parts: Parts) -> jax.Array:
    """The product; its backward pass makes the floats anew, so that none are kept between the two."""
    return x @ _floats_beside(x, parts)


def _multiply_forward(x: jax.Array, parts: Parts) -> tuple[jax.Array, Parts]:
    return _multiply(x, parts), parts


def _multiply_backward(parts: Parts, y_bar: jax.Array) -> tuple[jax.Array, None]:
    kernel = _floats_beside(y_bar, parts)
    return jax.lax.dot_general(y_bar, kernel, (((y_bar.ndim - 1,), (1,)), ((), ()))), None


_multiply.defvjp(_multiply_forward, _multiply_backward)


def _floats_beside(x: jax.Array, parts: Parts) -> jax.Array:
    """The kernel in x's dtype, made no earlier than x.

    Otherwise the compiler would share the floats between forward and backward pass, and make those of all layers ahead of a
    loop over tokens or micro-batches: the whole model in floats. Of constant levels it would make arrays there.
    """
    parts, levels, _ = jax.lax.optimization_barrier((parts, jnp.asarray(LEVELS), x))
    return dequantize(parts, levels).astype(x.dtype)
