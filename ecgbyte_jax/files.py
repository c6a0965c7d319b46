"""Files that are either whole or not there."""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path


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
    except OSError as error:
        if error.filename in (None, str(partial)):  # a write that fails names no file
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
