"""Weight files, read tensor by tensor: safetensors and Flax's msgpack, one file or several with an index."""

import json
import mmap
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import msgpack
import numpy as np
from safetensors import SafetensorError, safe_open

from ecgbyte_jax.errors import WeightsError

# The last part of a tensor's name in Flax -> in PyTorch.
_FLAX_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}
_CHUNKED = "__msgpack_chunked_array__"  # how Flax splits arrays of more than 1 GiB
_DAMAGE = (
    *(SafetensorError, msgpack.exceptions.UnpackException, OSError, EOFError, RecursionError, OverflowError),
    *(ValueError, TypeError, LookupError, AttributeError),  # from the content of a msgpack
)
_MAPS = (*range(0x80, 0x90), 0xDE, 0xDF)  # the first bytes of a msgpack map


def stored_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(PyTorch's name, array in PyTorch's layout) of every tensor in the folder, one at a time in memory.

    Raises WeightsError, naming the file, where a file is missing or damaged.
    """
    for file in weight_files(folder):
        read = _safetensors if file.suffix == ".safetensors" else _msgpack
        try:
            yield from read(file)
        except _DAMAGE as error:
            raise WeightsError(f"{file}: damaged or truncated: {error!r}") from error


def weight_files(folder: Path) -> list[Path]:
    """The folder's weight files; raises WeightsError where there are none, or some of an index are missing."""
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


def _safetensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    with safe_open(file, framework="np") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a mapping)
            try:
                array = tensors.get_tensor(name)
            except AttributeError as error:  # numpy has no such type
                kind = tensors.get_slice(name).get_dtype()
                raise WeightsError(
                    f"{file}: {name} is of type {kind}, float32, float16 or bfloat16 expected: save the model unquantised"
                ) from error
            yield name, array


def _msgpack(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        unpacker = msgpack.Unpacker(stream, max_buffer_size=0, ext_hook=_array, strict_map_key=False)
        for path, array in _leaves(unpacker, content, ()):
            name = ".".join((*path[:-1], _FLAX_LEAVES.get(path[-1], path[-1])))
            # Flax's kernels are [n_in, n_out] where PyTorch's are [n_out, n_in]; in GPT-2 it is the other way round.
            yield name, array.T if path[-1] == "kernel" else array


def _leaves(unpacker: msgpack.Unpacker, content: mmap.mmap, path: tuple[str, ...]) -> Iterator[tuple[tuple, np.ndarray]]:
    """(path, array) of each array in the file's order; no array is kept."""
    if content[unpacker.tell()] not in _MAPS:
        yield path, _checked(unpacker.unpack(), path)
        return
    entries = unpacker.read_map_header()
    for entry in range(entries):
        key = unpacker.unpack()
        if key == _CHUNKED and entry == 0:
            unpacker.unpack()
            parts = {unpacker.unpack(): unpacker.unpack() for _ in range(entries - 1)}
            shape, chunks = ([parts[name][str(i)] for i in range(len(parts[name]))] for name in ("shape", "chunks"))
            yield path, np.concatenate([chunk.ravel() for chunk in chunks]).reshape(shape)
            return
        yield from _leaves(unpacker, content, (*path, str(key)))


def _checked(leaf: object, path: tuple[str, ...]) -> np.ndarray:
    if not isinstance(leaf, np.ndarray):
        raise ValueError(f"{'.'.join(path)}: {leaf!r:.40} found, an array expected")
    return leaf


def _array(code: int, data: bytes) -> np.ndarray:
    """Decodes Flax's extension 1: (shape, name of the dtype, bytes)."""
    if code != 1:
        raise ValueError(f"extension {code} found, 1 (an array) expected")
    shape, name, buffer = msgpack.unpackb(data, raw=True)
    return np.frombuffer(buffer, jnp.dtype(name.decode())).reshape(shape)
