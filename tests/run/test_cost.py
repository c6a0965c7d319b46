import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from ecgbyte_jax.run import cost
from ecgbyte_jax.run.console import forget_peak_memory
from ecgbyte_jax.run.cost import cost_of, counted
from ecgbyte_jax.run.stage import Stage
from ecgbyte_jax.run.workdir import Workdir

DEVICES = [SimpleNamespace(process_index=0, platform="cpu")] * 4


def stage(workdir: Workdir, **settings) -> Stage:
    return Stage("train", workdir.train_marker, settings, "")


def ledger(workdir: Workdir) -> dict:
    return json.loads(workdir.cost.read_text())


def test_commands_on_the_same_stage_add_up_and_a_failed_one_counts(tmp_path):
    workdir = Workdir(tmp_path)
    with counted(workdir, "train", stage(workdir), devices=DEVICES) as about:
        time.sleep(0.05)
        about["seen"] = {"ecgs": 3}
    first = ledger(workdir)["train"]
    assert 0.05 <= first["wall_s"] < 5 and first["device_s"] == 4 * first["wall_s"] and first["seen"] == {"ecgs": 3}
    with pytest.raises(KeyboardInterrupt), counted(workdir, "train", stage(workdir), devices=DEVICES):
        sum(i * i for i in range(300_000))
        raise KeyboardInterrupt
    second = ledger(workdir)["train"]
    assert second["commands"] == 2 and second["seen"] == {"ecgs": 3}
    assert second["wall_s"] > first["wall_s"] and second["cpu_s"] > first["cpu_s"]
    assert second["peak_memory"] >= first["peak_memory"] > 10**6


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak cannot be forgotten")
def test_the_memory_of_what_was_before_can_be_forgotten(tmp_path):
    """Several trainings in one process: the last would else have cost the memory of the largest."""
    workdir, large, peaks = Workdir(tmp_path), bytearray(b"x") * (64 << 20), []
    for rate in (1, 2, 3):
        with counted(workdir, "train", stage(workdir, rate=rate)):
            pass
        peaks.append(ledger(workdir)["train"]["peak_memory"])
        large = b""
        if rate == 2:
            forget_peak_memory()
    assert large == b"" and peaks[0] <= peaks[1] > peaks[2] + (32 << 20)


def test_other_settings_begin_a_new_sum_and_the_old_one_comes_back_with_its_settings(tmp_path):
    workdir = Workdir(tmp_path)
    for rate in (1, 1, 2, 1):
        with counted(workdir, "train", stage(workdir, rate=rate)):
            pass
    assert ledger(workdir)["train"]["commands"] == 3
    assert [entry["commands"] for entry in ledger(workdir)["with other settings"]["train"].values()] == [1]
    with counted(workdir, "eval", stage(workdir)):
        pass
    assert set(ledger(workdir)) == {"train", "eval", "with other settings"}
    assert cost_of(workdir, "train", stage(workdir, rate=2).digest())["commands"] == 1
    assert cost_of(workdir, "train", stage(workdir, rate=1).digest())["commands"] == 3
    assert cost_of(workdir, "train", stage(workdir, rate=3).digest()) == {}


def test_of_a_command_that_is_killed_outright_the_last_seconds_alone_are_lost(tmp_path):
    script = f"""if True:
        import os, pathlib, time
        from ecgbyte_jax.run import cost
        from ecgbyte_jax.run.stage import Stage
        from ecgbyte_jax.run.workdir import Workdir
        cost._EVERY, workdir = 0.02, Workdir(pathlib.Path({str(tmp_path)!r}))
        stage = Stage("train", workdir.train_marker, {{}}, "")
        with cost.counted(workdir, "train", stage), cost.counted(workdir, "within", stage):
            while not workdir.cost.exists() or "train" not in workdir.cost.read_text():
                time.sleep(0.01)
            time.sleep(0.2)
            os._exit(9)
    """
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 9
    workdir = Workdir(tmp_path)
    killed = ledger(workdir)["train"]
    assert killed["commands"] == 1 and killed["wall_s"] > 0.1 and set(ledger(workdir)) == {"train", "within"}
    with counted(workdir, "train", stage(workdir)):
        pass
    assert ledger(workdir)["train"]["commands"] == 2 and ledger(workdir)["train"]["wall_s"] > killed["wall_s"]


def test_energy_adds_up_where_every_command_could_tell_it(tmp_path, monkeypatch):
    first, second = {"processors": 2.0, "devices": 5.0}, {"processors": 3.0, "devices": 1.0}
    told = iter([first, second, {"devices": 4.0}, {}, {"devices": 1.0}])
    monkeypatch.setattr(cost, "Meters", lambda devices: SimpleNamespace(read=lambda used=next(told): used))
    found = []
    for _ in range(5):
        with counted(Workdir(tmp_path), "train", stage(Workdir(tmp_path))):
            pass
        found.append(ledger(Workdir(tmp_path))["train"]["energy_j"])
    assert found == [first, {"processors": 5.0, "devices": 6.0}, {"devices": 10.0}, None, None]


@pytest.mark.parametrize("content", ['{"train": {"wall_s": 1', "[1]", '{"train": 5}'])
def test_a_damaged_ledger_begins_anew_and_followers_write_none(tmp_path, content):
    workdir = Workdir(tmp_path)
    with counted(workdir, "train", stage(workdir), keep=False):
        pass
    assert not workdir.cost.exists()
    workdir.cost.write_text(content)
    with counted(workdir, "train", stage(workdir)):
        pass
    assert ledger(workdir)["train"]["commands"] == 1
