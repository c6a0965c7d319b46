"""Low-rank adaptation (Hu et al. 2021): a small trained path beside each frozen kernel.

Axes: R rank, L layers, n_in and n_out of the kernel. Where the blocks' parameters are stacked, all arrays begin with L.
"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.config import DELTA_KERNELS, KERNELS, LoraConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.layers import Linear
from ecgbyte_jax.model.quantized.kernel import QuantizedKernel


class LowRankPath(nnx.Module):
    """scale * dropout(x) @ a @ b; a is [n_in, R], b [R, n_out]."""

    def __init__(self, a: jax.Array, b: jax.Array, scale: float, dropout: float, dtype: str):
        self.a, self.b = nnx.LoRAParam(a), nnx.LoRAParam(b)
        self.scale, self.dropout, self.dtype = scale, dropout, dtype

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """Maps [..., n_in] to [..., n_out], without dropout where `key` is None."""
        if key is not None and self.dropout > 0:
            x = jnp.where(_draw_kept(key, self.dropout, x.shape), x * (1 / (1 - self.dropout)), 0)
        # The scale goes into the narrow factor: GPUs then add the product to the kernel's as they compute it.
        return _low_rank(x, self.a[...].astype(self.dtype), (self.scale * self.b[...]).astype(self.dtype))


@jax.custom_vjp
def _low_rank(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes x @ a @ b; its gradient transposes the small factor of each product, not x or the cotangent, slow on CPUs."""
    return x @ a @ b


def _low_rank_forward(x: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    inner = x @ a  # [..., R]
    return inner @ b, (x, inner, a, b)


def _low_rank_backward(kept: tuple[jax.Array, ...], y_bar: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, inner, a, b = kept
    axes = tuple(range(x.ndim - 1))
    inner_bar = y_bar @ b.T  # [..., R]
    b_bar = jax.lax.dot_general(inner, y_bar, ((axes, axes), ((), ())))  # [R, n_out]
    a_bar = jax.lax.dot_general(inner_bar, x, ((axes, axes), ((), ()))).T  # [n_in, R]
    return inner_bar @ a.T, a_bar, b_bar


_low_rank.defvjp(_low_rank_forward, _low_rank_backward)


def _draw_kept(key: jax.Array, dropout: float, shape: tuple[int, ...]) -> jax.Array:
    """A bool mask, False with probability `dropout`, from a hash of the key, the row and the column of each element.

    Threefry, which `jax.random` uses, takes several times the arithmetic, and its bits go through memory; a hash is computed
    where it is needed. Rows and columns do not depend on the mesh, so the mask does not either.
    """
    row_seed, column_seed = jax.random.key_data(key)[:2]
    rows = jnp.arange(math.prod(shape[:-1]), dtype=jnp.uint32).reshape(*shape[:-1], 1)
    columns = jnp.arange(shape[-1], dtype=jnp.uint32)
    bits = _hash(rows + row_seed) + _hash(columns + column_seed)
    return _hash(bits) >= np.uint32(min(round(dropout * 2**32), 2**32 - 1))


def _hash(bits: jax.Array) -> jax.Array:
    """`lowbias32` (C. Wellons, Prospecting for hash functions, 2018): every bit of uint32 [...] changes about half of them."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x21F0AAAD)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x735A2D97)
    return bits ^ (bits >> 15)


def add_lora(model: Decoder, lora: LoraConfig, key: jax.Array) -> None:
    """Adds a LowRankPath to every kernel whose name is in `lora.targets`, of the blocks from `lora.first_layer` on; b is zero.

    a is drawn as in PEFT (Kaiming uniform with a = sqrt(5)), from one key per kernel and layer, so that stacked blocks get the
    same values. Raises ConfigError where a target names no kernel, and for a first layer that is missing or in stacked blocks.
    """
    available = {name.rpartition("/")[2] for name, _, _ in kernels(model)} & {*KERNELS}
    unknown = sorted(set(lora.targets) - available)
    if unknown or not lora.targets:
        raise ConfigError(f"lora.targets: {unknown or 'none'} found, some of this model's kernels {sorted(available)} expected")
    check_first_layer(lora, model.config.layers, model.config.scan_layers)
    for name, layer, linear in kernels(model):
        kernel = name.rpartition("/")[2]
        if kernel not in lora.targets or (layer or 0) < lora.first_layer:
            continue
        n_in, n_out = linear.kernel.shape[-2:]
        number = KERNELS.index(kernel) + len(KERNELS) * name.startswith("delta_net")  # whose gate is not the MLP's
        draws = jax.random.split(jax.random.fold_in(key, number), model.config.layers)
        bound = n_in**-0.5

        def draw(draw_key: jax.Array, n_in: int = n_in, bound: float = bound) -> jax.Array:
            return jax.random.uniform(draw_key, (n_in, lora.rank), jnp.float32, -bound, bound)

        a = jax.vmap(draw)(draws) if layer is None else draw(draws[layer])
        b = jnp.zeros((*a.shape[:-2], lora.rank, n_out), jnp.float32)
        linear.lora = LowRankPath(a, b, lora.alpha / lora.rank, lora.dropout, linear.dtype)


def check_first_layer(lora: LoraConfig, layers: int, stacked: bool) -> None:
    """Raises ConfigError where no block is left for a path, or where the blocks are stacked into one."""
    if lora.first_layer >= layers:
        raise ConfigError(f"lora.first_layer: {lora.first_layer} found, below the model's {layers} layers expected")
    if lora.first_layer and stacked:
        raise ConfigError(f"lora.first_layer: {lora.first_layer} found for stacked layers, which have one block for all")


def kernels(model: Decoder) -> Iterator[tuple[str, int | None, Linear]]:
    """(name, such as `attention/q`, layer, linear map) of all blocks; the layer is None where blocks are stacked."""
    blocks = [(None, model.blocks)] if model.config.scan_layers else enumerate(model.blocks)
    for layer, block in blocks:
        for part in ("attention", "delta_net", "mlp"):
            for kernel in (*KERNELS, *DELTA_KERNELS):
                linear = getattr(getattr(block, part), kernel, None)
                if linear is not None:
                    yield f"{part}/{kernel}", layer, linear


def quantize_kernels(model: Decoder, kind: str) -> Decoder:
    """The model with its blocks' kernels in a format of `quantized.formats`, a delta net's narrow ones aside; "": as it is."""
    for name, _, linear in kernels(model) if kind else ():
        if name.rpartition("/")[2] in KERNELS:
            linear.kernel = QuantizedKernel(linear.kernel[...], kind)
    return model


def merge_lora(model: Decoder) -> list[LowRankPath | None]:
    """Adds every path to its kernel and removes it; returns the paths, for `unmerge_lora`.

    Quantised kernels, also those without a path, become floats of the model's `param_dtype`.
    """
    paths = [linear.lora for _, _, linear in kernels(model)]
    for (_, _, linear), path in zip(kernels(model), paths):
        quantized = isinstance(linear.kernel, QuantizedKernel)
        if quantized:
            linear.kernel = nnx.Param(linear.kernel.floats())
        if path is not None:
            _add(linear, path, 1)
            linear.lora = None
        if quantized:
            linear.kernel = nnx.Param(linear.kernel[...].astype(model.config.param_dtype))
    return paths


def unmerge_lora(model: Decoder, paths: list[LowRankPath | None]) -> None:
    """Subtracts from the kernels what `merge_lora` added, up to rounding in their dtype, and restores the paths."""
    for (_, _, linear), path in zip(kernels(model), paths, strict=True):
        if path is not None:
            _add(linear, path, -1)
            linear.lora = path


def _add(linear: Linear, path: LowRankPath, sign: int) -> None:
    kernel = linear.kernel[...]
    change = sign * path.scale * jnp.matmul(path.a[...], path.b[...])
    linear.kernel = nnx.Param((kernel.astype(jnp.float32) + change).astype(kernel.dtype))
