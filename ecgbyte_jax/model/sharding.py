"""The device mesh and which device holds which part of an array: one table for the parameters, one rule for batches.

Axes of the mesh: data (rows of the batch, parameters repeated), fsdp (rows of the batch, parameters split), tensor (parameters
split, rows repeated).
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.config import BATCH_AXES, TENSOR_AXIS

AXES = (*BATCH_AXES, TENSOR_AXIS)

# Path of a parameter -> how its axes are split. Kernels are [n_in, n_out], or as in `quantized/formats.py`. Where the blocks
# are stacked, their parameters have an axis of layers before these, which stays whole.
RULES = (
    (r"(encoder|ecg_input)/.*", ()),  # small beside a decoder: every device holds all of it
    (r"embedding|new_rows|new_head_rows", ("tensor", "fsdp")),  # [V, D]
    (r"positions", (None, "fsdp")),
    (r"head/kernel", ("fsdp", "tensor")),  # [D, V]
    (r".*/(q|k|v|gate|up|beta|decay)/kernel(/int8|/absmax)?", ("fsdp", "tensor")),
    (r".*/(o|down)/kernel(/int8|/absmax)?", ("tensor", "fsdp")),
    (r".*/(q|k|v|gate|up|beta|decay)/kernel/nf4", ("fsdp", None, "tensor")),
    (r".*/(o|down)/kernel/nf4", ("tensor", None, "fsdp")),
    (r".*/(q|k|v|gate|up|beta|decay)/kernel/absmax_(scale|offset)", ("fsdp", None)),
    (r".*/(o|down)/kernel/absmax_(scale|offset)", ("tensor", None)),
    # LoRA's factors are narrow: gathering each of them for every layer costs more than holding them whole.
    (r".*/(q|k|v|gate|up|beta|decay)/lora/a", (None, None)),
    (r".*/(q|k|v|gate|up|beta|decay)/lora/b", (None, "tensor")),
    (r".*/(o|down)/lora/a", ("tensor", None)),
    (r".*/(o|down)/lora/b", (None, None)),
    (r".*/(q|k|v|gate|up|beta|decay)/(bias|kernel/scale)", ("tensor",)),
    (r".*/(o|down)/(bias|kernel/scale)", ("fsdp",)),
    (r".*/conv_(q|k|v)/kernel", (None, None, "tensor")),  # [W, 1, channels]
    (r".*/delta_net/(a_log|dt_bias)", ("tensor",)),
    (r"(.*/)?\w*norm/(scale|bias)", (None,)),
)
# A decoder's own attributes, and the encoder of a two-stage baseline.
_TOP = ("ecg_input", "embedding", "positions", "blocks", "norm", "head", "new_rows", "new_head_rows", "encoder")


def make_mesh(data: int, fsdp: int, tensor: int, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or those given; one size may be -1. Raises ConfigError where the product is not their number."""
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = len(devices) // max(1, -math.prod(sizes))
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ConfigError(f"mesh: data {data} x fsdp {fsdp} x tensor {tensor} found for {len(devices)} devices; one may be -1")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch [B, ...] over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_parts(mesh: Mesh) -> int:
    """The number of parts that a batch's rows are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(mesh: Mesh, size: int, name: str, accumulate: int = 1) -> None:
    """Raises ConfigError where the mesh cannot split `size` rows, in `accumulate` parts, evenly."""
    parts = batch_parts(mesh)
    if size % (parts * accumulate):
        times = f" times train.accumulate = {accumulate}" if accumulate > 1 else ""
        raise ConfigError(f"{name}: {size} found, a multiple of the mesh's data x fsdp = {parts}{times} expected")


def rows_here(mesh: Mesh, size: int) -> np.ndarray:
    """The numbers of the rows, of a batch of `size`, that this process' devices hold, ascending, int64 [b].

    Several processes hold the same rows where their devices repeat a part of the batch.
    """
    return np.flatnonzero(np.isin(np.arange(size) // (size // batch_parts(mesh)), _parts_here(mesh)))


def _parts_here(mesh: Mesh) -> np.ndarray:
    """The numbers of the batch's parts that this process' devices hold, ascending."""
    spans = batch_sharding(mesh).addressable_devices_indices_map((batch_parts(mesh),)).values()
    return np.unique([span.start or 0 for (span,) in spans])


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch, of which every process holds `rows_here` [b, ...], as global arrays [B, ...]."""
    sharding, parts, here = batch_sharding(mesh), batch_parts(mesh), _parts_here(mesh)

    def put(rows: np.ndarray) -> jax.Array:
        own = dict(zip(here.tolist(), np.split(rows, len(here))))
        each = len(rows) // len(here)
        shape = (each * parts, *rows.shape[1:])
        return jax.make_array_from_callback(shape, sharding, lambda index: own[(index[0].start or 0) // each])

    return {name: put(rows) for name, rows in batch.items()}


def put_whole(batch: Any, mesh: Mesh) -> Any:
    """A batch, a tree of arrays that every host holds all rows of, as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__), batch)


def settle(launched: Any) -> Any:
    """Waits for what was launched where one process has several CPU devices; elsewhere returns it at once.

    Programs with collectives that run at the same time take each other's threads there, and XLA hangs, then aborts.
    """
    safe = jax.default_backend() != "cpu" or jax.local_device_count() == 1
    return launched if safe else jax.block_until_ready(launched)


def parameter_shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array in a tree of parameters, by its path.

    Paths in an optimizer's state end in the parameters' paths; its counters are scalars. An axis whose size the mesh does not
    divide stays whole. Raises ConfigError for an array that no rule matches, and where it does not divide the blocks of nf4.
    """
    return jax.tree.map_with_path(lambda path, leaf: NamedSharding(mesh, _spec(_name(path), leaf.shape, mesh)), tree)


def place(tree: Any, mesh: Mesh) -> Any:
    """A tree of parameters split over the mesh; where all hosts hold the same array, each places its own parts.

    `device_put` would broadcast such an array from the first host, to compare it.
    """

    def put(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable or not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_callback(leaf.shape, sharding, np.asarray(leaf).__getitem__)

    return jax.tree.map(put, tree, parameter_shardings(tree, mesh))


def abstract(tree: Any, mesh: Mesh) -> Any:
    """The shapes, types and shardings of a tree of parameters, without their values."""
    shardings = parameter_shardings(tree, mesh)
    return jax.tree.map(lambda leaf, how: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=how), tree, shardings)


def _name(path: tuple) -> str:
    """`blocks/0/attention/q/kernel`, also where an optimizer's names precede it."""
    parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
    parts = [part for part in parts if part not in ("", "value")]
    starts = [i for i, part in enumerate(parts) if part in _TOP]
    return "/".join(parts[starts[0] :] if starts else parts)


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    axes = _rule(name, shape)
    if name.endswith("/kernel/nf4") and shape[-3] % mesh.shape[axes[-3]]:
        raise ConfigError(
            f"mesh.{axes[-3]}: {mesh.shape[axes[-3]]} found, a divisor of {shape[-3]} expected, the nf4 blocks of {name[:-4]}; "
            "model.quantize 'int8' has none"
        )
    return PartitionSpec(*(a if a and size % mesh.shape[a] == 0 else None for a, size in zip(axes, shape)))


def _rule(name: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """The axis of the mesh that the table splits each axis of an array over."""
    if not shape:
        return ()
    axes = next((axes for pattern, axes in RULES if re.fullmatch(pattern, name)), None)
    if axes is None:
        raise ConfigError(f"model/sharding.py: no rule says how parameter {name} {shape} is split")
    return (None,) * (len(shape) - len(axes)) + axes


def bytes_a_device(*trees: Any) -> int:
    """The bytes that the arrays of these trees take on each device."""
    leaves = jax.tree.leaves(trees)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def kept_whole(tree: Any, mesh: Mesh) -> list[str]:
    """The parameters that the table splits over an axis of the mesh which does not divide them, by name and shape.

    Those of all blocks share an entry: `blocks/*/attention/k/kernel [2048, 512] over tensor (512 / 3)`.
    """
    names = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = _name(path)
        for size, ruled, split in zip(leaf.shape, _rule(name, leaf.shape), _spec(name, leaf.shape, mesh)):
            if ruled and not split:
                short = re.sub(r"/\d+/", "/*/", name)
                names[f"{short} {list(leaf.shape)} over {ruled} ({size} / {mesh.shape[ruled]})"] = True
    return list(names)


def make_sharded(create: Callable[..., Any], mesh: Mesh, *args: Any) -> Any:
    """What `create(*args)` returns (a tree of arrays), each array made on the devices that hold its parts."""
    shardings = parameter_shardings(jax.eval_shape(create, *args), mesh)
    return jax.jit(create, out_shardings=shardings)(*args)
