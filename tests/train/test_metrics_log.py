"""The log of a training's figures, and Weights & Biases beside it."""

import json
import sys
from contextlib import closing

import pytest

from ecgbyte_jax.errors import ConfigError, TrainingError
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.train.metrics_log import MetricsLog


def write(folder, steps, from_step: int, **more) -> None:
    with closing(MetricsLog(Workdir(folder), from_step, **more)) as log:
        for step in steps:
            log.write({"step": step, "loss": 1 / step})


def steps(folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]


def test_lines_after_the_step_that_a_run_goes_on_from_are_dropped(tmp_path):
    write(tmp_path, range(1, 7), 0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # killed
    write(tmp_path, (5, 6), 4)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    write(tmp_path, (), 2)
    assert steps(tmp_path) == [1, 2]


def test_a_kill_while_the_log_is_reopened_leaves_the_old_one(tmp_path):
    write(tmp_path, range(1, 7), 0)
    (tmp_path / "before").hardlink_to(tmp_path / "metrics.jsonl")
    write(tmp_path, (), 2)
    assert (tmp_path / "before").read_text().count("\n") == 6 and steps(tmp_path) == [1, 2]  # another file, put in its place


def test_a_foreign_line_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stop": 1}\n')
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: a line is not one of this log's .*move the file away"):
        MetricsLog(Workdir(tmp_path), 3)


def test_weights_and_biases_without_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"train\.wandb_project: needs the extra: pip install -e '\.\[wandb\]'"):
        MetricsLog(Workdir(tmp_path), 0, "ecg")


def test_weights_and_biases_goes_on_with_the_run_of_the_work_directory(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install -e '.[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    identities = []
    for start in (0, 2):
        write(tmp_path, (start + 1, start + 2), start, wandb_project="ecg", config={"seed": 0})
        identities.append((tmp_path / "wandb_run.txt").read_text())
    files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert identities[0] == identities[1] and {file.stem for file in files} == {f"run-{identities[0]}"}
    assert all(b"loss" in file.read_bytes() for file in files) and steps(tmp_path) == [1, 2, 3, 4]
