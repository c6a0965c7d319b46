"""The energy that the hardware's own counters report: of NVIDIA GPUs through their driver, of processors through Linux.

They count whole GPUs and whole processors, including what other programs use. Where nothing reports energy, there is no figure.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ctypes import CDLL, byref, c_int, c_ulonglong, c_void_p, create_string_buffer
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

_POWERCAP = Path("/sys/class/powercap")
_ZONES = ("package", "dram")  # of RAPL; the others are parts of the first, or hold both


@dataclass
class _Counter:
    """One counter of J, of the `part` "processors" or "devices", which begins anew at `range`."""

    part: str
    read: Callable[[], float]  # raises OSError, ValueError
    range: float
    last: float
    used: float = 0.0

    def update(self) -> None:
        now = self.read()
        if now < self.last and math.isinf(self.range):
            raise OSError("a counter that has no end began anew, as when its driver is loaded again")
        self.used += now - self.last + (self.range if now < self.last else 0.0)
        self.last = now


class Meters:
    """The energy used since they were opened; `read` at least every minute, in which no counter begins anew twice.

    devices: of jax. Those of several processes are not read, nor is the machine: other machines would be missing.
    """

    def __init__(self, devices: Sequence[Any] = ()):
        self._counters: list[_Counter] = []
        if len({device.process_index for device in devices}) > 1:
            return
        self._counters = [*_processors()]
        ordinals = [device.local_hardware_id for device in devices if device.platform == "gpu"]
        with suppress(OSError, AttributeError):  # no driver, none of NVIDIA's, or an old one
            self._counters += _gpus(ordinals) if ordinals else []

    def read(self) -> dict[str, float]:
        """J by part; a part is left out for good where one of its counters cannot be read any more."""
        lost = set()
        for counter in self._counters:
            try:
                counter.update()
            except (OSError, ValueError):
                lost.add(counter.part)
        self._counters = [counter for counter in self._counters if counter.part not in lost]
        parts = sorted({counter.part for counter in self._counters})
        return {part: sum(counter.used for counter in self._counters if counter.part == part) for part in parts}


def _processors() -> Iterator[_Counter]:
    """RAPL's counters of every processor and its memory; on most machines only root may read them.

    All or none: a part of the processors would pass for all of them.
    """
    counters = []
    for zone in sorted(_POWERCAP.glob("intel-rapl:*")):  # AMD's too; intel-rapl-mmio counts the same once more
        try:
            if (zone / "name").read_text().startswith(_ZONES):
                read = partial(_microjoules, zone / "energy_uj")
                counters.append(_Counter("processors", read, _microjoules(zone / "max_energy_range_uj"), read()))
        except (OSError, ValueError):
            return
    yield from counters


def _microjoules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def _gpus(ordinals: list[int]) -> list[_Counter]:
    """NVML's counters of the GPUs with these numbers for CUDA, which may number and hide them otherwise than NVML.

    Volta and later have one. Raises OSError, AttributeError where the driver reports none.
    """
    cuda, nvml = CDLL("libcuda.so.1"), CDLL("libnvidia-ml.so.1")
    _call(cuda.cuInit, 0)
    _call(nvml.nvmlInit_v2)

    def read(handle: c_void_p) -> float:
        millijoules = c_ulonglong()
        _call(nvml.nvmlDeviceGetTotalEnergyConsumption, handle, byref(millijoules))
        return millijoules.value / 1e3

    counters = []
    for ordinal in ordinals:
        device, handle, bus = c_int(), c_void_p(), create_string_buffer(32)
        _call(cuda.cuDeviceGet, byref(device), ordinal)
        _call(cuda.cuDeviceGetPCIBusId, bus, len(bus), device)
        _call(nvml.nvmlDeviceGetHandleByPciBusId_v2, bus, byref(handle))
        counters.append(_Counter("devices", partial(read, handle), math.inf, read(handle)))
    return counters


def _call(function: Any, *arguments: Any) -> None:
    """Raises OSError where a function of the driver fails."""
    if status := function(*arguments):
        raise OSError(f"{function.__name__}: status {status}")
