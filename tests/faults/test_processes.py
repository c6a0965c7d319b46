"""Several real processes that train as one, and what becomes of the others when one dies."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from tests.launch import (
    figures,
    finish,
    finish_layouts,
    free_address,
    metrics,
    start,
    start_python,
    start_two,
    wait_for_step,
)

pytestmark = pytest.mark.slow

LONG = ("--config.train.epochs=60", "--config.train.checkpoint_every=40")

LAYOUTS = {
    1: ["1x1x2", "2x1x1", "1x2x1"],  # devices of a process: data x fsdp x tensor
    2: ["1x1x4", "2x1x2", "1x2x2", "2x2x1", "4x1x1", "1x4x1"],
}


@pytest.fixture
def workdirs(prepared, tmp_path):
    """Two work directories, prepared alike."""
    for name in ("one", "two"):
        shutil.copytree(prepared, tmp_path / name)
    return tmp_path / "one", tmp_path / "two"


def test_two_processes_train_and_validate_as_one_and_go_on_from_each_other(workdirs):
    one, two = workdirs
    finish(start(one))
    outputs = [finish(process) for process in start_two(two)]
    assert "2 process(es)" in outputs[0] and "step" not in outputs[1]
    for ours, theirs in zip(figures(one), figures(two), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name
    # One process goes on from the checkpoint of two, and two from that of one.
    for folder in workdirs:
        shutil.rmtree(folder / "checkpoints/8")
    finish(start(two))
    for process in start_two(one):
        finish(process)
    np.testing.assert_allclose(*([line["loss"] for line in metrics(folder)] for folder in workdirs), atol=1e-4)


@pytest.fixture(scope="module")
def one_process(prepared, tmp_path_factory):
    """The work directory of a run in one process on one device."""
    folder = tmp_path_factory.mktemp("one")
    finish_layouts(folder, prepared, ["1x1x1"], devices=1, processes=1)
    return folder / "1x1x1"


@pytest.mark.parametrize("devices", LAYOUTS)
def test_two_processes_give_the_losses_and_answers_of_one_in_every_layout(one_process, prepared, tmp_path, devices):
    finish_layouts(tmp_path, prepared, LAYOUTS[devices], devices, processes=2)
    for layout in LAYOUTS[devices]:
        for ours, theirs in zip(figures(tmp_path / layout), figures(one_process), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5), (layout, ours, theirs)
        assert answers(tmp_path / layout) == pytest.approx(answers(one_process), abs=1e-3), layout


def answers(workdir):
    """Each answer's place, and its log-probability."""
    rows = map(json.loads, (workdir / "eval/generations.jsonl").open())
    return {(row["id"], row["segment"], row["answer"], row["answer_to_other_ecg"]): row["log_prob"] for row in rows}


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_process_ends_the_other(workdirs, victim):
    processes = start_two(workdirs[0], *LONG)
    wait_for_step(workdirs[0], 10)
    processes[victim].kill()
    killed = time.monotonic()
    output, _ = processes[1 - victim].communicate(timeout=60)
    assert processes[1 - victim].returncode != 0 and time.monotonic() - killed < 60
    reported = "the leader task was preempted/died" if victim == 0 else "unhealthy (stopped sending heartbeats):\n1\n"
    assert reported in output and "Extension modules" not in output and "Traceback" not in output, output


def test_sigterm_to_one_process_stops_both_after_the_same_step(workdirs):
    processes = start_two(workdirs[0], *LONG)
    wait_for_step(workdirs[0], 10)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    last = metrics(workdirs[0])[-1]["step"]
    assert (workdirs[0] / f"checkpoints/{last}").is_dir() and f"after step {last}" in outputs[0]


SLOW_PREPARE = """
import time
from ecgbyte_jax.stages import prepare
quick = prepare.prepare
prepare.prepare = lambda *given: time.sleep(40) or quick(*given)
"""


def test_the_others_wait_for_a_leader_that_prepares_for_long(tmp_path):
    processes = start_two(tmp_path / "w", "--stage=prepare,train", patches=(SLOW_PREPARE, ""))
    leader, _ = [finish(process, 540) for process in processes]
    assert "2 process(es)" in leader
    assert [line["step"] for line in metrics(tmp_path / "w")] == [*range(1, 9)]


def ended(processes, seconds=240) -> list[str]:
    """What processes that did not end well printed last, and that it was in one line."""
    outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], outputs
    assert all("Traceback" not in output and "another process" not in output for output in outputs), outputs
    return [output.splitlines()[-1] for output in outputs]


def test_a_leader_that_fails_alone_ends_the_others_with_its_reason(tmp_path):
    wrong = ("--config.data.synthetic_records=0", "--config.data.corpus=ptbxl", "--config.data.root=/nowhere")
    processes = start_two(tmp_path / "w", "--stage=prepare,train", *wrong)
    outputs = [process.communicate(timeout=240)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [1, 1] and list(map(len, outputs)) == [1, 1], outputs
    assert outputs[0][0].startswith("error: data.root: no ptbxl_database.csv in '/nowhere'")
    assert outputs[1][0] == f"error: process 0 has failed: {outputs[0][0].removeprefix('error: ')}"


FAILING_STEP = """
import jax
from ecgbyte_jax.stages import train
class Feed(train.Feed):
    def take(self):
        raise jax.errors.JaxRuntimeError("{}\\nand more")
train.Feed = Feed
"""


@pytest.mark.parametrize("why, shown", [("RESOURCE_EXHAUSTED: 9 GB", "train: out of memory (RESOURCE_EXHAUSTED: 9 GB)"),
                                       ("INTERNAL: a bug", "INTERNAL: a bug")])  # fmt: skip
def test_an_error_of_one_process_is_reported_by_both_as_its_own(workdirs, why, shown):
    own, other = ended(start_two(workdirs[0], patches=(FAILING_STEP.format(why), "")))
    assert own.startswith(f"error: {shown}") and other.startswith(f"error: process 0 has failed: {shown}")


ONE_CANNOT_READ = """
import sys
from pathlib import Path
from ecgbyte_jax.train import checkpoint
from ecgbyte_jax.run import processes
checkpoint._AT_ONCE = 3
address, number, folder = sys.argv[1:]
processes.join(address=address, processes=2, process=int(number), timeout=300, heartbeat=10)
with processes.ending_together(10):
    checkpoints = checkpoint.Checkpoints(Path(folder))
    if number == "1":
        checkpoints.set_aside(4, "checkpoint 4 is damaged: Input/output error")
    processes.wait_for_all("the other one has read it")
"""


def test_a_checkpoint_that_one_process_alone_cannot_read_stays_and_all_end(tmp_path):
    (tmp_path / "4").mkdir()
    address = free_address()
    other, own = ended([start_python("-c", ONE_CANNOT_READ, address, str(number), str(tmp_path)) for number in range(2)])
    assert own.startswith("error: checkpoint 4 is damaged: Input/output error; other processes can read it, so it stays")
    assert other == f"error: process 1 has failed: {own.removeprefix('error: ')}" and (tmp_path / "4").is_dir()
