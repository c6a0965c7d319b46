"""Weight files, read tensor by tensor: safetensors and Flax's msgpack, one file or several with an index; or GGUF."""

import json
import mmap
import struct
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np
from safetensors import SafetensorError, safe_open

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.weights.gguf_file import gguf_tensors, open_gguf

# The last part of a tensor's name in Flax -> in PyTorch.
_FLAX_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}
# Safetensors' names of number types.
_DTYPES: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "BOOL": np.bool_}
_DTYPES |= {f"{letter}{bits}": f"{kind}{bits}" for letter, kind in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)}
_CHUNKED = "__msgpack_chunked_array__"  # how Flax splits arrays of more than 1 GiB
_DAMAGE = (
    *(SafetensorError, msgpack.exceptions.UnpackException, struct.error, OSError, EOFError, RecursionError, OverflowError),
    *(ValueError, TypeError, LookupError, AttributeError),  # from the content of a msgpack
)
# First byte of a msgpack object -> form of the length after it. Maps; texts; extensions, with their code.
_MAPS = {byte: byte & 0xF for byte in range(0x80, 0x90)} | {0xDE: ">H", 0xDF: ">I"}
_TEXTS = {byte: byte & 0x1F for byte in range(0xA0, 0xC0)} | {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_EXTENSIONS = {0xD4 + i: 2**i for i in range(5)} | {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
# First byte of None, a bool or a number -> size of the whole.
_NUMBERS = dict.fromkeys((*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3), 1)
_NUMBERS |= {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}


def stored_tensors(folder: Path, only: Container[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """(PyTorch's name, array in PyTorch's layout) of every tensor in the folder or GGUF file, one at a time in memory.

    only: the names of those to read (None: all); the others' bytes are not touched. Raises WeightsError, naming the file, where
    a file is missing or damaged.
    """
    for file in weight_files(folder):
        read = {".safetensors": _safetensors, ".msgpack": _msgpack}.get(file.suffix, gguf_tensors)
        try:
            yield from read(file, only)
        except _DAMAGE as error:
            raise WeightsError(f"{file}: damaged or truncated: {error!r}") from error


def weight_files(folder: Path) -> list[Path]:
    """The folder's weight files, or the GGUF file alone.

    Raises WeightsError where there are none, some of an index are missing, or the GGUF file cannot be used.
    """
    if folder.is_file():
        return [open_gguf(folder).path]
    for stem, ending in (("model", "safetensors"), ("flax_model", "msgpack")):
        if (folder / f"{stem}.{ending}").is_file():
            return [folder / f"{stem}.{ending}"]
        index = folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            files = [folder / name for name in _files_of(index)]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise WeightsError(f"{index}: the files {missing} are missing")
            return files
    pickles = (
        "; its .bin files are pickles, which are not read: save the model as safetensors" if [*folder.glob("*.bin")] else ""
    )
    raise WeightsError(
        f"{folder}: neither model.safetensors nor flax_model.msgpack (nor an index of several files) found{pickles}"
    )


def _files_of(index: Path) -> list[str]:
    try:
        names = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index}: field 'weight_map' cannot be read: {error!r:.200}") from error
    bad = [name for name in names if not isinstance(name, str) or Path(name).name != name or "\0" in name]
    if bad or not names:
        raise WeightsError(f"{index}: field 'weight_map': {bad[:1] or 'nothing'} found, names of files beside it expected")
    return sorted(set(names))


def _safetensors(file: Path, only: Container[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays that are read from the disk where they are used: a host touches the bytes of its parts alone."""
    with safe_open(file, framework="np") as tensors:  # checks the file's header
        names = [name for name in tensors.keys() if only is None or name in only]  # noqa: SIM118 (not a mapping)
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        (size,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + size])
    data = np.memmap(file, np.uint8, "r", 8 + size)
    for name in sorted(names, key=lambda name: header[name]["data_offsets"]):
        kind, (start, end) = header[name]["dtype"], header[name]["data_offsets"]
        if kind not in _DTYPES:
            raise WeightsError(
                f"{file}: {name} is of type {kind}, float32, float16 or bfloat16 expected: save the model unquantised"
            )
        yield name, np.asarray(data[start:end]).view(_DTYPES[kind]).reshape(header[name]["shape"])


def _msgpack(file: Path, only: Container[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for path, start, end in _leaves(content, 0, ())[0]:
            name = ".".join((*path[:-1], _FLAX_LEAVES.get(path[-1], path[-1])))
            if only is None or name in only:
                with memoryview(content)[start:end] as part:
                    array = _whole(msgpack.unpackb(part, ext_hook=_array), path)
                # Flax's kernels are [n_in, n_out] where PyTorch's are [n_out, n_in]; in GPT-2 it is the other way round.
                yield name, array.T if path[-1] == "kernel" else array


def _leaves(content: mmap.mmap, at: int, path: tuple[str, ...]) -> tuple[list[tuple[tuple[str, ...], int, int]], int]:
    """((path, start, end) of each array of the object at `at`, in the file's order; where the object ends)."""
    if content[at] not in _MAPS:
        size, start = (_NUMBERS[content[at]], at) if content[at] in _NUMBERS else _length(content, at, _EXTENSIONS)
        end = start + size
        return [(path, at, end)], end
    start, found, chunked, (entries, at) = at, [], False, _length(content, at, _MAPS)
    for _ in range(entries):
        size, at = _length(content, at, _TEXTS)
        key = content[at : at + size].decode()
        leaves, at = _leaves(content, at + size, (*path, key))
        found, chunked = found + leaves, chunked or key == _CHUNKED
    return ([(path, start, at)] if chunked else found), at


def _length(content: mmap.mmap, at: int, forms: dict[int, int | str]) -> tuple[int, int]:
    """(the length that an object's head says, where the head ends)."""
    if content[at] not in forms:
        raise ValueError(f"{content[at]:#x} found at byte {at}, the head of a map, a text or an array expected")
    form, end = forms[content[at]], at + 1
    if isinstance(form, str):
        (form,) = struct.unpack_from(form, content, end)
        end += struct.calcsize(forms[content[at]])
    return form, end + (forms is _EXTENSIONS)  # whose code is a byte more


def _whole(leaf: object, path: tuple[str, ...]) -> np.ndarray:
    """A leaf as an array, put together where Flax has split it."""
    if isinstance(leaf, dict) and _CHUNKED in leaf:
        shape, chunks = ([leaf[name][str(i)] for i in range(len(leaf[name]))] for name in ("shape", "chunks"))
        return np.concatenate([chunk.ravel() for chunk in chunks]).reshape(shape)
    if not isinstance(leaf, np.ndarray):
        raise ValueError(f"{'.'.join(path)}: {leaf!r:.40} found, an array expected")
    return leaf


def _array(code: int, data: bytes) -> np.ndarray:
    """Decodes Flax's extension 1: (shape, name of the dtype, bytes)."""
    if code != 1:
        raise ValueError(f"extension {code} found, 1 (an array) expected")
    shape, name, buffer = msgpack.unpackb(data, raw=True)
    return np.frombuffer(buffer, jnp.dtype(name.decode())).reshape(shape)
