"""Files that are either whole or not there."""

import hashlib
import io
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_DIGEST_BYTES = hashlib.sha256().digest_size


def write_whole(path: Path, pieces: Iterable[bytes]) -> None:
    """Writes a file under another name, flushes it to the disk and renames it; makes its folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes arrays by name as one NPZ file, followed by its SHA-256, whole or not at all. Raises OSError."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    write_whole(path, [file.getbuffer(), hashlib.sha256(file.getbuffer()).digest()])


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What `write_arrays` wrote; None where it is missing, damaged or cannot be read: then it has to be made again."""
    try:
        content = memoryview(path.read_bytes())
    except OSError:
        return None
    data, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:  # before NumPy parses anything
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return dict(found)
