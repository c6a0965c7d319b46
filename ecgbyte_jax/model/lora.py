"""Low-rank adaptation (Hu et al. 2021): a small trained path beside frozen kernels.

Axes: R rank; n_in and n_out as in the kernel.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.decoder import Decoder, Linear


@dataclass(frozen=True)
class LoraConfig:
    """rank, alpha (the path is scaled by alpha / rank), dropout on its input, and the kernels that get one."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


class LowRankPath(nnx.Module):
    """scale * dropout(x) @ a @ b; b starts at zero, so that nothing changes at first."""

    def __init__(self, n_in: int, n_out: int, lora: LoraConfig, dtype: str, param_dtype, rngs: nnx.Rngs):
        bound = n_in**-0.5  # as PEFT draws it: Kaiming uniform with a = sqrt(5)
        self.a = nnx.LoRAParam(jax.random.uniform(rngs.params(), (n_in, lora.rank), param_dtype, -bound, bound))
        self.b = nnx.LoRAParam(jnp.zeros((lora.rank, n_out), param_dtype))
        self.scale, self.dropout, self.dtype = lora.alpha / lora.rank, lora.dropout, dtype

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """[..., n_in] -> [..., n_out]; no dropout where `key` is None."""
        if key is not None and self.dropout > 0:
            x = jnp.where(jax.random.bernoulli(key, 1 - self.dropout, x.shape), x / (1 - self.dropout), 0)
        return self.scale * (x @ self.a[...].astype(self.dtype) @ self.b[...].astype(self.dtype))


def add_lora(model: Decoder, lora: LoraConfig, rngs: nnx.Rngs) -> None:
    """Puts a LowRankPath beside every kernel of the blocks whose name is in `lora.targets`.

    Raises ConfigError where a target names no kernel.
    """
    found = set()
    for path, module in nnx.iter_modules(model.blocks):
        if isinstance(module, Linear) and path[-1] in lora.targets:
            n_in, n_out = module.kernel.shape
            module.lora = LowRankPath(n_in, n_out, lora, module.dtype, jnp.float32, rngs)
            found.add(path[-1])
    if not found or found != set(lora.targets):
        raise ConfigError(
            f"lora.targets: no kernel is named {sorted(set(lora.targets) - found)}; q, k, v, o, gate, up, down are"
        )
