"""Low-rank adaptation (Hu et al. 2021): a small trained path beside frozen kernels.

Axes: R rank, L layers; n_in and n_out as in the kernel. Where the blocks' parameters are stacked, all of them begin with L.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.config import KERNELS
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.layers import Linear


@dataclass(frozen=True)
class LoraConfig:
    """rank, alpha (the path is scaled by alpha / rank), dropout on its input, and the kernels that get one."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


class LowRankPath(nnx.Module):
    """scale * dropout(x) @ a @ b; a is [n_in, R], b [R, n_out]."""

    def __init__(self, a: jax.Array, b: jax.Array, scale: float, dropout: float, dtype: str):
        self.a, self.b = nnx.LoRAParam(a), nnx.LoRAParam(b)
        self.scale, self.dropout, self.dtype = scale, dropout, dtype

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """[..., n_in] -> [..., n_out]; no dropout where `key` is None."""
        if key is not None and self.dropout > 0:
            x = jnp.where(_draw_kept(key, self.dropout, x.shape), x / (1 - self.dropout), 0)
        return self.scale * (x @ self.a[...].astype(self.dtype) @ self.b[...].astype(self.dtype))


def _draw_kept(key: jax.Array, dropout: float, shape: tuple[int, ...]) -> jax.Array:
    """bool of the shape, False with probability `dropout`: 16 random bits an element, as drawing is what costs."""
    pairs = jax.random.bits(key, (*shape[:-1], -(-shape[-1] // 2)), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(pairs, jnp.uint16).reshape(*shape[:-1], -1)[..., : shape[-1]]
    return bits >= round(dropout * 2**16)


def add_lora(model: Decoder, lora: LoraConfig, key: jax.Array) -> None:
    """Puts a LowRankPath beside every kernel of the blocks whose name is in `lora.targets`; b is zero at first.

    a is drawn as PEFT does (Kaiming uniform with a = sqrt(5)), for each kernel and layer by a key of its own, so that it
    does not matter whether the blocks are stacked. Raises ConfigError where a target names no kernel.
    """
    here = {name.rpartition("/")[2] for name, _, _ in kernels(model)}
    unknown = sorted(set(lora.targets) - here)
    if unknown or not lora.targets:
        raise ConfigError(f"lora.targets: {unknown or 'none'} found, of the kernels {sorted(here)} of this model wanted")
    for name, layer, linear in kernels(model):
        kernel = name.rpartition("/")[2]
        if kernel not in lora.targets:
            continue
        n_in, n_out = linear.kernel.shape[-2:]
        draws = jax.random.split(jax.random.fold_in(key, KERNELS.index(kernel)), model.config.layers)
        bound = n_in**-0.5

        def draw(one: jax.Array, n_in=n_in, bound=bound) -> jax.Array:
            return jax.random.uniform(one, (n_in, lora.rank), jnp.float32, -bound, bound)

        a = jax.vmap(draw)(draws) if layer is None else draw(draws[layer])
        b = jnp.zeros((*a.shape[:-2], lora.rank, n_out), jnp.float32)
        linear.lora = LowRankPath(a, b, lora.alpha / lora.rank, lora.dropout, linear.dtype)


def kernels(model: Decoder) -> Iterator[tuple[str, int | None, Linear]]:
    """(name as in `attention/q`, layer, the linear map) of all blocks; the layer is None where they are stacked."""
    blocks = [(None, model.blocks)] if model.config.scan_layers else enumerate(model.blocks)
    for layer, block in blocks:
        for part in ("attention", "mlp"):
            for kernel in KERNELS:
                linear = getattr(getattr(block, part), kernel, None)
                if linear is not None:
                    yield f"{part}/{kernel}", layer, linear


def merge_lora(model: Decoder) -> list[LowRankPath | None]:
    """Adds every path to its kernel and takes it off; returns the paths, for `unmerge_lora`."""
    paths = [linear.lora for _, _, linear in kernels(model)]
    for (_, _, linear), path in zip(kernels(model), paths):
        if path is not None:
            _add(linear, path, 1)
            linear.lora = None
    return paths


def unmerge_lora(model: Decoder, paths: list[LowRankPath | None]) -> None:
    """Takes what `merge_lora` added out of the kernels (to their type's precision) and puts the paths back."""
    for (_, _, linear), path in zip(kernels(model), paths, strict=True):
        if path is not None:
            _add(linear, path, -1)
            linear.lora = path


def _add(linear: Linear, path: LowRankPath, sign: int) -> None:
    kernel = linear.kernel[...]
    change = sign * path.scale * jnp.matmul(path.a[...], path.b[...])
    linear.kernel = nnx.Param((kernel.astype(jnp.float32) + change).astype(kernel.dtype))
