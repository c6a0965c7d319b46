"""The run's ledger `cost.json`: what each stage has cost, over all commands that worked on it with the same settings.

Commands that were interrupted, or failed, count too; of one that is killed outright the last half minute is lost.
"""

import json
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run.console import peak_memory
from ecgbyte_jax.run.energy import Meters
from ecgbyte_jax.run.stage import Stage
from ecgbyte_jax.run.workdir import Workdir

_ASIDE = "with other settings"  # stage -> digest -> what it had cost
_EVERY = 30.0  # s between entries while a stage works
_writing = threading.Lock()  # a stage within a stage, each with its entries


@contextmanager
def counted(
    workdir: Workdir, name: str, stage: Stage, devices: Sequence[Any] = (), keep: bool = True
) -> Iterator[dict[str, Any]]:
    """Adds what the work in the context costs to the ledger, under `name`; what is put into the dict is kept with it.

    wall_s; cpu_s: of this process and the workers that it has waited for; device_s: wall_s times the number of `devices`;
    energy_j: see `Meters`, without what one of the commands could not tell, None where that is all; peak_memory: bytes of this
    process on the host; commands: how many have worked on it. keep False: another process writes it.
    """
    about: dict[str, Any] = {}
    if not keep:
        yield about
        return
    meters, wall, cpu = Meters(devices), time.monotonic(), _cpu_seconds()
    before = cost_of(workdir, name, stage.digest())

    def enter() -> None:
        spent = {"wall_s": time.monotonic() - wall, "cpu_s": _cpu_seconds() - cpu, "commands": 1}
        spent["device_s"] = spent["wall_s"] * len(devices)
        total = before | {field: before.get(field, 0) + value for field, value in spent.items()} | about
        total["energy_j"] = _energy(before, meters.read()) or None
        total["peak_memory"] = max(before.get("peak_memory", 0), peak_memory())
        _write(workdir, name, total | {"settings": stage.digest()})

    ended = threading.Event()
    clerk = threading.Thread(target=_enter_at_times, args=(enter, ended), daemon=True)
    clerk.start()
    try:
        yield about
    finally:
        ended.set()
        clerk.join()
        enter()


def cost_of(workdir: Workdir, name: str, digest: str) -> dict[str, Any]:
    """What a stage, see `Stage.digest`, has cost so far; {} where the ledger has nothing of it."""
    costs = _read(workdir)
    entry = costs.get(name, {})
    return entry if entry.get("settings") == digest else costs.get(_ASIDE, {}).get(name, {}).get(digest, {})


def _enter_at_times(enter: Callable[[], None], ended: threading.Event) -> None:
    while not ended.wait(_EVERY):
        with suppress(OSError):  # a full disk, which the stage itself meets, and the last entry
            enter()


def _energy(before: dict[str, Any], used: dict[str, float]) -> dict[str, float]:
    """The sum of what was reported, by part; a part that an earlier command, or this one, could not read is left out."""
    if not before:
        return used
    reported = before.get("energy_j") or {}
    return {part: reported[part] + joules for part, joules in used.items() if part in reported}


def _write(workdir: Workdir, name: str, entry: dict[str, Any]) -> None:
    with _writing:
        costs = _read(workdir)
        aside = costs.pop(_ASIDE, {})
        before = costs.pop(name, {})
        if before and before.get("settings") != entry["settings"]:  # the stage was moved aside, and may come back
            aside.setdefault(name, {})[before.get("settings")] = before
        aside.get(name, {}).pop(entry["settings"], None)
        costs[name] = entry
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
