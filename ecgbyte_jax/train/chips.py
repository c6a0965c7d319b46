"""What is known of accelerators, one table: memory, peak rates, and what their compilers must know where they are not here."""

from dataclasses import dataclass

import jax
from jax.sharding import Mesh

USABLE = 0.95  # of a device's memory: the rest is its runtime's
ABSENT = "compile_only_runtime"  # of a topology's devices, for which programs are compiled alone


@dataclass(frozen=True)
class Chip:
    """One device, by the makers' data sheets.

    kind: how jax's `device_kind` begins. memory: bytes, those of a TPU that its compiler gives to programs. flops: dense
    bfloat16 FLOP/s. bandwidth: of its memory, bytes/s. link: bytes/s to other devices, one way.
    """

    kind: str
    memory: float
    flops: float
    bandwidth: float
    link: float


CHIPS = {
    "v4": Chip("TPU v4", 31.25e9 * 1.024**3, 275e12, 1228e9, 150e9),
    "v5e": Chip("TPU v5 lite", 15.75e9 * 1.024**3, 197e12, 819e9, 100e9),
    "v5p": Chip("TPU v5p", 95.74 * 2**30, 459e12, 2765e9, 300e9),
    "v6e": Chip("TPU v6 lite", 31.25e9 * 1.024**3, 918e12, 1640e9, 224e9),
    "a100-40": Chip("NVIDIA A100-SXM4-40GB", 42_331_013_120, 312e12, 1555e9, 300e9),
    "a100-80": Chip("NVIDIA A100-SXM4-80GB", 85_045_280_768, 312e12, 2039e9, 300e9),
    "h100-pcie": Chip("NVIDIA H100 PCIe", 85_045_280_768, 756e12, 2039e9, 64e9),
    "h100": Chip("NVIDIA H100 80GB HBM3", 84_942_979_072, 989e12, 3352e9, 450e9),
    "h200": Chip("NVIDIA H200", 151_397_597_184, 989e12, 4800e9, 450e9),
    "l4": Chip("NVIDIA L4", 23_900_000_000, 121e12, 300e9, 32e9),
    "rtx4090": Chip("NVIDIA GeForce RTX 4090", 25_250_000_000, 165e12, 1008e9, 32e9),
}
_FAMILIES = {"NVIDIA A100": "a100-40", "NVIDIA H100": "h100"}  # for kinds that are not in the table word by word


def chip_of(device: jax.Device) -> Chip | None:
    """What is known of a device, here or of a topology; None where it is not in the table (a CPU, for example)."""
    exact = [chip for chip in CHIPS.values() if device.device_kind.startswith(chip.kind)]
    families = [CHIPS[name] for kind, name in _FAMILIES.items() if device.device_kind.startswith(kind)]
    return next(iter(exact + families), None)


def memory_of(mesh: Mesh) -> float | None:
    """The bytes that programs may use on each device: what its runtime says, else the table's; None where neither knows."""
    device = mesh.devices.flat[0]
    if device.client.runtime_type != ABSENT and mesh.local_devices:
        limit = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
        if limit:
            return float(limit)
    chip = chip_of(device)
    return None if chip is None else chip.memory
