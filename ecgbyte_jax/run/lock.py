"""The lock of a run's folder: one command at a time writes there.

A file names the host and the process that hold it. On one machine the kernel's lock on this file tells whether the holder still
lives, and ends with it. The holder on another machine cannot be asked, so its lock counts until someone removes the file.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

from ecgbyte_jax.errors import LockedError

_NAME = "run.lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # the same in all containers of a machine, which have host names of their own
_WAITS, _WAIT = 20, 0.1  # s, for a file that was just made to be written


@contextmanager
def holding(workdir: Path) -> Iterator[None]:
    """Holds the folder's lock; raises LockedError, naming host and process, where another command holds it."""
    path = workdir / _NAME
    file = _make(path)
    try:
        with suppress(OSError):  # a file system without such locks: then the process number counts
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot()}).encode())
        file.flush()
        yield
    finally:
        if _is_at(file, path):
            path.unlink()  # before the kernel's lock ends, so that nobody has taken it yet
        file.close()


def _make(path: Path) -> BinaryIO:
    """The new file; of several commands that start at once one makes it, on a network file system too."""
    for number in count():
        try:
            return path.open("x+b")
        except FileExistsError:
            _remove_dead(path, patient=number < _WAITS)


def _remove_dead(path: Path, patient: bool) -> None:
    """Removes the file that a killed command left; raises LockedError where its holder lives, or may live."""
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return
    with file:
        owner = _read(file)
        if not owner and patient:
            time.sleep(_WAIT)
        elif not (_is_here(owner) and _is_dead(owner, file)):
            gone = "" if _is_here(owner) else f"; if that host is gone, remove '{path}'"
            raise LockedError(
                f"{path.parent}: process {owner.get('pid')} on host '{owner.get('host')}' is at work in this run folder; "
                f"wait for its end, or give another --workdir{gone}"
            )
        elif _is_at(file, path):
            path.unlink()


def _read(file: BinaryIO) -> dict:
    """Who holds it; {} where nobody has written it yet."""
    try:
        owner = json.loads(file.read())
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_here(owner: dict) -> bool:
    return not owner or owner.get("host") == socket.gethostname() or (owner.get("boot") or None) == _boot()


def _is_dead(owner: dict, file: BinaryIO) -> bool:
    """Of a holder on this machine; where it is dead the kernel's lock is this command's as long as the file is open."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without such locks
        return not _lives(owner.get("pid"))
    return True


def _lives(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _boot() -> str:
    return _BOOT.read_text().strip() if _BOOT.is_file() else ""
