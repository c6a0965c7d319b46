"""The cleaned symbols of recordings on disk, by the settings that made them, so that nothing is cleaned twice.

A part is a file of a few hundred recordings: a head with a table, then the symbols, one byte a sample. Parts are written whole
or not at all and never changed; a recording is found by a key that its files' names, sizes and times make, in whatever part.
Axes: S segments of a recording, L leads (12), T samples of a segment, R recordings.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np

from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.errors import RecordError, ShardsError
from ecgbyte_jax.files import write_whole

_SCHEMA = 1
_ENDING = ".symbols"
# worst, total: absolute error in mV of the restored signal, lead by lead; segments 0: the recording cannot be used.
TABLE = np.dtype(
    [
        ("key", "<u8"),
        ("offset", "<i8"),
        ("segments", "<i4"),
        ("crc", "<u4"),
        ("clipped", "<i8"),
        ("worst", "<f8", len(LEADS)),
        ("total", "<f8", len(LEADS)),
    ]
)


@dataclass(frozen=True)
class Place:
    """Where the symbols of a recording stand: bytes `offset` to `offset + segments * 12 * samples` of a part."""

    part: str
    offset: int
    segments: int
    samples: int
    crc: int

    def read(self) -> np.ndarray:
        """Symbols uint8 [S, 12, T]; raises ShardsError where the part is damaged."""
        shape = (self.segments, len(LEADS), self.samples)
        found = np.fromfile(self.part, np.uint8, int(np.prod(shape)), offset=self.offset)
        if zlib.crc32(found) != self.crc:
            raise ShardsError(f"{self.part}: damaged (checksum); delete it and run --stage=prepare again")
        return found.reshape(shape)


def record_key(record: Path, root: Path) -> int:
    """64 bits that change when one of the recording's files changes its name below `root`, size or time, comes or goes.

    Its files are the header and the .dat of its name; where there is no such .dat, those that the header names.
    """
    found = [os.path.relpath(record, root), _look_at(f"{record}.hea"), _look_at(f"{record}.dat")]
    if found[-1] is None:
        found += [(name, _look_at(record.parent / name)) for name in _named_files(Path(f"{record}.hea"))]
    return int.from_bytes(hashlib.blake2b(repr(found).encode(), digest_size=8).digest(), "little")


def _look_at(path: str | Path) -> tuple[int, int] | None:
    """(bytes, time in ns) of a file; None where there is none."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in a header's name
        return None
    return stat.st_size, stat.st_mtime_ns


def _named_files(header: Path) -> list[str]:
    """The files that a WFDB header names: of signals (x.mat), or headers and signals of the segments that it consists of."""
    try:
        lines = header.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    names = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")][1:]
    return [name + ending for name in dict.fromkeys(names) for ending in (("",) if "." in name else (".hea", ".dat"))]


def write_part(folder: Path, samples: int, rows: Iterable[tuple[int, np.ndarray | RecordError, dict]]) -> None:
    """Writes (key, symbols [S, 12, T] or what is wrong with the recording, further fields of the table) as one part."""
    table, reasons, payload, offset = [], {}, [], 0
    for key, symbols, more in rows:
        row = np.zeros((), TABLE)
        row["key"], row["offset"] = key, offset
        if isinstance(symbols, RecordError):
            reasons[str(key)] = str(symbols)
        else:
            row["segments"], row["crc"] = len(symbols), zlib.crc32(np.ascontiguousarray(symbols))
            for name, value in more.items():
                row[name] = value
            payload.append(symbols.tobytes())
            offset += symbols.nbytes
        table.append(row)
    head = {
        "schema": _SCHEMA,
        "samples": samples,
        "reasons": reasons,
        "table": np.array(table, TABLE).tobytes(),
        "bytes": offset,
    }
    packed = msgpack.packb(head)
    name = hashlib.sha256(b"".join(row["key"].tobytes() for row in table)).hexdigest()[:24] + _ENDING
    write_whole(folder / name, [struct.pack("<Q", len(packed)), packed, *payload])


class SymbolCache:
    """All parts in a folder, opened for reading; memory goes with the tables (some 230 bytes a recording), not the symbols."""

    def __init__(self, folder: Path):
        self.parts: list[str] = []
        self.reasons: dict[int, str] = {}
        tables, samples, starts, numbers = [np.empty(0, TABLE)], [], [], []
        for path in sorted(folder.glob("*" + _ENDING)):
            head = _read_head(path)
            if head is None:  # cut short, which a whole write never is: it is made again
                path.unlink(missing_ok=True)
                continue
            found, start = head
            table = np.frombuffer(found["table"], TABLE)
            tables.append(table)
            numbers.append(np.full(len(table), len(self.parts)))
            samples.append(found["samples"])
            starts.append(start)
            self.parts.append(str(path))
            self.reasons |= {int(key): reason for key, reason in found["reasons"].items()}
        self.table = np.concatenate(tables)
        self._samples, self._starts = np.array(samples, np.int64), np.array(starts, np.int64)
        self._part = np.concatenate([np.empty(0, np.int64), *numbers]).astype(np.int64)
        self._order = np.argsort(self.table["key"], kind="stable")
        self._sorted = self.table["key"][self._order]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Rows of the table int64 [R] by keys uint64 [R]; -1 where a recording is not here."""
        if not len(self._sorted):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._order[at], -1)

    def place(self, row: int) -> Place:
        """Where the symbols of a row of the table stand."""
        part, found = self._part[row], self.table[row]
        offset = int(self._starts[part] + found["offset"])
        return Place(self.parts[part], offset, int(found["segments"]), int(self._samples[part]), int(found["crc"]))


def _read_head(path: Path) -> tuple[dict, int] | None:
    """(head, where the symbols begin); None where the file is not whole."""
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return None
        length = struct.unpack("<Q", start)[0]
        packed = file.read(min(length, 1 << 30))
    if len(packed) != length:
        return None
    head = msgpack.unpackb(packed)
    if head["schema"] != _SCHEMA or path.stat().st_size != 8 + length + head["bytes"]:
        return None
    return head, 8 + length
