"""The optimisers: ECG-Byte's own, and AdamW with a cosine or linear schedule."""

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError


def make_optimizer(config: ConfigDict, width: int, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(optimizer, learning rate by step) for a model of this width and a training of this many steps."""
    optim = config.optim
    match optim.preset:
        case "ecg_byte":
            # L2: the decay is added to the clipped gradient, in front of Adam's moments, as torch.optim.Adam does.
            schedule = inverse_root_schedule(width, optim.warmup)
            decay = optax.chain(optax.add_decayed_weights(optim.weight_decay), optax.scale_by_adam(optim.b1, optim.b2, 1e-8))
        case "adamw":
            schedule = decaying_schedule(optim.schedule, optim.peak_rate, optim.warmup, steps)
            decay = optax.chain(optax.scale_by_adam(optim.b1, optim.b2, 1e-8), optax.add_decayed_weights(optim.weight_decay))
        case other:
            raise ConfigError(f"optim.preset: {other!r} found, 'ecg_byte' or 'adamw' wanted")
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), decay, optax.scale_by_learning_rate(schedule)), schedule


def decaying_schedule(form: str, peak: float, warmup: int, steps: int) -> optax.Schedule:
    """From 0 to `peak` in a line over `warmup` steps, then by a "cosine" or in a "linear" way to 0 at the last one."""
    rest = max(steps - warmup, 1)
    fall = optax.cosine_decay_schedule(peak, rest) if form == "cosine" else optax.linear_schedule(peak, 0.0, rest)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), fall], [warmup])


def inverse_root_schedule(width: int, warmup: int) -> optax.Schedule:
    """width^-0.5 * min(n^-0.5, n * warmup^-1.5) at the n-th update, n from 1 (Vaswani et al. 2017, section 5.3)."""

    def rate(updates_before):
        n = jnp.asarray(updates_before, jnp.float32) + 1
        return width**-0.5 * jnp.minimum(n**-0.5, n * warmup**-1.5)

    return rate
