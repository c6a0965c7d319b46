"""Rotary positions (Su et al. 2021): the frequencies of each layer, scaled as configured, and the rotation of queries and keys.

Axes: B batch, T tokens, C head width, R rotated channels of a head.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ecgbyte_jax.model.config import DecoderConfig, LinearScaling, Llama3Scaling, LongScaling, Rotary, YarnScaling

Rope = tuple[jax.Array, jax.Array]  # cos, sin [B, T, 1, R / 2]


def layer_ropes(config: DecoderConfig, positions: jax.Array, lengths: jax.Array) -> list[Rope | None]:
    """The rotation of the tokens at positions [B, T] in every layer, None: none.

    lengths: int32 [B, T] or [B, 1], of each token's complete sequence, by which LongRoPE chooses its frequencies. In
    transformers the longest sequence of a batch chooses for all; here each one does by itself, so that its result does not
    depend on its neighbours in the batch or the row, nor on padding. It is that of transformers for the sequence alone.
    """
    ropes = {kind: kind and _angles(kind, positions, lengths) for kind in dict.fromkeys(config.layer_rotaries)}
    return [ropes[kind] for kind in config.layer_rotaries]


def rope_chooser(config: DecoderConfig, ropes: Sequence[Rope | None]) -> tuple[Callable[[jax.Array], Rope | None], np.ndarray]:
    """(a function from a traced number to its rotation, the number of every layer int32 [L]), from `layer_ropes`."""
    kinds = list(dict.fromkeys(config.layer_rotaries))
    numbers = np.array([kinds.index(kind) for kind in config.layer_rotaries], np.int32)
    if len(kinds) == 1:
        return lambda number: ropes[0], numbers
    different = [ropes[config.layer_rotaries.index(kind)] for kind in kinds]
    cos, sin = next(rope for rope in different if rope is not None)
    different = [rope or (jnp.ones_like(cos), jnp.zeros_like(sin)) for rope in different]  # these change nothing
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *different)
    return lambda number: jax.tree.map(lambda part: part[number], stacked), numbers


def rotate(x: jax.Array, rope: Rope) -> jax.Array:
    """Rotates the pairs (c, c + R / 2) of x [B, T, heads, C] by their angles."""
    cos, sin = rope
    half = cos.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1).astype(x.dtype)


def example_lengths(segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
    """The number of positions up to the last token of each token's example, int32 [B, T]."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return jnp.max(jnp.where(same, positions[:, None, :], 0), axis=2) + 1


def _angles(rotary: Rotary, positions: jax.Array, lengths: jax.Array) -> Rope:
    """The cosines and sines of positions [B, T], float32 [B, T, 1, R / 2] each."""
    used: jax.Array | np.ndarray = frequencies(rotary)
    if isinstance(rotary.scaling, LongScaling):
        is_long = lengths[..., None, None] > rotary.scaling.original_max_positions
        used = jnp.where(is_long, frequencies(rotary, long=True), used)  # [B, T or 1, 1, R / 2]
    angles = positions[..., None, None].astype(jnp.float32) * used
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if rotary.amplitude == 1 else (rotary.amplitude * cos, rotary.amplitude * sin)


def frequencies(rotary: Rotary, *, long: bool = False) -> np.ndarray:
    """Radians per position of each pair of channels, float32 [R / 2]; `long`: LongRoPE's for long sequences."""
    plain = rotary.theta ** -(np.arange(0, rotary.channels, 2, dtype=np.float32) / rotary.channels)
    match rotary.scaling:
        case LinearScaling(factor):
            plain = plain / factor
        case YarnScaling() as scaling:
            kept = _yarn_kept(rotary, scaling)
            plain = plain * (kept + (1 - kept) / scaling.factor)
        case LongScaling() as scaling:
            plain = plain / np.array(scaling.long_factors if long else scaling.short_factors, np.float32)
        case Llama3Scaling() as scaling:
            turns = scaling.original_max_positions * plain / (2 * np.pi)
            kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            kept = np.clip(kept, 0.0, 1.0)
            plain = plain * (kept + (1 - kept) / scaling.factor)
    return plain.astype(np.float32)


def _yarn_kept(rotary: Rotary, scaling: YarnScaling) -> np.ndarray:
    """How much of each frequency is kept, 0 to 1, float32 [R / 2]; the rest is divided by the factor."""

    def index(turns: float) -> float:
        """Of the frequency that turns so often in the original positions."""
        return rotary.channels * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(rotary.theta))

    low, high = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary.channels - 1)
    ramp = (np.arange(rotary.channels // 2, dtype=np.float32) - low) / (high - low or 0.001)
    return 1 - np.clip(ramp, 0.0, 1.0)
