import json
import time

import pytest

from ecgbyte_jax.run.cost import collect, counted
from ecgbyte_jax.run.workdir import Workdir


def test_commands_on_the_same_stage_add_up_and_a_failed_one_counts(tmp_path):
    with counted(tmp_path, devices=4) as about:
        time.sleep(0.05)
        about["seen"] = {"ecgs": 3}
    first = json.loads((tmp_path / "cost.json").read_text())
    assert 0.05 <= first["wall_s"] < 5 and first["device_s"] == 4 * first["wall_s"] and first["seen"] == {"ecgs": 3}
    with pytest.raises(KeyboardInterrupt), counted(tmp_path, devices=4):
        sum(i * i for i in range(300_000))
        raise KeyboardInterrupt
    second = json.loads((tmp_path / "cost.json").read_text())
    assert second["commands"] == 2 and second["seen"] == {"ecgs": 3}
    assert second["wall_s"] > first["wall_s"] and second["cpu_s"] > first["cpu_s"]
    assert second["peak_memory"] >= first["peak_memory"] > 10**6


def test_a_damaged_sum_begins_anew_and_followers_write_none(tmp_path):
    (tmp_path / "cost.json").write_text('{"wall_s": 1')
    with counted(tmp_path):
        pass
    assert json.loads((tmp_path / "cost.json").read_text())["commands"] == 1
    with counted(tmp_path, keep=False):
        pass
    assert json.loads((tmp_path / "cost.json").read_text())["commands"] == 1


def test_a_run_s_ledger_has_what_its_stages_left(tmp_path):
    workdir = Workdir(tmp_path)
    collect(workdir)
    assert not workdir.cost.exists()
    for folder in (workdir.checkpoints, workdir.evaluation):
        folder.mkdir(parents=True)
        with counted(folder):
            pass
    collect(workdir)
    assert set(json.loads(workdir.cost.read_text())) == {"train", "eval"}
