"""A safetensors file, written tensor by tensor: the library's own writer takes all of a file's tensors at once."""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ecgbyte_jax.errors import WeightsError

_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@contextmanager
def tensor_file(path: Path, tensors: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes a file of these tensors, whose values are then given one by one in the same order.

    Raises WeightsError, naming the file, where it cannot be written, ValueError for values of another tensor or too few.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, like in tensors.items():
        start, end = end, end + math.prod(like.shape) * like.dtype.itemsize
        header[name] = {"dtype": _DTYPES[jnp.dtype(like.dtype).name], "shape": [*like.shape], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    expected = iter(tensors.items())
    try:
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)

            def write(values: np.ndarray) -> None:
                name, like = next(expected)
                if values.shape != like.shape or values.dtype != like.dtype:
                    raise ValueError(f"{name}: {values.dtype} {values.shape} found, {like.dtype} {like.shape} expected")
                file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)

            yield write
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be written: {error.strerror}; free some space, and give the command again"
        ) from error
    if missing := [name for name, _ in expected]:
        raise ValueError(f"{path}: no values for {missing}")
