"""What a run has cost: each stage keeps its own sum beside its marker, and `cost.json` of the run has all of them.

Commands that were interrupted, or failed, count too; one that was killed outright does not.
"""

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run.console import peak_memory
from ecgbyte_jax.run.workdir import Workdir

_FILE = "cost.json"


@contextmanager
def counted(folder: Path, devices: int = 0, keep: bool = True) -> Iterator[dict[str, Any]]:
    """Adds what the work in the context costs to the stage's sum in `folder`; what is put into the dict is kept with it.

    wall_s; cpu_s: of this process and the workers that it has waited for; device_s: wall_s times `devices`; peak_memory:
    bytes of this process on the host; commands: how many have worked on it. keep False: another process writes it.
    """
    about: dict[str, Any] = {}
    wall, cpu = time.monotonic(), _cpu_seconds()
    try:
        yield about
    finally:
        if keep and folder.is_dir():
            spent = {"wall_s": time.monotonic() - wall, "cpu_s": _cpu_seconds() - cpu, "commands": 1}
            spent["device_s"] = spent["wall_s"] * devices
            before = _read(folder / _FILE)
            total = before | {name: before.get(name, 0) + value for name, value in spent.items()} | about
            total["peak_memory"] = max(before.get("peak_memory", 0), peak_memory())
            write_whole(folder / _FILE, [json.dumps(total, indent=1).encode()])


def collect(workdir: Workdir) -> None:
    """Writes the run's `cost.json`, where any stage has left a sum: stage -> what it has cost."""
    folders = {
        "tokenizer": workdir.tokenizers,
        "prepare": workdir.prepare_marker.parent,
        "train": workdir.checkpoints,
        **{"/".join(["eval", each.evaluation_name]).rstrip("/"): each.evaluation for each in workdir.evaluations()},
    }
    costs = {stage: cost for stage, folder in folders.items() if (cost := _read(folder / _FILE))}
    if costs:
        write_whole(workdir.cost, [json.dumps(costs, indent=1).encode()])


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _read(file: Path) -> dict[str, Any]:
    """A sum; {} where there is none, or it was not written whole."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
