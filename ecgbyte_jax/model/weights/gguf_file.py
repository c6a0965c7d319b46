"""GGUF, llama.cpp's form of a model: one file with metadata, the tokenizer and tensors that may be quantised.

The form is described in github.com/ggml-org/ggml, docs/gguf.md; the package `gguf` knows the types of its tensors.
"""

import math
import mmap
import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ecgbyte_jax.errors import WeightsError

_FAMILIES = {  # general.architecture -> Hugging Face's model_type
    "llama": "llama",  # Mistral too
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}
_TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
# Metadata after "ARCHITECTURE." -> field of config.json; the first ones must be there.
_REQUIRED = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
}
# Our names are PyTorch's: modules, and those of a layer.
_MODULES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA2 = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_IN_LAYER_OF = {
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA2,
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}  # the size whose queries are scaled by width / heads, not by the head's width
_ONLY = {"expert_count": (None, 0), "attention.causal": (None, True), "rope.scale_linear": (None, 1)}
_SCALING = "rope.scaling."
_SCALING_FIELDS = {"type": "rope_type", "factor": "factor"}
_ROPE_FACTORS = "rope_freqs.weight"  # by which the rotary frequencies are divided
_LONG_FACTORS = {"rope_factors_short.weight": "short_factor", "rope_factors_long.weight": "long_factor"}
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


@dataclass(frozen=True)
class Stored:
    """Where a tensor is: its shape, rows last but one, the name of its type, and its bytes."""

    shape: tuple[int, ...]
    type: str
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class GgufFile:
    """An opened file: metadata as plain values, and the tensors, unread, by the file's names."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Stored]

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the family."""
        return self.metadata["general.architecture"]


def open_gguf(path: Path) -> GgufFile:
    """Reads all but the tensors' values.

    Raises WeightsError for a file of another form, a truncated one, one of several, another architecture or type than those
    known here, and where the package `gguf` is not installed.
    """
    try:
        stat = path.stat()
        return _open(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from error


@lru_cache(maxsize=1)
def _open(path: Path, size: int, _time: int) -> GgufFile:
    with path.open("rb") as stream:
        if (magic := stream.read(4)) != b"GGUF":
            raise WeightsError(f"{path}: begins with {magic!r}, b'GGUF' expected: a GGUF file, or the name of a folder")
        types = _types(path)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                metadata, table, start = _read_head(_Reader(content, len(magic)))
            except (struct.error, ValueError, TypeError, ArithmeticError, RecursionError) as error:
                raise WeightsError(f"{path}: damaged or truncated: {error!r:.200}") from error
    refusals = {"general.architecture": tuple(_FAMILIES), "split.count": (None, 0, 1)}
    for name, known in refusals.items():
        if metadata.get(name) not in known:
            raise WeightsError(f"{path}: {name} {metadata.get(name)!r:.60} found, one of {known} expected")
    tensors = {}
    for name, (shape, kind, offset) in table.items():
        if kind not in types:
            raise WeightsError(f"{path}: {name} is of type {_type_name(kind)}, one of {_TYPES} expected")
        type_name, values, block = types[kind]
        if not shape or 0 in shape or shape[-1] % values:
            raise WeightsError(f"{path}: {name} has shape {shape}, rows of a multiple of {values} expected for {type_name}")
        begin = start + offset
        tensors[name] = Stored(shape, type_name, begin, begin + math.prod(shape) // values * block)
    if (end := max((stored.end for stored in tensors.values()), default=0)) > size:
        raise WeightsError(f"{path}: truncated: {size} bytes found, {end} expected; download it again")
    return GgufFile(path, metadata, tensors)


def _types(path: Path) -> dict[int, tuple[str, int, int]]:
    """The number of a type -> its name, and how many values are in a block of how many bytes."""
    package = _package(path)
    kinds = {name: package.GGMLQuantizationType[name] for name in _TYPES}
    return {int(kind): (name, *package.GGML_QUANT_SIZES[kind]) for name, kind in kinds.items()}


def _type_name(kind: int) -> str:
    import gguf

    return next((known.name for known in gguf.GGMLQuantizationType if known == kind), str(kind))


def _package(path: Path) -> ModuleType:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise WeightsError(f"{path}: a GGUF file needs the extra: pip install -e '.[gguf]' ({error})") from error
    return gguf


class _Reader:
    """Reads one value after another."""

    def __init__(self, content: mmap.mmap, at: int):
        self.content, self.at = content, at

    def number(self, form: str) -> Any:
        """A number; a float32 is read as its shortest decimal."""
        (value,) = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return float(str(np.float32(value))) if form == "f" else value

    def text(self) -> str:
        size = self.number("Q")
        if size > len(self.content) - self.at:
            raise ValueError(f"a text of {size} bytes at {self.at}")
        self.at += size
        return self.content[self.at - size : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            kind, count = self.number("I"), self.number("Q")
            if count > len(self.content) - self.at:
                raise ValueError(f"a list of {count} at {self.at}")
            if kind not in _NUMBERS:
                return [self.value(kind) for _ in range(count)]
            values = struct.unpack_from(form := f"<{count}{_NUMBERS[kind]}", self.content, self.at)
            self.at += struct.calcsize(form)
            return list(values)
        if kind not in _NUMBERS:
            raise ValueError(f"metadata of type {kind} at {self.at}")
        return self.number(_NUMBERS[kind])


def _read_head(reader: _Reader) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, int]], int]:
    """(metadata, tensor's name -> (shape, number of its type, offset), where the tensors' values begin)."""
    version, tensors, entries = reader.number("I"), reader.number("Q"), reader.number("Q")
    if version not in (2, 3):
        raise ValueError(f"version {version}, 2 or 3 expected")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        name = reader.text()
        metadata[name] = reader.value(reader.number("I"))
    table = {}
    for _ in range(tensors):
        name, axes = reader.text(), reader.number("I")
        sizes = [reader.number("Q") for _ in range(axes)]
        table[name] = (tuple(reversed(sizes)), reader.number("I"), reader.number("Q"))
    if len(metadata) < entries or len(table) < tensors:
        raise ValueError("a name is there twice")
    alignment = metadata.get("general.alignment", 32)
    return metadata, table, reader.at + -reader.at % alignment


def tokenizer_metadata(file: GgufFile) -> dict[str, Any]:
    """The metadata that the text tokenizer follows from."""
    return {name: value for name, value in file.metadata.items() if name.startswith(("tokenizer.", "general.architecture"))}


def config_fields(file: GgufFile) -> dict[str, Any]:
    """The fields of config.json that follow from the metadata and the tensors' names; raises WeightsError where one is missing.

    What GGUF does not store is as in llama.cpp: the activation, Gemma's scale of queries, and a rotary base of 10,000.
    """
    architecture = file.architecture
    metadata = {name.removeprefix(f"{architecture}."): value for name, value in file.metadata.items()}
    missing = [f"{architecture}.{name}" for name in _REQUIRED if name not in metadata]
    missing += [name for name in ("token_embd.weight",) if name not in file.tensors]
    if missing:
        raise WeightsError(f"{', '.join(missing)}: not found, expected in a GGUF file of a {architecture}")
    for name, known in _ONLY.items():
        if metadata.get(name) not in known:
            raise WeightsError(f"{architecture}.{name} {metadata[name]!r:.60} found, one of {known} expected")
    raw = {field: metadata[name] for name, field in (_REQUIRED | _OPTIONAL).items() if name in metadata}
    if not raw.get("sliding_window"):  # llama.cpp writes 0 for Phi-4
        raw.pop("sliding_window", None)
    raw |= {
        "model_type": _FAMILIES[architecture],
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "rope_theta": metadata.get("rope.freq_base", 10_000.0),
    }
    width, heads = raw["hidden_size"], raw["num_attention_heads"]
    if not (type(width) is type(heads) is int and heads):
        return raw  # which the family's reader refuses
    raw.setdefault("head_dim", width // heads)
    if architecture.startswith("gemma"):
        per_width = raw["num_hidden_layers"] == _LAYERS_OF_27B.get(architecture)
        raw["query_pre_attn_scalar"] = width // heads if per_width else raw["head_dim"]
    else:
        raw["hidden_act"] = "silu"
    if metadata.get("rope.dimension_count", raw["head_dim"]) != raw["head_dim"]:
        raw["partial_rotary_factor"] = metadata["rope.dimension_count"] / raw["head_dim"]
    if scaling := _rope_scaling(file, metadata, raw):
        raw["rope_scaling"] = scaling
    return raw


def _rope_scaling(file: GgufFile, metadata: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any] | None:
    """Llama 3's scaling is stored as its factors alone: those of its published settings are recognised, others refused."""
    if metadata.get("rope.scaling.type", "none") != "none":
        parts = {name.removeprefix(_SCALING): value for name, value in metadata.items() if name.startswith(_SCALING)}
        known = (*_SCALING_FIELDS, "original_context_length", "finetuned")
        if others := sorted({*parts} - {*known}):
            raise WeightsError(f"{file.architecture}.{_SCALING}{others[0]} found, of a scaling only {known} expected")
        return {_SCALING_FIELDS[name]: value for name, value in parts.items() if name in _SCALING_FIELDS}
    if any(name in file.tensors for name in _LONG_FACTORS):
        attention = {"attention_factor": metadata.get("rope.scaling.attn_factor")}
        factors = {field: _values(file, name).tolist() for name, field in _LONG_FACTORS.items() if name in file.tensors}
        return {"rope_type": "longrope"} | attention | factors
    if _ROPE_FACTORS not in file.tensors:
        return None
    found = _values(file, _ROPE_FACTORS)
    if (found == 1).all():
        return None
    low, high, original, factor, width = 1.0, 4.0, 8192, float(found.max()), raw["head_dim"]
    frequencies = raw["rope_theta"] ** -(np.arange(0, width, 2) / width)
    share = np.clip((original * frequencies / (2 * np.pi) - low) / (high - low), 0, 1)
    expected = 1 / (share + (1 - share) / factor)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4):
        raise WeightsError(f"{_ROPE_FACTORS}: other factors found than Llama 3.1's, with a factor of {factor:g}, has")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {"rope_type": "llama3"} | dict(zip(names, (factor, low, high, original)))


def gguf_tensors(path: Path, only: Container[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    """(PyTorch's name, float32 array in PyTorch's layout) of every tensor, or those named, dequantised one at a time."""
    file = open_gguf(path)
    for name in file.tensors:
        pytorch = _pytorch_name(file.architecture, name)
        if name not in (_ROPE_FACTORS, *_LONG_FACTORS) and (only is None or pytorch in only):
            yield pytorch, _restored(file, name)


def _restored(file: GgufFile, name: str) -> np.ndarray:
    """A tensor without llama.cpp's order of Llama's query and key channels, and the 1 that it adds to Gemma's norms."""
    array, architecture, module = _values(file, name), file.architecture, name.rpartition(".")[0].rpartition(".")[2]
    if architecture.startswith("gemma") and module.endswith("norm"):
        return array - 1
    if architecture != "llama" or module not in ("attn_q", "attn_k"):
        return array
    heads = file.metadata[f"{architecture}.attention.head_count"]
    if module == "attn_k":
        heads = file.metadata.get(f"{architecture}.attention.head_count_kv", heads)
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _pytorch_name(architecture: str, name: str) -> str:
    """PyTorch's name, or the same name where there is none."""
    module, _, leaf = name.rpartition(".")
    if module in _MODULES:
        return f"{_MODULES[module]}.{leaf}"
    block, _, rest = module.partition(".")
    layer, _, part = rest.partition(".")
    known = _IN_LAYER | _IN_LAYER_OF.get(architecture, {})
    return f"model.layers.{layer}.{known[part]}.{leaf}" if block == "blk" and part in known else name


def _values(file: GgufFile, name: str) -> np.ndarray:
    """A tensor as float32."""
    package, stored = _package(file.path), file.tensors[name]
    kind = package.GGMLQuantizationType[stored.type]
    content = np.memmap(file.path, np.uint8, "r", stored.start, (stored.end - stored.start,))
    return package.dequantize(content.reshape(*stored.shape[:-1], -1), kind).reshape(stored.shape)
