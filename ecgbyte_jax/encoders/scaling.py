"""The published scaling of an encoder's input."""

import jax
import jax.numpy as jnp


def scale_to_1(signals: jax.Array) -> jax.Array:
    """(x - min) / (max - min + 1e-6) over each segment [..., 12, L], as in ECG-Byte's released code; its amplitude is lost."""
    low, high = (fold(signals, axis=(-2, -1), keepdims=True) for fold in (jnp.min, jnp.max))
    return (signals - low) / (high - low + 1e-6)
