"""Files written atomically, so that they are complete or absent, and the digests of their content."""

import hashlib
import io
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_DIGEST_BYTES = hashlib.sha256().digest_size


def write_whole(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Writes a file under a temporary name, flushes it to disk and renames it; creates its folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename in (None, str(partial)):  # failed writes do not name the file
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes arrays by name as one NPZ file followed by its SHA-256, atomically. Raises OSError."""
    file = io.BytesIO()
    entries: dict[str, Any] = arrays
    np.savez(file, **entries)
    write_whole(path, [file.getbuffer(), hashlib.sha256(file.getbuffer()).digest()])


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Reads what `write_arrays` wrote; None if it is missing, damaged or unreadable."""
    try:
        content = memoryview(path.read_bytes())
    except OSError:
        return None
    data, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:  # before NumPy parses anything
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)
