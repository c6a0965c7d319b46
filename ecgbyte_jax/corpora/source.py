"""Where the signal of a recording is, whatever the files of its data set are."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ecgbyte_jax.ecg.formats.own import read_own
from ecgbyte_jax.ecg.records import Record, read_record


class SignalSource(Protocol):
    """One recording's signal: picklable, and hashable, as it is the same recording wherever it is equal."""

    @property
    def root(self) -> Path:
        """The folder that its name is a path in."""
        ...

    @property
    def name(self) -> str:
        """Its name in the corpus, which does not depend on where the corpus is."""
        ...

    def read(self) -> Record:
        """Reads the signal; raises RecordError, naming the file."""
        ...

    def fingerprint(self, times: bool) -> list[object]:
        """JSON values that change with the size and, with `times`, the time of any file that the signal is read from."""
        ...


@dataclass(frozen=True, slots=True)
class WfdbRecord:
    """A WFDB record: `name` is its path in `root`, without extension."""

    root: Path
    name: str

    def __str__(self) -> str:
        return f"{self.root / self.name}"

    def read(self) -> Record:
        """Reads the record; raises RecordError, naming the file."""
        return read_record(self.root / self.name)

    def fingerprint(self, times: bool) -> list[object]:
        """Of its .hea and .dat, or without that .dat of those named in the header."""
        path = str(self)
        files: list[object] = [file_fingerprint(f"{path}{ending}", times) for ending in (".hea", ".dat")]
        if files[-1] is None:
            files += [[name, file_fingerprint(Path(path).parent / name, times)] for name in _named_files(Path(f"{path}.hea"))]
        return files


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A recording in a file of its own: `name` is its path in `root`; rate, leads and units are as in `own.read_own`."""

    root: Path
    name: str
    sample_rate: float = 0.0
    leads: tuple[str, ...] = ()
    units: str = ""

    def __str__(self) -> str:
        return f"{self.root / self.name}"

    def read(self) -> Record:
        """Reads the file; raises RecordError, naming it, and ConfigError if a library for its format is not installed."""
        return read_own(self.root / self.name, self.sample_rate, self.leads, self.units).record

    def fingerprint(self, times: bool) -> list[object]:
        """Of the file, and of what its reading depends on."""
        return [file_fingerprint(str(self), times), self.sample_rate, list(self.leads), self.units]


def file_fingerprint(path: str | Path, times: bool) -> list[int] | None:
    """[bytes, time in ns, if `times`] of a file; None if it does not exist."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in a header's name
        return None
    return [stat.st_size, stat.st_mtime_ns] if times else [stat.st_size]


def _named_files(header: Path) -> list[str]:
    """The files named in a WFDB header: signal files (x.mat), or the headers and signal files of its segments."""
    try:
        lines = header.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    names = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")][1:]
    return [name + ending for name in dict.fromkeys(names) for ending in (("",) if "." in name else (".hea", ".dat"))]
