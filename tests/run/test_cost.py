import json
import time

import pytest

from ecgbyte_jax.run.cost import counted
from ecgbyte_jax.run.stage import Stage
from ecgbyte_jax.run.workdir import Workdir


def stage(workdir: Workdir, **settings) -> Stage:
    return Stage("train", workdir.train_marker, settings, "")


def ledger(workdir: Workdir) -> dict:
    return json.loads(workdir.cost.read_text())


def test_commands_on_the_same_stage_add_up_and_a_failed_one_counts(tmp_path):
    workdir = Workdir(tmp_path)
    with counted(workdir, "train", stage(workdir), devices=4) as about:
        time.sleep(0.05)
        about["seen"] = {"ecgs": 3}
    first = ledger(workdir)["train"]
    assert 0.05 <= first["wall_s"] < 5 and first["device_s"] == 4 * first["wall_s"] and first["seen"] == {"ecgs": 3}
    with pytest.raises(KeyboardInterrupt), counted(workdir, "train", stage(workdir), devices=4):
        sum(i * i for i in range(300_000))
        raise KeyboardInterrupt
    second = ledger(workdir)["train"]
    assert second["commands"] == 2 and second["seen"] == {"ecgs": 3}
    assert second["wall_s"] > first["wall_s"] and second["cpu_s"] > first["cpu_s"]
    assert second["peak_memory"] >= first["peak_memory"] > 10**6


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
