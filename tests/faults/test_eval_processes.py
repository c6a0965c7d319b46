"""Evaluation as a user runs it: on other devices, in several processes, and killed."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_main import ROOT, SMALL

DRAWN = ["eval.temperature=1.2", "eval.seeds=(0,1)", "eval.perturb=('noise',)", "train.epochs=1.5"]


def start(workdir: Path, *more: str, devices: int = 1) -> subprocess.Popen:
    settings = [f"--config.{setting}" for setting in (*SMALL, *DRAWN, *more)]
    command = [sys.executable, "main.py", "--config=experiments/demo.py", f"--workdir={workdir}", "--stage=eval", *settings]
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        shown, _ = process.communicate(timeout=300)
        assert process.returncode == 0, shown


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("trained") / "w"
    settings = [f"--config.{setting}" for setting in (*SMALL, *DRAWN)]
    command = [sys.executable, "main.py", "--config=experiments/demo.py", f"--workdir={workdir}", *settings]
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture
def workdir(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "w", ignore=shutil.ignore_patterns("eval"))
    return tmp_path / "w"


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "eval/generations.jsonl").open()]


def assert_same(found: Path, expected: Path) -> None:
    """The log-probabilities may differ in float32's last bits."""
    for ours, theirs in zip(rows(found), rows(expected), strict=True):
        for name in ("log_prob", "log_prob_to_other_ecg"):
            assert ours.pop(name) == pytest.approx(theirs.pop(name), abs=1e-3)
        assert ours == theirs
    assert (found / "eval/results.json").read_bytes() == (expected / "eval/results.json").read_bytes()


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(trained, workdir):
    finish(start(workdir, "mesh.data=4", "mesh.tensor=2", devices=8))
    assert len(rows(workdir)) == 32
    assert_same(workdir, trained)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(trained, workdir):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    together = ("distributed.initialize=True", f"distributed.address={address}", "distributed.processes=2")
    finish(*(start(workdir, *together, f"distributed.process={number}", devices=2) for number in range(2)))
    assert_same(workdir, trained)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(trained, workdir):
    generations, rng, killed = workdir / "eval/generations.jsonl", random.Random(0), 0
    while killed < 4:
        before, process = generations.stat().st_size if generations.is_file() else 0, start(workdir)
        while process.poll() is None and not (generations.is_file() and generations.stat().st_size > before):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
    assert killed
    finish(start(workdir))
    for name in ("generations.jsonl", "results.json"):
        assert (workdir / "eval" / name).read_bytes() == (trained / "eval" / name).read_bytes()
