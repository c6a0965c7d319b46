"""Kernels in 8-bit integers, "int8", and in 4-bit normal floats, "nf4", doubly quantised (Dettmers et al. 2023, section 3).

Axes: n_in, n_out of the kernel; N = n_in / 64 blocks; G = ceil(n_out / 256) groups. Stacked kernels begin with one of layers.
"""

from functools import partial
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 64  # rows of a column that share an absmax
GROUP = 256  # neighbouring columns' absmaxes that share a scale and an offset
FORMATS = ("int8", "nf4")

Parts = dict[str, jax.Array]  # the arrays that a kernel is stored as, by name


def _normal_levels() -> np.ndarray:
    """NF4's 16 levels, float32: quantiles of a normal, 8 above 0 and 7 below, with 0, scaled to [-1, 1].

    Both halves are evenly spaced up to the mean of 1 - 1/32 and 1 - 1/30, as in the authors' code; appendix E has the values.
    """
    last = 1 - (1 / 32 + 1 / 30) / 2
    above, below = ([NormalDist().inv_cdf(p) for p in np.linspace(0.5, last, count + 1)[1:]] for count in (8, 7))
    return (np.array([*(-level for level in reversed(below)), 0.0, *above]) / max(above)).astype(np.float32)


LEVELS = _normal_levels()
_BOUNDS = (LEVELS[1:] + LEVELS[:-1]) / 2  # between the nearest levels


@partial(jax.jit, static_argnames="kind")
def quantize(kernel: jax.Array, kind: str) -> Parts:
    """The kernel [..., n_in, n_out] in the format `kind`.

    "int8": int8 [..., n_in, n_out] and scale float32 [..., n_out], the column's absmax / 127; no weight is off by more than
    scale / 2. "nf4": nf4 uint8 [..., N, 32, n_out], whose low half bytes are the levels' numbers of a block's first 32 rows;
    absmax uint8 [..., N, n_out] with absmax_scale and absmax_offset, float32 [..., N, G]. No weight is off by more than the
    larger of absmax * 0.152 (half the widest gap between levels) and absmax_scale / 2.
    """
    kernel = kernel.astype(jnp.float32)
    return _to_int8(kernel) if kind == "int8" else _to_nf4(kernel)


@jax.jit
def dequantize(parts: Parts, levels: jax.Array | np.ndarray = LEVELS) -> jax.Array:
    """The dequantised kernel, float32 [..., n_in, n_out]; levels: those of NF4, as an array that may depend on others."""
    if "int8" in parts:
        return parts["int8"].astype(jnp.float32) * parts["scale"][..., None, :]
    packed = parts["nf4"]
    numbers = jnp.concatenate([packed & 15, packed >> 4], axis=-2)  # [..., N, 64, n_out]
    chosen = jax.lax.platform_dependent(numbers, jnp.asarray(levels), cpu=_gather, default=_choose)
    return (chosen * _block_absmax(parts, packed.shape[-1])[..., None, :]).reshape(kernel_shape(parts))


def kernel_shape(parts: Parts) -> tuple[int, ...]:
    """The shape [..., n_in, n_out] of the dequantised kernel."""
    if "int8" in parts:
        return parts["int8"].shape
    *stacked, blocks, _, n_out = parts["nf4"].shape
    return (*stacked, blocks * BLOCK, n_out)


def _to_int8(kernel: jax.Array) -> Parts:
    scale = jnp.max(jnp.abs(kernel), axis=-2) / 127
    return {"int8": jnp.round(kernel / _divisor(scale)[..., None, :]).astype(jnp.int8), "scale": scale}


def _to_nf4(kernel: jax.Array) -> Parts:
    blocks = kernel.reshape(*kernel.shape[:-2], -1, BLOCK, kernel.shape[-1])  # [..., N, 64, n_out]
    absmax = jnp.max(jnp.abs(blocks), axis=-2)
    # Least and largest of a group are the same in any order of the columns, so that the mesh changes no code.
    padding = [(0, 0)] * (absmax.ndim - 1) + [(0, -absmax.shape[-1] % GROUP)]
    groups = jnp.pad(absmax, padding, mode="edge").reshape(*absmax.shape[:-1], -1, GROUP)  # [..., N, G, 256]
    offset = groups.min(axis=-1)
    scale = (groups.max(axis=-1) - offset) / 255
    codes = jnp.round((absmax - _of_columns(offset, absmax)) / _divisor(_of_columns(scale, absmax)))
    parts = {"absmax": codes.astype(jnp.uint8), "absmax_scale": scale, "absmax_offset": offset}
    # Relative to the absmax that will be read, so that its own rounding adds no error except to what is beyond it.
    relative = blocks / _divisor(_block_absmax(parts, absmax.shape[-1]))[..., None, :]
    numbers = sum((relative > bound).astype(jnp.uint8) for bound in _BOUNDS)
    low, high = jnp.split(numbers, 2, axis=-2)
    return {"nf4": low | high << 4, **parts}


def _block_absmax(parts: Parts, n_out: int) -> jax.Array:
    """The blocks' absmaxes as they are read, float32 [..., N, n_out]."""
    codes = parts["absmax"]
    return _of_columns(parts["absmax_offset"], codes) + _of_columns(parts["absmax_scale"], codes) * codes.astype(jnp.float32)


def _of_columns(of_groups: jax.Array, columns: jax.Array) -> jax.Array:
    """Spreads a number of each group, [..., N, G], over the group's columns, [..., N, n_out]."""
    return jnp.repeat(of_groups, GROUP, axis=-1)[..., : columns.shape[-1]]


def _divisor(scale: jax.Array) -> jax.Array:
    """The scale, or 1 where it is 0 and so is all that is divided."""
    return jnp.where(scale > 0, scale, 1)


def _gather(numbers: jax.Array, levels: jax.Array) -> jax.Array:
    """The levels of these numbers. On CPUs, whose compiler would keep each level of `_choose` as an array beside a loop."""
    return levels.at[numbers].get(mode="promise_in_bounds")


def _choose(numbers: jax.Array, levels: jax.Array) -> jax.Array:
    """The same by a tree of choices, which fuses; TPUs gather slowly, and keep an index of 4 bytes for each weight."""
    if len(levels) == 1:
        return levels[0]
    half = len(levels) // 2
    return jnp.where(numbers & half != 0, _choose(numbers, levels[half:]), _choose(numbers, levels[:half]))
