"""The symbols of clean recordings on disk, by the settings that made them, so that nothing is cleaned twice.

A part is a file of a few hundred recordings: a head with a table, then the symbols, one byte per sample. Parts are written
atomically and never changed; a recording is found in any part by a key from its name and its files' sizes and times.
Axes: S segments per recording, L leads (12), T samples per segment, R recordings.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np

from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.errors import RecordError, ShardsError
from ecgbyte_jax.files import write_whole

_SCHEMA = 1
_ENDING = ".symbols"
# worst, total: absolute error in mV of the restored signal, by lead; segments 0: the recording is unusable.
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
    """Where the symbols of a recording are: bytes `offset` to `offset + segments * 12 * samples` of a part."""

    part: str
    offset: int
    segments: int
    samples: int
    crc: int

    def read(self) -> np.ndarray:
        """Reads the symbols uint8 [S, 12, T]; raises ShardsError if the part is damaged."""
        shape = (self.segments, len(LEADS), self.samples)
        symbols = np.fromfile(self.part, np.uint8, int(np.prod(shape)), offset=self.offset)
        if zlib.crc32(symbols) != self.crc:
            raise ShardsError(f"{self.part}: damaged (checksum); delete it and run --stage=prepare again")
        return symbols.reshape(shape)


def record_key(record: SignalSource, made_by: str = "") -> int:
    """Returns a 64-bit key that changes with the recording's name and fingerprint.

    made_by: identifies how this project made the recording, and replaces the times; "" for a recording from elsewhere.
    """
    identity = [record.name, made_by, *record.fingerprint(times=not made_by)]
    return int.from_bytes(hashlib.blake2b(json.dumps(identity).encode(), digest_size=8).digest(), "little")


def write_part(folder: Path, samples: int, rows: Iterable[tuple[int, np.ndarray | RecordError, dict]]) -> None:
    """Writes (key, symbols [S, 12, T] or the error, other fields of the table) as one part. Raises OSError."""
    table, reasons, payload, offset = [], {}, [], 0
    for key, symbols, fields in rows:
        row = np.zeros((), TABLE)
        row["key"], row["offset"] = key, offset
        if isinstance(symbols, RecordError):
            reasons[str(key)] = str(symbols)
        else:
            row["segments"], row["crc"] = len(symbols), zlib.crc32(np.ascontiguousarray(symbols))
            for name, value in fields.items():
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
    """All parts in a folder, opened for reading; the tables take about 230 bytes per recording of memory, symbols none."""

    def __init__(self, folder: Path):
        self.parts: list[str] = []
        self.reasons: dict[int, str] = {}
        tables, samples, starts, numbers = [np.empty(0, TABLE)], [], [], []
        for path in sorted(folder.glob("*" + _ENDING)):
            head = _read_head(path)
            if head is None:  # truncated, which atomic writes never are: make it again
                path.unlink(missing_ok=True)
                continue
            fields, start = head
            table = np.frombuffer(fields["table"], TABLE)
            tables.append(table)
            numbers.append(np.full(len(table), len(self.parts)))
            samples.append(fields["samples"])
            starts.append(start)
            self.parts.append(str(path))
            self.reasons |= {int(key): reason for key, reason in fields["reasons"].items()}
        self.table = np.concatenate(tables)
        self._samples, self._starts = np.array(samples, np.int64), np.array(starts, np.int64)
        self._part = np.concatenate([np.empty(0, np.int64), *numbers]).astype(np.int64)
        self._order = np.argsort(self.table["key"], kind="stable")
        self._sorted = self.table["key"][self._order]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Finds the rows int64 [R] of the table by keys uint64 [R]; -1 if a recording is not in the cache."""
        if not len(self._sorted):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._order[at], -1)

    def place(self, row: int) -> Place:
        """Returns where the symbols of a row of the table are."""
        part, entry = self._part[row], self.table[row]
        offset = int(self._starts[part] + entry["offset"])
        return Place(self.parts[part], offset, int(entry["segments"]), int(self._samples[part]), int(entry["crc"]))


def _read_head(path: Path) -> tuple[dict, int] | None:
    """(head, where the symbols begin); None if the file is truncated or of another schema."""
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return None
        length = struct.unpack("<Q", start)[0]
        packed = file.read(min(length, 1 << 30))
    if len(packed) != length:
        return None
    try:
        head = msgpack.unpackb(packed)
        if head["schema"] != _SCHEMA or path.stat().st_size != 8 + length + head["bytes"]:
            return None
        np.frombuffer(head["table"], TABLE)
    except (ValueError, KeyError, TypeError, msgpack.exceptions.UnpackException):  # damaged: what was in it is made again
        return None
    return head, 8 + length
