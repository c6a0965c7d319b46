"""How the input of an encoder is scaled."""

import jax
import jax.numpy as jnp

_UNIT = 0.2  # mV: the deviation of PTB-XL's cleaned recordings is 0.19


def scale_mv(signals: jax.Array) -> jax.Array:
    """Takes mV to units of 0.2 mV, so that values and errors are about 1, for which weights and learning rates are made."""
    return signals / _UNIT


def scale_to_1(signals: jax.Array) -> jax.Array:
    """(x - min) / (max - min + 1e-6) over each segment [..., 12, L], as in ECG-Byte's released code; its amplitude is lost."""
    low, high = (fold(signals, axis=(-2, -1), keepdims=True) for fold in (jnp.min, jnp.max))
    return (signals - low) / (high - low + 1e-6)
