"""Preparation that is killed: whatever dies, and whenever, the same command ends with the same bytes."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.settings import Settings
from tests.test_main import ROOT

pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")  # which distributed needs
RECORDS = 150
KILLS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_demo(folder / "ptbxl", folder / "ecgqa", RECORDS, seed=0)
    return folder / "ptbxl"


def start(data: Path, workdir: Path, *more: str) -> subprocess.Popen:
    command = [
        sys.executable, "main.py", "--config=experiments/ptb.py:tiny", "--stage=prepare", f"--workdir={workdir}",
        f"--config.data.root={data}", "--config.tokenizer.num_merges=300", "--config.data.max_segments=0",
        "--config.data.sequences_per_file=60", "--config.prepare.task_records=6", *more,
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> None:
    shown, _ = process.communicate(timeout=180)
    assert process.returncode == 0, shown


def digests(workdir: Path) -> dict[str, str]:
    """Of every file that training reads."""
    files = [path for name in ("shards", "tokenizer") for path in (workdir / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(workdir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> dict[str, str]:
    workdir = tmp_path_factory.mktemp("whole")
    finish(start(data, workdir))
    found = digests(workdir)
    assert len([name for name in found if "shards/train" in name]) > 5
    return found


def begun(workdir: Path, process: subprocess.Popen) -> None:
    """Waits until this process has begun to prepare."""
    marker, since = workdir / "prepare/stage.json", time.time()
    while process.poll() is None and not (marker.exists() and marker.stat().st_mtime > since - 0.5):
        time.sleep(0.01)


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(data, uninterrupted, tmp_path):
    rng, killed, runs, workdir = random.Random(0), {"parent": 0, "worker": 0}, 0, tmp_path / "0"
    while sum(killed.values()) < KILLS:
        process = start(data, workdir, "--config.prepare.workers=2")
        whom = rng.choice(["parent", "parent", "worker"])
        begun(workdir, process)
        time.sleep(rng.uniform(0, 9))
        if process.poll() is None:
            if whom == "parent":
                process.kill()
                killed["parent"] += 1
            elif found := workers(process):
                rng.choice(found).send_signal(signal.SIGKILL)
                killed["worker"] += 1
        shown, _ = process.communicate(timeout=180)
        if process.returncode == 0:
            assert digests(workdir) == uninterrupted
            runs += 1
            workdir = tmp_path / str(runs)
        else:
            assert process.returncode == -signal.SIGKILL, shown
    finish(start(data, workdir))
    assert digests(workdir) == uninterrupted
    assert min(killed.values()) >= 3


@pytest.mark.slow
def test_a_scheduler_elsewhere_survives_the_death_of_a_worker(data, uninterrupted, tmp_path):
    address, env = tmp_path / "scheduler.json", os.environ | {"PYTHONPATH": str(ROOT)}
    dask, quiet = [sys.executable, "-m"], {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = [*dask, "distributed.cli.dask_scheduler", "--host=127.0.0.1", "--port=0", "--dashboard-address=:0"]
    processes = [subprocess.Popen([*scheduler, f"--scheduler-file={address}"], **quiet)]
    try:
        while not address.exists():
            time.sleep(0.1)
        worker = [*dask, "distributed.cli.dask_worker", f"--scheduler-file={address}", "--nthreads=1", "--no-nanny"]
        processes += [subprocess.Popen([*worker, "--dashboard-address=:0"], **quiet) for _ in range(2)]
        host = json.loads(address.read_text())["address"]
        process = start(data, tmp_path / "w", f"--config.prepare.scheduler={host}")
        while process.poll() is None and not list(tmp_path.glob("w/cache/symbols/*/*.symbols")):
            time.sleep(0.01)
        processes[1].kill()
        assert process.poll() is None
        finish(process)
    finally:
        for other in processes:
            other.kill()
            other.wait()
    assert digests(tmp_path / "w") == uninterrupted


@pytest.mark.slow
def test_two_workers_give_the_bytes_of_one(data, uninterrupted, tmp_path):
    finish(start(data, tmp_path, "--config.prepare.workers=2", "--config.prepare.task_records=40"))
    assert digests(tmp_path) == uninterrupted


def test_a_scheduler_that_does_not_answer_is_named(data, tmp_path, monkeypatch):
    from ecgbyte_jax.errors import ConfigError
    from ecgbyte_jax.prepare import workers as module
    from experiments import ptb

    monkeypatch.setattr(module, "_PATIENCE", 1)
    config = ptb.get_config("tiny")
    config.prepare.scheduler = "tcp://127.0.0.1:9"
    with (
        pytest.raises(ConfigError, match=r"prepare\.scheduler: no Dask scheduler .*127\.0\.0\.1:9"),
        module.open_workers(Settings.of(config).prepare),
    ):
        pass


def test_a_cluster_whose_worker_dies_while_it_starts_is_started_again():
    from ecgbyte_jax.prepare.workers import _start

    dies = iter([True, True, False])

    def cluster(workers: int) -> int:
        if next(dies):
            raise RuntimeError("Nanny failed to start.")
        return workers

    assert _start(cluster, workers=2) == 2
    dies = iter([True] * 9)
    with pytest.raises(RuntimeError, match="Nanny failed to start"):
        _start(cluster, workers=2)
