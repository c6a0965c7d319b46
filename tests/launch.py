"""Runs of main.py in processes of their own, on a small config, for the tests that kill them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = """
--config=experiments/demo.py --config.data.synthetic_records=40 --config.data.max_segments=1 --config.tokenizer.num_merges=100
--config.model.width=32 --config.model.head_dim=16 --config.model.mlp_width=64 --config.train.batch_size=8
--config.train.epochs=0.5 --config.train.checkpoint_every=4 --config.eval.batch_size=8 --config.eval.max_new_tokens=8
""".split()  # noqa: SIM905
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # where the tests run in the background: what they start must hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(workdir: Path, *more: str, devices: int = 1, patch: str = "") -> subprocess.Popen:
    """`main.py --stage=train` on the settings of `small_config()`, with as many simulated devices; `patch` is run before it."""
    program = ("-c", f'import runpy, sys\n{patch}\nrunpy.run_path("main.py", run_name="__main__")') if patch else ("main.py",)
    return start_python(*program, *SMALL, f"--workdir={workdir}", "--stage=train", *more, devices=devices)


def start_python(*arguments: str, devices: int = 1) -> subprocess.Popen:
    """A Python process in the repository's root, with as many simulated devices."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def start_two(workdir: Path, *more: str, devices: int = 1, patches: tuple[str, str] = ("", "")) -> list[subprocess.Popen]:
    """Two processes that train as one, each with as many simulated devices."""
    together = ("initialize=true", f"address={free_address()}", "processes=2", "heartbeat=10")
    flags = [f"--config.distributed.{setting}" for setting in together]
    return [
        start(workdir, *flags, f"--config.distributed.process={number}", *more, devices=devices, patch=patches[number])
        for number in range(2)
    ]


def free_address() -> str:
    """An address on which nothing listens."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return f"localhost:{found.getsockname()[1]}"


def finish_layouts(folder: Path, prepared: Path, layouts: list[str], devices: int, processes: int) -> None:
    """Runs tests/mesh_layouts.py in as many processes, in a copy of the prepared work directory for each layout."""
    for layout in layouts:
        shutil.copytree(prepared, folder / layout)
    address = free_address()
    for process in [
        start_python("-m", "tests.mesh_layouts", str(folder), address, str(processes), str(number), *layouts, devices=devices)
        for number in range(processes)
    ]:
        finish(process, seconds=1800)


def finish(process: subprocess.Popen, seconds: float = 240) -> str:
    """What it printed; fails where it did not end well."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def wait_for_step(workdir: Path, step: int, seconds: float = 300) -> None:
    """Returns when the log has come to a step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if metrics(workdir) and metrics(workdir)[-1]["step"] >= step:
            return
        time.sleep(0.05)
    raise TimeoutError(f"{workdir}: step {step} did not come")


def metrics(workdir: Path) -> list[dict]:
    """The whole lines of a run's log."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.is_file() else []


def figures(workdir: Path) -> list[dict]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "input_wait")} for line in metrics(workdir)]
