"""MATLAB files without a WFDB header beside them, as the challenges of PhysioNet and CPSC publish.

Axes: L leads, N samples.
"""

import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np

from ecgbyte_jax.ecg.formats.library import reading
from ecgbyte_jax.ecg.formats.table import by_lead
from ecgbyte_jax.errors import RecordError

_WHAT = "MATLAB"
_MOST_BYTES = 1 << 30  # inflated
_HEADER = 128  # bytes
_COMPRESSED = 15  # miCOMPRESSED
_STRUCT, _TEXT = 2, 4  # classes of arrays
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # types of elements
_FIRST_BYTES = 4096  # that a struct's small fields are sought in


def read_matlab(path: Path, leads: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(float64 [L, N], `leads`) of the array `val`, of `ECG.data`, or of the only one; raises RecordError."""
    from scipy.io import loadmat

    with reading(path, _WHAT):
        content = path.read_bytes()
        if content.startswith(b"MATLAB 5.0"):
            content = _inflated(path, content)
        found = {name: value for name, value in loadmat(BytesIO(content), simplify_cells=True).items() if name[:2] != "__"}
        values = found.get("val")
        if values is None and len(found) == 1:
            (values,) = found.values()
            values = values.get("data") if isinstance(values, dict) else values
        if not isinstance(values, np.ndarray):
            raise RecordError(f"{path}: variables {sorted(found)} found, an array 'val', or one alone, expected")
        return by_lead(path, values, leads), leads


def _inflated(path: Path, content: bytes) -> bytes:
    """A version 5 file without compression, which scipy would undo without a limit."""
    order: Literal["little", "big"] = "little" if content[126:128] == b"IM" else "big"
    parts, size, place = [content[:_HEADER]], 0, _HEADER
    while place + 8 <= len(content):
        kind, length = (int.from_bytes(content[place + i : place + i + 4], order) for i in (0, 4))
        end = place + 8 + length
        if kind == _COMPRESSED:
            parts.append(zlib.decompressobj().decompress(content[place + 8 : end], _MOST_BYTES - size + 1))
        else:
            parts.append(content[place:end])
        size, place = size + len(parts[-1]), end
        if size > _MOST_BYTES:
            raise RecordError(f"{path}: more than {_MOST_BYTES / 1e6:.0f} MB of variables found; cut the recording")
    return b"".join(parts)


def read_fields(path: Path) -> dict[str, str | float]:
    """The texts and single numbers that a version 5 file's struct has before its first larger field, which is not read.

    {} where the file does not begin with a struct. Raises RecordError where it is no such file, or damaged.
    """
    with reading(path, _WHAT):
        with path.open("rb") as file:
            content = file.read(_HEADER + _FIRST_BYTES)
        if not content.startswith(b"MATLAB 5.0"):
            raise RecordError(f"{path}: no MATLAB file of version 5")
        order: Literal["little", "big"] = "little" if content[126:128] == b"IM" else "big"
        content = content[_HEADER:]
        if int.from_bytes(content[:4], order) == _COMPRESSED:
            content = zlib.decompressobj().decompress(content[8:], _FIRST_BYTES)
        parts = [*_elements(content[8:], order)]  # flags, shape, name, length of the fields' names, the names, the fields
        if len(parts) < 5 or _class(parts[0], order) != _STRUCT:
            return {}
        length, names = int.from_bytes(parts[3][1], order), parts[4][1]
        places = range(0, len(names), length)
        fields = zip((names[i : i + length].rstrip(b"\0").decode("ascii") for i in places), parts[5:])
        read = {name: _value([*_elements(field, order)], order) for name, (_, field) in fields}
        return {name: value for name, value in read.items() if value is not None}


def _elements(content: bytes, order: Literal["little", "big"]) -> Iterator[tuple[int, bytes]]:
    """(type, bytes) of the data elements that are whole."""
    place = 0
    while place + 8 <= len(content):
        kind, length = (int.from_bytes(content[place + i : place + i + 4], order) for i in (0, 4))
        start = place + 8
        if kind >> 16:  # up to four bytes are within the tag
            kind, length, start = kind & 0xFFFF, kind >> 16, place + 4
        place = place + 8 if start == place + 4 else start + length + -length % 8
        if start + length > len(content):
            return
        yield kind, content[start : start + length]


def _class(flags: tuple[int, bytes], order: Literal["little", "big"]) -> int:
    """The class of an array, by its flags."""
    return int.from_bytes(flags[1][:4], order) & 0xFF


def _value(parts: list[tuple[int, bytes]], order: Literal["little", "big"]) -> str | float | None:
    """A text or a single number; None for anything else."""
    if len(parts) < 4:
        return None
    kind, content = parts[3]
    if _class(parts[0], order) == _TEXT:
        return content.replace(b"\0", b"").decode("utf-8")  # of UTF-16 the ASCII characters
    if kind not in _NUMBERS:
        return None
    numbers = np.frombuffer(content, np.dtype(_NUMBERS[kind]).newbyteorder(order))
    return float(numbers[0]) if numbers.size == 1 else None
