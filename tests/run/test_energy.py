from types import SimpleNamespace

import pytest

from ecgbyte_jax.run import energy
from ecgbyte_jax.run.energy import Meters


def device(number: int, platform: str = "gpu", process: int = 0) -> SimpleNamespace:
    return SimpleNamespace(process_index=process, platform=platform, local_hardware_id=number)


@pytest.fixture
def zones(tmp_path, monkeypatch):
    """Sets RAPL's counters, in microjoules, of zones that it makes; one begins anew at 1000."""
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)

    def write(**values: int) -> None:
        for name, value in values.items():
            folder = tmp_path / {"package": "intel-rapl:0", "core": "intel-rapl:0:0", "dram": "intel-rapl:0:1",
                                 "psys": "intel-rapl:1", "again": "intel-rapl-mmio:0"}[name]  # fmt: skip
            folder.mkdir(exist_ok=True)
            (folder / "name").write_text({"package": "package-0", "again": "package-0"}.get(name, name) + "\n")
            (folder / "energy_uj").write_text(f"{value}\n")
            (folder / "max_energy_range_uj").write_text("1000\n")

    return write


def test_processors_and_their_memory_count_once_and_counters_that_begin_anew_go_on(zones):
    zones(package=900, dram=10, core=500, psys=900, again=900)
    meters = Meters()
    assert meters.read() == {"processors": 0}
    zones(package=950, dram=20, core=999, psys=999, again=999)
    assert meters.read()["processors"] == pytest.approx(60e-6)
    zones(package=30, dram=25)
    assert meters.read()["processors"] == pytest.approx((60 + 80 + 5) * 1e-6)


def test_where_nothing_tells_there_is_no_figure(zones, tmp_path):
    assert Meters([device(0)]).read() == {}  # neither zones nor a driver
    zones(package=1, dram=1)
    (tmp_path / "intel-rapl:0:1" / "energy_uj").unlink()  # as where only root may read it
    assert Meters().read() == {}
    zones(dram=1)
    assert Meters([device(0, "cpu"), device(0, "cpu", process=1)]).read() == {}  # another machine's would be missing
    meters = Meters()
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meters.read() == {}


def test_gpus_count_by_their_bus_however_nvml_numbers_them(zones, monkeypatch):
    buses, millijoules = {0: b"0000:3B:00.0", 1: b"0000:18:00.0"}, {b"0000:18:00.0": 5_000, b"0000:3B:00.0": 70_000}

    def fill(reference, value) -> int:
        reference._obj.value = value
        return 0

    def name_bus(text, length, number) -> int:
        text.value = buses[number.value]
        return 0

    handles = dict(enumerate(millijoules, start=1))
    number_of = {bus: handle for handle, bus in handles.items()}
    driver = SimpleNamespace(
        cuInit=lambda flags: 0,
        nvmlInit_v2=lambda: 0,
        cuDeviceGet=fill,
        cuDeviceGetPCIBusId=name_bus,
        nvmlDeviceGetHandleByPciBusId_v2=lambda text, handle: fill(handle, number_of[text.value]),
        nvmlDeviceGetTotalEnergyConsumption=lambda handle, used: fill(used, millijoules[handles[handle.value]]),
    )
    monkeypatch.setattr(energy, "CDLL", lambda name: driver)
    meters, both = Meters([device(0)]), Meters([device(0), device(1)])
    millijoules[b"0000:3B:00.0"] += 1_500
    millijoules[b"0000:18:00.0"] += 30
    assert meters.read() == {"devices": pytest.approx(1.5)}
    assert both.read() == {"devices": pytest.approx(1.53)}
    millijoules[b"0000:18:00.0"] = 0  # the driver was loaded again
    assert meters.read() == {"devices": pytest.approx(1.5)} and both.read() == {}
    driver.nvmlDeviceGetTotalEnergyConsumption = lambda *_: 3
    assert Meters([device(0)]).read() == {}  # as GPUs before Volta
