"""MATLAB files without a WFDB header beside them, as the challenges of PhysioNet and CPSC publish.

Axes: L leads, N samples.
"""

import zlib
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
