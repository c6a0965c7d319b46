"""The run's ledger `cost.json`: what each stage has cost, over all commands that worked on it with the same settings.

Commands that were interrupted, or failed, count too; one that was killed outright does not.
"""

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run.console import peak_memory
from ecgbyte_jax.run.stage import Stage
from ecgbyte_jax.run.workdir import Workdir

_ASIDE = "with other settings"  # stage -> digest -> what it had cost


@contextmanager
def counted(workdir: Workdir, name: str, stage: Stage, devices: int = 0, keep: bool = True) -> Iterator[dict[str, Any]]:
    """Adds what the work in the context costs to the ledger, under `name`; what is put into the dict is kept with it.

    wall_s; cpu_s: of this process and the workers that it has waited for; device_s: wall_s times `devices`; peak_memory:
    bytes of this process on the host; commands: how many have worked on it. keep False: another process writes it.
    """
    about: dict[str, Any] = {}
    wall, cpu = time.monotonic(), _cpu_seconds()
    try:
        yield about
    finally:
        if keep:
            spent = {"wall_s": time.monotonic() - wall, "cpu_s": _cpu_seconds() - cpu, "commands": 1}
            spent["device_s"] = spent["wall_s"] * devices
            _add(workdir, name, stage.digest(), spent, about)


def _add(workdir: Workdir, name: str, digest: str, spent: dict[str, float], about: dict[str, Any]) -> None:
    costs = _read(workdir)
    aside = costs.pop(_ASIDE, {})
    before = costs.pop(name, {})
    if before and before.get("settings") != digest:  # the stage was moved aside, and comes back with its settings
        aside.setdefault(name, {})[before.get("settings")] = before
        before = {}
    before = aside.get(name, {}).pop(digest, before)
    total = before | {field: before.get(field, 0) + value for field, value in spent.items()} | about
    total["peak_memory"] = max(before.get("peak_memory", 0), peak_memory())
    costs[name] = total | {"settings": digest}
    aside = {stage: entries for stage, entries in aside.items() if entries}
    write_whole(workdir.cost, [json.dumps(costs | ({_ASIDE: aside} if aside else {}), indent=1).encode()])


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _read(workdir: Workdir) -> dict[str, Any]:
    """The ledger; {} where there is none, or somebody else's file."""
    try:
        content = json.loads(workdir.cost.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and all(isinstance(entry, dict) for entry in content.values()) else {}
