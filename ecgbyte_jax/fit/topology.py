"""The devices of a topology, for which programs can be compiled without having them: `v5e-8`, `h100-8`, or those here."""

import re
from dataclasses import dataclass
from importlib.util import find_spec

import jax
from jax.experimental import topologies

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.train.chips import CHIPS, Chip

# Devices -> how they are wired, which the compiler of TPUs takes as the size of a slice.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
_SLICES = {"v4": _CUBES, "v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}
# libtpu asks the machine that it is on for these.
_TPU_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class _Gpu:
    """What XLA must know of an NVIDIA GPU to compile for it; NVIDIA's data sheets and CUDA programming guide."""

    capability: tuple[int, int]
    cores: int
    threads: int  # of a core at once
    floats: int  # float32 units of a core
    shared: int  # bytes of a core's shared memory; a block may have 1 KB less
    cache: int  # bytes, of level 2
    clock: float  # GHz


_GPUS = {
    "a100-40": _Gpu((8, 0), 108, 2048, 64, 167_936, 41_943_040, 1.41),
    "a100-80": _Gpu((8, 0), 108, 2048, 64, 167_936, 41_943_040, 1.41),
    "h100-pcie": _Gpu((9, 0), 114, 2048, 128, 233_472, 52_428_800, 1.755),
    "h100": _Gpu((9, 0), 132, 2048, 128, 233_472, 52_428_800, 1.98),
    "h200": _Gpu((9, 0), 132, 2048, 128, 233_472, 52_428_800, 1.98),
    "l4": _Gpu((8, 9), 58, 1536, 128, 102_400, 50_331_648, 2.04),
    "rtx4090": _Gpu((8, 9), 128, 1536, 128, 102_400, 75_497_472, 2.52),
}


def chip_and_count(name: str) -> tuple[str, int]:
    """`h100-8` -> ("h100", 8); raises ConfigError for a chip that is not known or a TPU slice of a size that is not made."""
    chip, _, count = name.rpartition("-")
    if chip not in CHIPS or not re.fullmatch(r"[1-9]\d{0,3}", count):
        known = ", ".join(CHIPS)
        raise ConfigError(f"fit.topology: {name!r} found, 'here' or CHIP-DEVICES of these chips expected: {known}")
    sizes = _SLICES.get(chip)
    if sizes and int(count) not in sizes:
        raise ConfigError(f"fit.topology: {name!r} found, slices of {', '.join(map(str, sizes))} {chip} devices expected")
    return chip, int(count)


def environment(name: str) -> dict[str, str]:
    """The environment variables with which a process can compile for a topology."""
    if name == "here":
        return {}
    chip, _ = chip_and_count(name)
    return {"JAX_PLATFORMS": "cpu"} | (_TPU_HOST if chip in _SLICES else {})


def devices_of(name: str) -> list[jax.Device]:
    """The devices of a topology, or those here; raises ConfigError where the compiler for them is not installed."""
    if name == "here":
        return jax.devices()
    chip, count = chip_and_count(name)
    if chip in _SLICES:
        if not find_spec("libtpu"):
            raise ConfigError("fit.topology: TPUs need the extra `tpu` (libtpu): pip install -e '.[tpu]'")
        lone = {"chips_per_host_bounds": [1, 1, 1]} if count == 1 else {}
        return list(topologies.get_topology_desc(f"{chip}:{_SLICES[chip][count]}", platform="tpu", **lone).devices)
    if not any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise ConfigError("fit.topology: NVIDIA GPUs need the extra `cuda` (XLA's compiler for them): pip install -e '.[cuda]'")
    described = topologies.get_topology_desc(
        platform="cuda", topology_name=chip, target_config=_target(CHIPS[chip], _GPUS[chip]), topology=f"1x1x{count}"
    )
    return list(described.devices)


def _target(chip: Chip, gpu: _Gpu) -> str:
    """XLA's GpuTargetConfigProto as text."""
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.floats}
  clock_rate_ghz: {gpu.clock}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: {gpu.threads}
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared - 1024}
  shared_memory_per_core: {gpu.shared}
  l2_cache_size: {gpu.cache}
  device_memory_size: {chip.memory:.0f}
  memory_bandwidth: {chip.bandwidth:.0f}
  device_vendor: "NVIDIA Corporation"
  name: "{chip.kind}"
  driver_version: "13.0.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{chip.kind}"
"""
