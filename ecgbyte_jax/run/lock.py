"""The lock of a run's folder: one command at a time writes there.

A file names the host and the process that hold the lock. On one machine the kernel's lock on this file shows whether the holder
is still alive, for it ends with its process. A holder on another machine cannot be checked, so its lock counts until someone
removes the file.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ecgbyte_jax.errors import LockedError

_BOOT = Path("/proc/sys/kernel/random/boot_id")  # the same in all containers of a machine, whose host names differ
_WAITS, _WAIT = 20, 0.1  # how often and how long, in s, to wait until a new file is written


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Holds the lock file; raises LockedError, naming host and process, where another command holds it."""
    file = _lock(path)
    try:
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot()}).encode())
        file.flush()
        yield
    finally:
        if _is_at(file, path):
            path.unlink()  # while the kernel's lock still holds, so that nobody else has taken the file
        file.close()


def _lock(path: Path) -> BinaryIO:
    """The new file with the kernel's lock on it; made again where another command took it for a dead one's meanwhile."""
    while True:
        file = _make(path)
        with suppress(OSError):  # a file system without such locks: then the process number counts
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(file, path):
            return file
        file.close()


def _make(path: Path) -> BinaryIO:
    """The new file; of several commands that start at once only one creates it, on a network file system too."""
    number = 0
    while True:
        try:
            return path.open("x+b")
        except FileExistsError:
            _remove_dead(path, patient=number < _WAITS)
            number += 1


def _remove_dead(path: Path, patient: bool) -> None:
    """Removes the file that a killed command left; raises LockedError where its holder is, or may be, alive."""
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return
    with file:
        owner = _read(file)
        if not owner and patient:
            time.sleep(_WAIT)
        elif not (_is_here(owner) and _is_dead(owner, file)):
            advice = "" if _is_here(owner) else f"; if that host is gone, remove '{path}'"
            raise LockedError(
                f"{path.parent}: process {owner.get('pid')} on host '{owner.get('host')}' is at work in this run folder; "
                f"wait for its end, or give another --workdir{advice}"
            )
        elif _is_at(file, path):
            path.unlink()


def _read(file: BinaryIO) -> dict:
    """The holder; {} where the file is not written yet."""
    try:
        owner = json.loads(file.read())
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_here(owner: dict) -> bool:
    return not owner or owner.get("host") == socket.gethostname() or (owner.get("boot") or None) == _boot()


def _is_dead(owner: dict, file: BinaryIO) -> bool:
    """Whether a holder on this machine is dead; then this command has the kernel's lock for as long as the file is open."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without such locks
        return not _is_alive(owner.get("pid"))
    return True


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _boot() -> str:
    return _BOOT.read_text().strip() if _BOOT.is_file() else ""
