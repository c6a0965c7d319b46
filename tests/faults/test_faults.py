"""A training that is killed, whose disk is full, whose checkpoint or shard is damaged."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ecgbyte_jax.errors import CheckpointError, ShardsError, TrainingError
from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.inputs.shards import read_manifest
from ecgbyte_jax.model.sharding import make_mesh
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages import train as stage
from ecgbyte_jax.stages.train import train
from ecgbyte_jax.train import loop, restore
from ecgbyte_jax.train.checkpoint import _checksums
from ecgbyte_jax.train.restore import restore_model
from tests.launch import ROOT, SMALL, figures, finish, metrics, start, wait_for_step


@pytest.fixture
def workdirs(prepared, tmp_path):
    """Two work directories, prepared alike."""
    for name in ("a", "b"):
        shutil.copytree(prepared, tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def parameters(config, workdir, which="last") -> list[np.ndarray]:
    mesh = make_mesh(8, 1, 1)
    with jax.set_mesh(mesh):
        model, _ = restore_model(Settings.of(config), Workdir(workdir), load_prepared(Workdir(workdir)), mesh, which)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


def assert_same(config, first, second):
    """Bit for bit: what the log says and what the last checkpoint holds."""
    assert figures(first) == figures(second)
    for ours, theirs in zip(parameters(config, first), parameters(config, second), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(config, workdirs):
    whole, killed = workdirs
    more = ("--config.train.epochs=3", "--config.train.checkpoint_every=2")
    finish(start(whole, *more))
    rng, at = random.Random(0), 0
    for _ in range(10):
        process = start(killed, *more)
        # In a step, in a save (every second step begins one), or just after its end.
        at = min(at + rng.randrange(1, 8), 46)
        wait_for_step(killed, at)
        signal.sigtimedwait([], rng.uniform(0, 0.2))
        process.kill()
        process.communicate()
        at = metrics(killed)[-1]["step"]
    assert at > 20
    finish(start(killed, *more))
    config.train.epochs = 3.0
    assert_same(config, whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "others"), [(1, 8), (8, 2)])
def test_resume_on_another_mesh_equals_uninterrupted(config, workdirs, devices, others):
    whole, moved = workdirs
    finish(start(whole, devices=devices))
    finish(start(moved, devices=devices))
    shutil.rmtree(moved / "checkpoints/8")
    assert "going on from 4" in finish(start(moved, "--config.mesh.fsdp=2", devices=others))
    for ours, theirs in zip(figures(whole), figures(moved), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_checksums_on_two_devices_do_not_wait_for_each_other():
    """Sums under way at once take each other's threads: within seconds the process hangs, then XLA ends it."""
    script = """if True:
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        from ecgbyte_jax.train.checkpoint import _checksums
        halves = NamedSharding(jax.make_mesh((2,), ("fsdp",)), PartitionSpec("fsdp"))
        values = [np.random.default_rng(i).random((64 * (i % 5 + 1), 64), np.float32) for i in range(60)]
        arrays = [jax.device_put(value, halves) for value in values]
        expected = _checksums(values)
        print(all(_checksums(arrays) == expected for _ in range(500)))
    """
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert found.stdout == "True\n", found.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_or_ctrl_c_saves_and_the_same_command_goes_on_bit_for_bit(config, workdirs, sent):
    whole, stopped = workdirs
    more = ("--config.train.epochs=3", "--config.train.checkpoint_every=20")
    finish(start(whole, *more))
    process = start(stopped, *more)
    wait_for_step(stopped, 7)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=60)
    last = metrics(stopped)[-1]["step"]
    assert process.returncode == 75 and f"stopped after step {last}, as asked" in output and last < 48
    assert f"going on from {last}" in finish(start(stopped, *more))
    config.train.epochs = 3.0
    assert_same(config, whole, stopped)


def test_a_second_ctrl_c_ends_at_once():
    """While the first one's checkpoint takes for ever."""
    script = """if True:
        import signal, time
        from ecgbyte_jax.run import processes
        with processes.stop_requests() as asked:
            print("ready", flush=True)
            while not asked(1):
                time.sleep(0.01)
            print("asked", flush=True)
            while True:
                time.sleep(0.01)
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    process = subprocess.Popen([sys.executable, "-c", script], **pipes)
    for said in ("ready", "asked"):
        assert process.stdout.readline() == f"{said}\n"
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if line]
    assert process.returncode == 1 and len(lines) == 2 and "Ctrl-C again ends at once" in lines[0]
    assert lines[1] == "error: stopped at once; the same command goes on from the last whole checkpoint"


@pytest.mark.slow
def test_a_full_disk_in_a_save_is_one_line_and_the_same_command_goes_on(config, workdirs):
    """A limit on the size of files simulates the full disk: the same system calls fail."""
    whole, full = workdirs
    limit = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({100_000}, {resource.RLIM_INFINITY})); "
    command = [*SMALL, f"--workdir={full}", "--stage=train", "--config.mesh.data=1"]
    script = limit + "sys.argv = ['main.py', *sys.argv[1:]]; runpy.run_path('main.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script, *command], cwd=ROOT, env=one_device(), capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(errors) == 1 and "a checkpoint cannot be written" in errors[0] and "Traceback" not in done.stderr, done.stderr
    train(Settings.of(config), Workdir(full))
    train(Settings.of(config), Workdir(whole))
    assert_same(config, whole, full)


def one_device() -> dict:
    return os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["an array", "the index"])
def test_a_damaged_newest_checkpoint_is_moved_aside_and_the_one_before_taken(config, workdirs, capsys, damage):
    whole, damaged = workdirs
    train(Settings.of(config), Workdir(whole))
    train(Settings.of(config), Workdir(damaged))
    lineage.trained(Settings.of(config), Workdir(damaged)).begin()
    largest = max((damaged / "checkpoints/8").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "an array":
        largest.write_bytes(data)
    else:
        os.truncate(damaged / "checkpoints/8/state/_METADATA", 100)
    with pytest.raises(CheckpointError, match=r"checkpoint 8 is damaged"):
        parameters(config, damaged)
    train(Settings.of(config), Workdir(damaged))
    shown = capsys.readouterr().out
    assert "checkpoint 8 is damaged" in shown and "going on from 4" in shown
    assert (damaged / "checkpoints/damaged-8-1").is_dir()
    assert_same(config, whole, damaged)


@pytest.mark.parametrize("name", ["train-00000.array_record", "ecg-00000.array_record"])
def test_a_damaged_shard_is_reported_or_gives_what_was_written(workdirs, name):
    folder = workdirs[0] / "shards"
    manifest, whole, reported = read_manifest(folder), (folder / name).read_bytes(), 0
    dataset = open_split(folder, manifest, "train")
    before = [dataset[i].to_bytes([0]) + dataset[i].ecgs[0].tobytes() for i in range(len(dataset))]
    for place in range(100, len(whole), len(whole) // 12):
        (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            dataset = open_split(folder, manifest, "train")
            found = [dataset[i].to_bytes([0]) + dataset[i].ecgs[0].tobytes() for i in range(len(dataset))]
            assert found == before
        except ShardsError as error:
            assert "run --stage=prepare again" in str(error)
            reported += 1
    assert reported


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_examples_and_keeps_the_state_before(config, workdirs, monkeypatch):
    plain, broken = workdirs
    config.train.checkpoint_every = 5
    train(Settings.of(config), Workdir(plain))
    take = loop.Feed.take

    def poisoned(feed):
        batch = take(feed)
        feed.count = getattr(feed, "count", 0) + 1
        return batch | ({"answer_mask": batch["answer_mask"] * np.float32("nan")} if feed.count == 6 else {})

    with monkeypatch.context() as patch:
        patch.setattr(loop.Feed, "take", poisoned)
        with pytest.raises(
            TrainingError, match=r"step 6: loss is nan; checkpoint 5 holds the state before it; .*examples: ."
        ) as raised:
            train(Settings.of(config), Workdir(broken))
    assert str(raised.value).count(",") >= 7 and [line["step"] for line in metrics(broken)] == [1, 2, 3, 4, 5]
    train(Settings.of(config), Workdir(broken))
    assert_same(config, plain, broken)


def test_a_checkpoint_of_another_tokenizer_is_refused_by_name(config, workdirs, monkeypatch):
    train(Settings.of(config), Workdir(workdirs[0]))
    about = restore.origin

    def other(*given):
        found = about(*given)
        return found | {"digests": found["digests"] | {"ecg tokenizer": "0" * 64, "base model": "1" * 64}}

    monkeypatch.setattr(restore, "origin", other)
    monkeypatch.setattr(stage, "origin", other)
    lineage.trained(Settings.of(config), Workdir(workdirs[0])).begin()
    message = "checkpoint 8 was trained with another ecg tokenizer and another base model"
    with pytest.raises(CheckpointError, match=message):
        parameters(config, workdirs[0])
    with pytest.raises(CheckpointError, match=message):
        train(Settings.of(config), Workdir(workdirs[0]))


def test_the_best_checkpoint_is_kept_beside_the_newest_ones(config, workdirs, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5])
    monkeypatch.setattr(stage, "make_validation", lambda *_: lambda params: {"valid_loss": next(losses)})
    config.train.checkpoint_every, config.train.keep_checkpoints = 2, 1
    train(Settings.of(config), Workdir(workdirs[0]))
    assert sorted(path.name for path in (workdirs[0] / "checkpoints").iterdir() if path.is_dir()) == ["4", "8"]
    best, four, last = (parameters(config, workdirs[0], which) for which in ("best", "4", "last"))
    assert all(np.array_equal(a, b) for a, b in zip(best, four, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(best, last, strict=True))
    with pytest.raises(CheckpointError, match=r"checkpoint '6' found, 'last', 'best' or one of \[4, 8\] expected"):
        parameters(config, workdirs[0], "6")


@pytest.mark.parametrize(
    ("patience", "losses", "last"),
    [
        (1, [2.0, 1.0, 1.5, 1.6], 6),
        (1, [2.0, 1.0, 1.005, 0.9], 8),
        (1, [1.0, 1.1, 1.005, 1.2], 4),
        (2, [2.0, 1.0, 1.5, 1.6], 8),
        (2, [1.0, 1.5, 1.6, 0.5], 6),
    ],
)
def test_training_ends_when_the_validation_loss_has_stopped_falling(config, workdirs, monkeypatch, patience, losses, last):
    """Published: a loss more than `patience_delta` above the best of those before the last `patience` ones."""
    given = iter(losses)
    monkeypatch.setattr(stage, "make_validation", lambda *_: lambda params: {"valid_loss": next(given)})
    config.train.checkpoint_every, config.train.patience, config.train.patience_delta = 2, patience, 0.01
    train(Settings.of(config), Workdir(workdirs[0]))
    assert metrics(workdirs[0])[-1]["step"] == last
    marker = json.loads((workdirs[0] / "checkpoints/stage.json").read_text())
    assert marker["finished"] and list(marker["outputs"]) == [str(last)]


def test_a_training_that_had_ended_early_does_not_go_on(config, workdirs, monkeypatch):
    given = iter([1.0, 2.0])
    monkeypatch.setattr(stage, "make_validation", lambda *_: lambda params: {"valid_loss": next(given)})
    config.train.checkpoint_every, config.train.patience = 2, 1
    train(Settings.of(config), Workdir(workdirs[0]))
    marker = lineage.trained(Settings.of(config), Workdir(workdirs[0]))
    marker.begin()
    train(Settings.of(config), Workdir(workdirs[0]))
    assert marker.finished() and metrics(workdirs[0])[-1]["step"] == 4


def test_a_checksum_changes_with_bits_and_places():
    one, two = np.arange(1, 7, dtype=np.float32), np.full((2, 3), 0.5, np.float32)
    flipped = (one.view(np.uint32) ^ np.array([0, 0, 1, 0, 0, 0], np.uint32)).view(np.float32)
    sums = [_checksums([jnp.asarray(leaf) for leaf in tree]) for tree in ([one, two], [one, two], [two, one], [flipped, two])]
    assert sums[0] == sums[1] and all(sums[0] != other for other in sums[2:])
