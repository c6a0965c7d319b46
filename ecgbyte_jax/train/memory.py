"""What a step of training keeps on each device, and how much of it must be computed again for it to fit."""

from dataclasses import replace

import jax.numpy as jnp
from jax.sharding import Mesh

from ecgbyte_jax.model.build import abstract_model
from ecgbyte_jax.model.config import KEPT, TENSOR_AXIS, DecoderConfig
from ecgbyte_jax.model.delta_net import CHUNK
from ecgbyte_jax.model.sharding import batch_parts, bytes_a_device
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.chips import USABLE, memory_of
from ecgbyte_jax.train.restore import positions
from ecgbyte_jax.train.vectors import activation_bytes, input_of

_MARGIN = 1.2  # of what is estimated here; `--stage=fit` asks the compiler
_ELSEWHERE = 2**30  # bytes of logits, their gradient, and what a runtime takes
_LANES = 128  # to which TPUs round the width of a head
_MOMENTS = 2  # of Adam, as many as there are trained parameters


def with_remat(settings: Settings, mesh: Mesh, vocab_size: int, first_new_id: int, ecgs: int = 1) -> Settings:
    """The settings with model.remat = "auto" made the least recomputation with which a step fits each device.

    On CPUs, and where a device's memory is not known, everything is kept. vocab_size, first_new_id: see `build_model`.
    ecgs: of a row at most, where the model reads vectors of them.
    """
    memory, platform = memory_of(mesh), _platform(mesh)
    if settings.model.remat != "auto":
        return settings
    if platform == "cpu" or memory is None:
        return replace(settings, model=replace(settings.model, remat=""))
    sizes = positions(settings), vocab_size, mesh, first_new_id
    parts = abstract_model(settings.model, settings.lora, *sizes, input_of(settings))
    held = bytes_a_device(parts.frozen) + (1 + _MOMENTS) * bytes_a_device(parts.trained)
    ecgs_at_once = rows_at_once(settings, mesh) * ecgs
    room = USABLE * memory - held - _ELSEWHERE - ecgs_at_once * activation_bytes(settings, parts.config.width)
    split = mesh.shape[TENSOR_AXIS]

    def needed(remat: str) -> float:
        return _MARGIN * tokens_at_once(settings, mesh) * kept_bytes(parts.config, remat, split, platform)

    remat = next((remat for remat in KEPT if needed(remat) <= room), [*KEPT][-1])
    return replace(settings, model=replace(settings.model, remat=remat))


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def rows_at_once(settings: Settings, mesh: Mesh) -> int:
    """The rows that each device computes at once."""
    return settings.train.batch_size // settings.train.accumulate // batch_parts(mesh)


def tokens_at_once(settings: Settings, mesh: Mesh) -> int:
    """The tokens of the longest rows that each device computes at once."""
    return settings.prompt.max_length * rows_at_once(settings, mesh)


def kept_bytes(config: DecoderConfig, remat: str, split: int, platform: str) -> int:
    """The bytes of one token that all blocks keep for the backward pass, and those of one block while it is computed again.

    split: the devices that share a block's heads and hidden width (mesh.tensor).
    """
    width = -(-config.head_dim // _LANES) * _LANES if platform == "tpu" else config.head_dim
    # Queries, with what gates the output, mixed values, keys, values.
    heads = width * ((3 if config.attention_gate else 2) * config.heads + 2 * config.kv_heads) // split
    hidden = (2 if config.gated else 1) * config.mlp_width // split
    each = config.width  # the input of a block
    each += config.width if remat in ("attention", "products") else 0
    each += hidden if remat == "products" else 0
    again = 12 * config.width + 9 * config.mlp_width // split  # measured: norms in float32, activations, LoRA's dropout
    kept, size = config.layers * each, jnp.dtype(config.dtype).itemsize
    mixing, mixing_again = len(config.attention_layers) * heads, 0
    if config.delta:
        delta = config.delta
        keys, values = delta.key_heads * delta.key_dim, delta.value_heads * delta.value_dim
        mixed = values * 4 // size  # in float32
        mixing += len(delta.layers) * (2 * keys + 2 * values + mixed) // split
        by_head = 12 * CHUNK + 17 * (delta.key_dim + delta.value_dim)  # measured: a chunk's matrices and their gradients
        mixing_again = delta.value_heads * by_head * 4 // size // split
    return size * (kept + again + mixing_again + (mixing if remat in ("attention", "products") else 0))
