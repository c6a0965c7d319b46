"""The lock of a run's folder, between processes."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ecgbyte_jax.errors import LockedError
from ecgbyte_jax.run import lock
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.stages import pipeline
from tests.launch import start_two
from tests.small import small_config
from tests.test_main import ROOT

HOLD = "import sys; from pathlib import Path; from ecgbyte_jax.run.lock import holding\n"
HOLD += "with holding(Path(sys.argv[1]) / 'run.lock'): print('held', flush=True); sys.stdin.read()"


def hold(workdir) -> subprocess.Popen:
    """A process that holds the lock until its input ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(workdir)], cwd=ROOT, **pipes)
    assert process.stdout.readline() == "held\n", process.stderr.read()
    return process


def test_a_folder_in_use_is_refused_with_host_and_process_and_free_afterwards(tmp_path):
    process = hold(tmp_path)
    with (
        pytest.raises(LockedError, match=rf"process {process.pid} on host '.+' is at work") as told,
        lock.holding(Workdir(tmp_path).lock),
    ):
        pass
    assert "remove" not in str(told.value)  # on one machine nobody has to
    process.communicate()
    with lock.holding(Workdir(tmp_path).lock):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] > 0
    assert not list(tmp_path.iterdir())


def test_a_killed_command_leaves_no_lock(tmp_path):
    process = hold(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "run.lock").exists()
    with lock.holding(Workdir(tmp_path).lock):
        pass
    (tmp_path / "run.lock").touch()  # killed as it began
    with lock.holding(Workdir(tmp_path).lock):
        pass


def test_a_lock_that_was_taken_for_a_dead_one_is_made_again(tmp_path, monkeypatch):
    """As where a command stops for long between making the file and locking it."""
    flock, stolen = lock.fcntl.flock, []

    def steal_first(*given):
        if not stolen:
            stolen.append((tmp_path / "run.lock").unlink())
        flock(*given)

    monkeypatch.setattr(lock.fcntl, "flock", steal_first)
    with lock.holding(Workdir(tmp_path).lock):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] > 0
    assert stolen and not list(tmp_path.iterdir())


def test_another_host_s_lock_is_refused_until_it_is_removed(tmp_path):
    file = tmp_path / "run.lock"
    file.write_text(json.dumps({"host": "node17", "pid": 4711, "boot": "another"}))
    with (
        pytest.raises(LockedError, match=r"process 4711 on host 'node17'.* remove '.*run\.lock'"),
        lock.holding(Workdir(tmp_path).lock),
    ):
        pass
    file.unlink()
    with lock.holding(Workdir(tmp_path).lock):
        pass


def test_a_container_of_this_machine_that_is_gone_leaves_no_lock(tmp_path):
    """Containers have host names of their own, and one kernel."""
    (tmp_path / "run.lock").write_text(json.dumps({"host": "0b1c2d3e", "pid": 7, "boot": lock._boot()}))
    with lock.holding(Workdir(tmp_path).lock):
        pass


def test_without_kernel_locks_the_process_number_counts(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    process = hold(tmp_path)
    with pytest.raises(LockedError, match=f"process {process.pid}"), lock.holding(Workdir(tmp_path).lock):
        pass
    process.kill()
    process.communicate()
    with lock.holding(Workdir(tmp_path).lock):
        pass


@pytest.mark.parametrize("left", ["", '{"host": "%s", "pid": 4194300}'])
def test_of_many_that_start_at_once_one_holds_it(tmp_path, left):
    if left:
        (tmp_path / "run.lock").write_text(left % lock.socket.gethostname())
    inside, most = [], []

    def work(_) -> bool:
        try:
            with lock.holding(Workdir(tmp_path).lock):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.3)
                inside.pop()
        except LockedError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(work, range(16))) == 1 and max(most) == 1


def test_a_run_is_refused_beside_another_and_a_look_is_not(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(pipeline, "_run_stage", lambda name, *_: ran.append(name))
    process, config = hold(tmp_path), small_config()
    config.train.valid_answers = 1  # for the headline
    for stage in pipeline.STAGES:
        if stage in ("inspect", "ask", "serve"):
            pipeline.run(config, tmp_path, [stage])
        else:
            with pytest.raises(LockedError, match=f"process {process.pid}"):
                pipeline.run(config, tmp_path, [stage])
    process.communicate()
    assert ran == ["inspect", "ask", "serve"]


@pytest.mark.slow
def test_two_processes_of_one_run_are_refused_together(tmp_path):
    process = hold(tmp_path)
    for number, other in enumerate(start_two(tmp_path)):
        lines = [line for line in other.communicate(timeout=120)[0].splitlines() if not line.startswith("[Gloo]")]
        assert other.returncode == 1 and len(lines) == 1 and "at work in this run folder" in lines[0], lines
        assert f"process {process.pid} on host" in lines[0] and ("process 0 has failed" in lines[0]) == bool(number)
    process.communicate()
