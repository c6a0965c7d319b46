"""Attention of a row's tokens to each other by a fused kernel, which keeps no scores: which one, and how it is split.

Axes: B batch, T tokens, H query heads, K key/value heads, C head width.
"""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ecgbyte_jax.model.config import BATCH_AXES, TENSOR_AXIS, DecoderConfig
from ecgbyte_jax.model.kernels.flash import flash_attention
from ecgbyte_jax.model.kernels.splash import splash_attention

_WIDEST = 256  # heads that the kernels have tiles for


def kernel_for(platform: str, head_dim: int, dtype: str) -> tuple[str, str]:
    """(The kernel for a platform: "flash" on "cuda", "splash" on "tpu", else "" for plain operations; why there is none)."""
    kernel = {"cuda": "flash", "gpu": "flash", "tpu": "splash"}.get(platform, "")
    if not kernel:
        return "", f"no kernel for '{platform}'"
    if head_dim > _WIDEST:
        return "", f"no kernel for heads of {head_dim} channels, {_WIDEST} at most"
    if kernel == "splash" and dtype == "float16":
        return "", "no kernel for float16 on TPUs"
    return kernel, ""


def fused_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, window: jax.Array | int, config: DecoderConfig
) -> jax.Array:
    """Attends from q [B, T, H, C] to k [B, K, C, T] and v [B, K, T, C] of the same tokens -> [B, T, H, C].

    segment_ids: int32 [B, T], the example's number, 0 on padding; an example's tokens are consecutive. window: int32 [] or a
    number, how far back a query sees, 0: no limit. Each device computes its own rows and heads.
    """
    if isinstance(window, int):  # no kernels for the other layers' windows, to choose from on the device
        window, config = jnp.int32(window), replace(config, windows=(window,) * config.layers)
    copies = _key_copies(config)
    if copies > 1:
        config = replace(config, kv_heads=copies * config.kv_heads)
        k, v = (jnp.repeat(part, copies, axis=1) for part in (k, v))
    (rows, heads), attend = mesh_axes(config), partial(_attend, config=config)
    if not rows:
        return attend(q, k, v, segment_ids, window)
    by_token, by_head = PartitionSpec(rows, None, heads), PartitionSpec(rows, heads)
    specs = (by_token, by_head, by_head, PartitionSpec(rows), PartitionSpec())
    return jax.shard_map(attend, in_specs=specs, out_specs=by_token, check_vma=False)(q, k, v, segment_ids, window)


def mesh_axes(config: DecoderConfig) -> tuple[tuple[str, ...], str | None]:
    """The axes of the current mesh that rows, and key heads, are split over; none outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    rows = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    splits = TENSOR_AXIS in mesh.axis_names and config.kv_heads % mesh.shape[TENSOR_AXIS] == 0
    return rows, TENSOR_AXIS if splits else None


def _key_copies(config: DecoderConfig) -> int:
    """How often each key head is needed, so that the current mesh splits the key heads as it does the query heads."""
    devices = jax.sharding.get_abstract_mesh().shape.get(TENSOR_AXIS, 1)
    copies = devices // math.gcd(devices, config.kv_heads)
    return 1 if config.heads % (config.kv_heads * copies) else copies


def splits_rows(*counts: int) -> bool:
    """Whether the current mesh splits arrays of these numbers of rows evenly, as a kernel that runs on each device needs."""
    shape = jax.sharding.get_abstract_mesh().shape
    parts = math.prod(shape.get(axis, 1) for axis in BATCH_AXES)
    return not any(count % parts for count in counts)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, window: jax.Array, *, config: DecoderConfig
) -> jax.Array:
    scale, cap, interpret = config.query_scale or config.head_dim**-0.5, config.attention_cap, platform() == "cpu"
    if config.attention_kernel == "splash":
        return splash_attention(q, k, v, segment_ids, window, config.layer_windows, scale, cap, interpret=interpret)
    return flash_attention(q, k, v, first_seen(segment_ids, window), scale, cap, interpret=interpret)


def platform() -> str:
    """The platform that is compiled for: that of the current mesh, which need not be here, or of the devices that are."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def first_seen(segment_ids: jax.Array, window: jax.Array) -> jax.Array:
    """The place of the first token that each token sees, int32 [B, T]; padding sees only itself."""
    places = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32), segment_ids.shape)
    before = jnp.pad(segment_ids, ((0, 0), (1, 0)))[:, :-1]
    starts = (segment_ids != before) | (segment_ids == 0)
    first = jax.lax.cummax(jnp.where(starts, places, 0), axis=1)
    return jnp.where(window > 0, jnp.maximum(first, places - window + 1), first)
