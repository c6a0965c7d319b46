"""The optimizers: ECG-Byte's own, and AdamW with a cosine or linear schedule."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ecgbyte_jax.settings import OptimSettings


def make_optimizer(optim: OptimSettings, width: int, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(optimizer, learning rate by step) for a model of this width and a training of this many steps."""
    adam, decay = optax.scale_by_adam(optim.b1, optim.b2, 1e-8), optax.add_decayed_weights(optim.weight_decay)
    if optim.preset == "adamw":
        schedule = decaying_schedule(optim.schedule, optim.peak_rate, optim.warmup, steps)
        update = optax.chain(adam, decay)
    else:
        # L2: the decay is added to the clipped gradient, before Adam's moments, as torch.optim.Adam does.
        schedule = inverse_root_schedule(width, optim.warmup)
        update = optax.chain(decay, adam)
    parts = [optax.clip_by_global_norm(optim.clip_norm), update, optax.scale_by_learning_rate(schedule)]
    if optim.embedding_rate != 1:
        parts.append(optax.stateless(partial(_scale_new_rows, factor=optim.embedding_rate)))
    return optax.chain(*parts), schedule


def _scale_new_rows(updates: Any, params: Any, *, factor: float) -> Any:
    """Multiplies the updates of the rows of new tokens (`decoder.new_rows`, `new_head_rows`)."""

    def scale(path: tuple, update: jax.Array) -> jax.Array:
        return update * factor if getattr(path[0], "key", "") in ("new_rows", "new_head_rows") else update

    return jax.tree_util.tree_map_with_path(scale, updates)


def decaying_schedule(form: str, peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup` steps, then to 0 at the last step; `form` is "cosine" or "linear"."""
    rest = max(steps - warmup, 1)
    fall = optax.cosine_decay_schedule(peak, rest) if form == "cosine" else optax.linear_schedule(peak, 0.0, rest)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), fall], [warmup])


def inverse_root_schedule(width: int, warmup: int) -> optax.Schedule:
    """width^-0.5 * min(n^-0.5, n * warmup^-1.5) at the n-th update, n from 1 (Vaswani et al. 2017, section 5.3)."""

    def rate(updates_before):
        n = jnp.asarray(updates_before, jnp.float32) + 1
        return width**-0.5 * jnp.minimum(n**-0.5, n * warmup**-1.5)

    return rate
