"""The least time that a step and a generated token can take on a chip: the roofline (Williams et al. 2009)."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.train.chips import Chip
from ecgbyte_jax.train.utilisation import step_flops

_READS = {"": 2, "products": 2, "attention": 3, "inputs": 3}  # of the weights in a step: forward, backward, and again


@dataclass(frozen=True)
class Bound:
    """Seconds that the arithmetic, the device's memory and the communication take at least; they may overlap."""

    arithmetic: float
    memory: float
    communication: float

    @property
    def seconds(self) -> float:
        """The longest of the three."""
        return max(self.arithmetic, self.memory, self.communication)


def step_bound(
    config: DecoderConfig, found: dict[str, Any], chip: Chip, lengths: np.ndarray, sequences: float, ecg_flops: float = 0.0
) -> Bound:
    """Of a training step of so many sequences; `found`: see `programs.measure`.

    lengths: of some sequences, int [n, 2] as in `step_flops`; ecg_flops: of an ECG that becomes vectors, one a sequence.

    Every device reads all weights of its share of `tensor`, wherever they are stored, those of a map from signals at least
    once; activations are written and read once.
    """
    decoder, devices = found["decoder"], found["devices"]
    flops = step_flops(config, decoder["trained"], lengths) / len(lengths) * sequences / devices
    read = _READS[found["remat"]] * decoder["bytes"] + found["all weights"] - decoder["bytes"]
    moved = read / found["mesh"]["tensor"] + 2 * found["step"]["temporaries"]
    sent = sum(kind["bytes"] for kind in found["step"]["collectives"].values())
    return Bound((flops + sequences * ecg_flops / devices) / chip.flops, moved / chip.bandwidth, sent / chip.link)


def encoder_bound(flops: float, found: dict[str, Any], chip: Chip) -> Bound:
    """Of a step of the first stage with so many FLOPs; `found`: see `programs.measure`.

    The arithmetic counts at the rate of bfloat16, as on TPUs; GPUs multiply float32 at half of it (TF32), or slower.
    """
    moved = _READS[""] * found["all weights"] + 2 * found["step"]["temporaries"]
    sent = sum(kind["bytes"] for kind in found["step"]["collectives"].values())
    return Bound(flops / found["devices"] / chip.flops, moved / chip.bandwidth, sent / chip.link)


def token_bound(config: DecoderConfig, found: dict[str, Any], chip: Chip, rows: int, prompt: int) -> Bound:
    """Of one token of every row of a batch with prompts of so many tokens: its weights and cache are read once."""
    weights = found["decoder"]["trained"] + found["decoder"]["frozen"]
    weights -= 0 if config.tied_embeddings else config.vocab_size * config.width  # which are looked up
    size = jnp.dtype(config.dtype).itemsize
    held = found["decoder"]["bytes"] - (0 if config.tied_embeddings else config.vocab_size * config.width * size)
    tensor, batch_parts = found["mesh"]["tensor"], found["mesh"]["data"] * found["mesh"]["fsdp"]
    own_rows = -(-rows // batch_parts)
    seen = sum(min(config.layer_windows[layer] or prompt, prompt) for layer in config.attention_layers)
    cache = own_rows * seen * 2 * config.kv_heads * config.head_dim * size
    if config.delta:  # states are float32, read and written
        delta = config.delta
        cache += own_rows * len(delta.layers) * delta.value_heads * delta.key_dim * delta.value_dim * 2 * 4
    arithmetic = 2 * own_rows * weights / tensor / chip.flops
    return Bound(arithmetic, (held + cache) / tensor / chip.bandwidth, 0.0)
