"""Strangers' files are read in processes of their own, which are killed and replaced where they take too long.

A file's bytes are in a folder of its own in memory only while it is read; its name is a label and never a path.
"""

import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from queue import Queue
from typing import Any

import numpy as np

from ecgbyte_jax.errors import RecordError
from ecgbyte_jax.inputs.recording import Recording
from ecgbyte_jax.settings import ServeSettings, SignalSettings

_MEMORY = Path("/dev/shm")  # a file system in memory, where there is one
PROCESSES = 2
_START = 60.0  # s
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ENDINGS = (".hea", ".dat", ".csv", ".npy", ".mat", ".dcm", ".edf", ".xml", ".scp")


@dataclass(frozen=True)
class Upload:
    """A file as it came: the name that its sender gave it, and its bytes."""

    name: str
    data: bytes

    @property
    def label(self) -> str:
        """The name without folders and control characters, for people."""
        last = re.split(r"[/\\]", self.name)[-1]
        return "".join(char for char in last if char.isprintable())[:100] or "recording"


@dataclass(frozen=True)
class Described:
    """What files may leave open: rate in Hz (0: not given), names of the leads, units."""

    sample_rate: float = 0.0
    leads: tuple[str, ...] = ()
    units: str = ""


class Reader:
    """The processes; `with` it, any thread may let files be read."""

    def __init__(self, signal: SignalSettings, limits: ServeSettings):
        self._limits = limits
        how = asdict(signal)
        self._task = {"segment_length": how.pop("segment_length"), "cleaning": how, "longest": limits.recording_seconds}
        self._idle: Queue[_Process] = Queue()

    def __enter__(self) -> "Reader":
        for _ in range(PROCESSES):
            self._idle.put(_Process(self._limits.read_mb))
        return self

    def __exit__(self, *_: object) -> None:
        for _ in range(PROCESSES):
            self._idle.get().kill()

    def read(self, uploads: Sequence[Upload], described: Described = Described()) -> Recording:
        """Reads one recording from a file, or from a WFDB header and its signals; raises RecordError."""
        with _in_memory(uploads) as path:
            return self.read_file(path, uploads[0].label, described)

    def read_file(self, path: Path, label: str, described: Described = Described()) -> Recording:
        """Reads a file of this machine, which is called `label`; raises RecordError."""
        task = self._task | asdict(described) | {"path": str(path), "label": label, "cpu_seconds": self._limits.read_seconds}
        process = self._idle.get()
        try:
            about, segments = process.ask(task, self._limits.read_seconds)
        except _EndedError as error:
            process.kill()
            process = _Process(self._limits.read_mb)
            raise RecordError(f"{label}: {error}") from None
        finally:
            self._idle.put(process)
        if "error" in about:
            raise RecordError(about["error"])
        name = label.removesuffix(".hea").removesuffix(".dat")
        read = about["rate"], about["seconds"], about["beats"], tuple(about["notes"]), about["clean_rate"]
        return Recording(name, "", *read, segments)


class _EndedError(Exception):
    """A process took too long, or died."""


class _Process:
    def __init__(self, megabytes: int):
        # One thread each: a thread's stack counts as memory.
        alone = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [sys.executable, "-m", "ecgbyte_jax.serve.reading", str(megabytes)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | alone,
            start_new_session=True,
        )  # fmt: skip
        self._ready, self._received, self._most = False, bytearray(), megabytes * 1_000_000

    def ask(self, task: dict[str, Any], seconds: float) -> tuple[dict[str, Any], np.ndarray]:
        """What is read of a file in `seconds` at most; raises _EndedError."""
        if not self._ready:
            self._line(time.monotonic() + _START)
            self._ready = True
        until = time.monotonic() + seconds
        try:
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise _EndedError("reading it failed; send it again") from None
        about = json.loads(self._line(until))
        shape = about.get("shape", (0, 0, 0))
        data = self._bytes(int(np.prod(shape)) * 8, until)
        return about, np.frombuffer(data, "<f8").reshape(shape)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _line(self, until: float) -> bytes:
        while (end := self._received.find(b"\n") + 1) == 0:
            self._receive(until)
        return self._taken(end)

    def _bytes(self, count: int, until: float) -> bytes:
        while len(self._received) < count:
            self._receive(until)
        return self._taken(count)

    def _taken(self, count: int) -> bytes:
        """The first bytes of what was received, which are no longer among it."""
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def _receive(self, until: float) -> None:
        """Waits for more of what the process writes; a line or an answer that never ends runs out of time or of room."""
        pipe = self._process.stdout.fileno()
        if not select.select([pipe], [], [], max(until - time.monotonic(), 0))[0]:
            raise _EndedError("reading it takes too long; send a shorter recording")
        data = os.read(pipe, 1 << 20)
        if not data or time.monotonic() > until or len(self._received) > self._most:
            raise _EndedError("reading it takes too much memory or time, or it is damaged in a way that ends its reader")
        self._received += data


@contextmanager
def _in_memory(uploads: Sequence[Upload]) -> Iterator[Path]:
    """The files in a private folder, and the path of the one to be read; the folder is gone at the end."""
    where = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ecgbyte-", dir=where) as folder:
        paths = [Path(folder) / name for name in _names(uploads)]
        for path, upload in zip(paths, uploads):
            path.write_bytes(upload.data)
        yield next((path for path in paths if path.suffix == ".hea"), paths[0])


def _names(uploads: Sequence[Upload]) -> list[str]:
    """The names of the files in their folder: a WFDB header names its file of signals, all other names are made up."""
    if len(uploads) == 1:
        ending = PurePosixPath(uploads[0].label.lower()).suffix
        return [f"recording{ending if ending in _ENDINGS else ''}"]
    names = [upload.label for upload in uploads]
    if not all(map(_NAME.fullmatch, names)) or len({*names}) < len(names) or not any(n.endswith(".hea") for n in names):
        raise RecordError(
            f"{' and '.join(names)} found, one file, or a WFDB header .hea and its signals .dat expected, in letters and digits"
        )
    return names
