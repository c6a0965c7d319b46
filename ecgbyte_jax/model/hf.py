"""Hugging Face folders, and GGUF files: weights read (checked both ways, placed one by one) and written; rows for new tokens.

Axes: D width, V vocabulary, L layers.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from huggingface_hub import errors as hub
from huggingface_hub import snapshot_download
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.families.fields import refuse
from ecgbyte_jax.model.families.table import FAMILIES, TRANSPOSED, Tensor
from ecgbyte_jax.model.lora import quantize_kernels
from ecgbyte_jax.model.quantized.formats import quantize as to_format
from ecgbyte_jax.model.weights.gguf_file import config_fields, open_gguf
from ecgbyte_jax.model.weights.stored import stored_tensors, weight_files
from ecgbyte_jax.model.weights.written import tensor_file

# Stored buffers that follow from config.json.
_IGNORED = re.compile(r".*rotary_emb\.inv_freq|.*\.attn\.(masked_)?bias")
# Parts of Qwen 3.5 that the text model does not use: the heads for several tokens at once, the image encoder.
_OTHER_PARTS = re.compile(r"mtp\..*|model\.visual\..*")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HEAD = "lm_head.weight"
_NEVER_TIED_BY_FLAX = ("llama", "mistral")  # transformers 4's Flax classes that ignore tie_word_embeddings
_SHARD_BYTES = 5_000_000_000
_LOG = logging.getLogger(__name__)


def locate(name: str | Path) -> Path:
    """The folder or GGUF file itself, or for a hub id such as "meta-llama/Llama-3.2-1B" its folder, downloaded if needed.

    Raises WeightsError, which says what to do, where neither exists or the model's licence has to be accepted first.
    """
    if Path(name).is_dir() or Path(name).is_file():
        return Path(name)
    where = f"no folder '{name}'"
    if Path(name).suffix == ".gguf":
        raise WeightsError(f"model.pretrained: no file '{name}'; the name of a GGUF file that is there expected")
    if not _HUB_ID.fullmatch(str(name)):
        raise WeightsError(f"{where}; a folder or a hub id expected: `hf download meta-llama/Llama-3.2-1B --local-dir FOLDER`")
    try:
        folder = snapshot_download(str(name), allow_patterns=["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"])
        if not [*Path(folder).glob("*.safetensors")]:
            folder = snapshot_download(str(name), allow_patterns=["*.json", "*.jinja", "*.txt", "*.model", "*.msgpack"])
        return Path(folder)
    except hub.GatedRepoError as error:
        raise WeightsError(
            f"{where}, and hub id '{name}' is gated: accept its licence at huggingface.co/{name}, then `hf auth login`"
        ) from error
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        raise WeightsError(f"{where}, and the hub has no model '{name}' (or `hf auth login` is needed)") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, hub.HfHubHTTPError) as error:
        raise WeightsError(
            f"{where}, hub id '{name}' is not in the cache, and the hub cannot be reached; where it can, "
            f"`hf download {name} --local-dir FOLDER` creates a folder to copy here"
        ) from error


def load_pretrained(
    folder: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    remat: str = "",
    scan_layers: bool = False,
    quantize: str = "",
    shard: Callable[[Any], Any] | None = None,
) -> tuple[Decoder, DecoderConfig]:
    """Loads the decoder of a Hugging Face folder, hub id or GGUF file, and its config.

    Reads config.json and `*.safetensors` or `flax_model.msgpack`, one file or several with an index; or the metadata and
    quantised tensors of a GGUF file. Each tensor is placed as it is read, with the shardings that `shard` returns for the tree
    of abstract parameters (None: the default device). `quantize`: a format of `quantized.formats` for the blocks' kernels, of
    which a single one is in floats at a time. Raises WeightsError, which names all missing, unexpected, misshapen and
    non-finite tensors, or the faulty field of config.json or the metadata. A head in safetensors that differs from the
    embedding to which config.json ties it is refused, and one that Flax would not use is logged.
    """
    folder = locate(folder)
    config = replace(read_config(folder), dtype=dtype, param_dtype=param_dtype, remat=remat, scan_layers=scan_layers)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: quantize_kernels(Decoder(config, nnx.Rngs(0)), quantize)))
    places = _Places(state, shard, quantize)
    shapes = _shapes(config)
    family = FAMILIES[config.family]
    plan = {tensor.stored: tensor for tensor in family.tensors(set(shapes), config.layers)}
    plan = {spelling: tensor for stored, tensor in plan.items() for spelling in family.spellings(stored)}
    missing, problems = set(shapes), []
    for stored, array in stored_tensors(folder):
        tensor = plan.get(stored)
        if tensor is None:
            if config.tied_embeddings and stored == _HEAD:
                if _own_head(folder, config):
                    if weight_files(folder)[0].suffix != ".msgpack":  # transformers 4 tied it, 5 does not
                        problems.append(f"{_HEAD} differs from the embedding, tie_word_embeddings False expected")
                    else:
                        _LOG.warning("%s: %s is not used: config.json ties it to the embedding, which differs", folder, _HEAD)
            elif not _IGNORED.fullmatch(stored) and not (config.delta and _OTHER_PARTS.fullmatch(stored)):
                problems.append(f"no place for {stored}")
            continue
        if not missing.issuperset(tensor.parameters):
            problems.append(f"{stored} is stored twice, or with and without '{family.prefix}'")
            continue
        missing -= set(tensor.parameters)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            problems.append(
                f"{stored} holds {array.dtype}, not float32, float16 or bfloat16 as in a model that is not quantised"
            )
            continue
        for name, part in _parts(tensor, array, shapes):
            if part.shape == shapes[name]:
                if not places.put(name, part):
                    problems.append(f"{stored} holds values that are not finite{_overflow(array, param_dtype)}")
                    break
            else:
                problems.append(f"{stored} has shape {part.shape} for {name}, {shapes[name]} expected")
    problems += [f"no tensor for {name}" for name in sorted(missing)]
    if problems:
        settings = "the metadata" if folder.is_file() else "config.json"
        raise WeightsError(f"{folder}: the weights do not fit {settings}: {'; '.join(problems)}")
    return nnx.merge(graphdef, places.state()), config


def read_config(folder: Path) -> DecoderConfig:
    """The decoder that `config.json`, or a GGUF file's metadata, describes; untied where `has_flax_head`.

    Raises WeightsError for what this decoder does not support.
    """
    config = _read_settings(Path(folder))
    return replace(config, tied_embeddings=False) if _has_flax_head(Path(folder), config) else config


def has_flax_head(folder: Path) -> bool:
    """Whether a msgpack has a head of its own though config.json ties it, which Flax's Llama and Mistral never do."""
    return _has_flax_head(folder, _read_settings(folder))


def _has_flax_head(folder: Path, config: DecoderConfig) -> bool:
    ignores = config.tied_embeddings and config.family in _NEVER_TIED_BY_FLAX and any(folder.glob("flax_model.msgpack*"))
    return ignores and weight_files(folder)[0].suffix == ".msgpack" and _own_head(folder, config)


def _own_head(folder: Path, config: DecoderConfig) -> bool:
    """Whether the files hold a head that is not the embedding."""
    stamps = [(file, file.stat().st_size, file.stat().st_mtime_ns) for file in weight_files(folder)]
    return _compare_head(folder, config.family, *stamps)


@cache
def _compare_head(folder: Path, family: str, *_stamps: tuple[Path, int, int]) -> bool:
    """Reads the head and, where there is one, the embedding alone."""
    head = dict(stored_tensors(folder, {_HEAD}))
    (embedding,) = FAMILIES[family].tensors({"embedding"}, 0)
    names = FAMILIES[family].spellings(embedding.stored)
    return any(not np.array_equal(head[_HEAD], array) for _, array in stored_tensors(folder, names)) if head else False


def _read_settings(folder: Path) -> DecoderConfig:
    path, gguf = (folder, open_gguf(folder)) if folder.is_file() else (folder / "config.json", None)
    try:
        raw = config_fields(gguf) if gguf else _read_json(path)
        if raw.get("model_type") == "qwen3_5" and isinstance(raw.get("text_config"), dict):  # its vision part is not read
            raw = {"model_type": "qwen3_5_text"} | raw["text_config"]
        refuse(raw, "model_type", tuple(FAMILIES))
        config = DecoderConfig(family=raw["model_type"], **FAMILIES[raw["model_type"]].read(raw))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except KeyError as error:
        raise WeightsError(f"{path}: field {error} is missing") from error
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise WeightsError(f"{path}: a field is not of the type that Hugging Face writes: {error}") from error
    if config.heads % config.kv_heads:
        raise WeightsError(f"{path}: num_key_value_heads {config.kv_heads} found, a divisor of {config.heads} heads expected")
    if config.rope_theta is not None and (config.head_dim < 2 or config.head_dim % 2):
        raise WeightsError(f"{path}: head_dim {config.head_dim} found, an even number expected for rotary positions")
    return config


def _read_json(path: Path) -> dict:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        gguf = "".join(f", or {file}" for file in sorted(path.parent.glob("*.gguf"))[:1])
        raise WeightsError(f"no such file; model.pretrained must be a folder downloaded from Hugging Face{gguf}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"not readable as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise WeightsError("a JSON object with the model's settings expected")
    return raw


def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the unstacked decoder."""
    state = nnx.state(nnx.eval_shape(lambda: Decoder(replace(config, scan_layers=False), nnx.Rngs(0))))
    return {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}


def _parts(tensor: Tensor, array: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, np.ndarray]]:
    """(parameter, its part of a stored tensor in our layout)."""
    if tensor.layout in TRANSPOSED:
        array = array.T
    if len(tensor.parameters) == 1:
        yield tensor.parameters[0], array
        return
    ends = np.cumsum([shapes[name][-1] for name in tensor.parameters])[:-1]
    yield from zip(tensor.parameters, np.split(array, ends, axis=-1))


class _Places:
    """Abstract parameters that are filled one by one, each directly on its devices."""

    def __init__(self, state: nnx.State, shard: Callable[[Any], Any] | None, kind: str):
        self.kind = kind
        self.flat = nnx.to_flat_state(state)
        self.abstract = {"/".join(map(str, path)): leaf for path, leaf in self.flat}
        sharded = nnx.to_flat_state(shard(state)) if shard else []
        self.shardings = {"/".join(map(str, path)): jax.tree.leaves(leaf)[0] for path, leaf in sharded}
        self.filled: dict[str, jax.Array] = {}

    def put(self, name: str, array: np.ndarray) -> bool:
        """Fills the parameter `name` of an unstacked decoder; in stacked parameters, its layer. False: not all is finite."""
        layer = None
        if not {name, f"{name}/{self.kind}"} & self.abstract.keys():
            _, layer, rest = name.split("/", 2)
            name = f"blocks/{rest}"
        if name in self.abstract:
            values = _place(array, self.abstract[name].dtype, self._sharding(name, layer))
            finite = bool(_finite(values))  # waits: so that one tensor at a time is on its way
            self._fill(name, layer, values)
            return finite
        names = [other for other in self.abstract if other.startswith(f"{name}/")]
        shardings = {other.removeprefix(f"{name}/"): self._sharding(other, layer) for other in names}
        split = shardings[self.kind]
        floats = _place(array, array.dtype, split and NamedSharding(split.mesh, PartitionSpec(split.spec[0], split.spec[-1])))
        finite = bool(_finite(floats))
        # Waits, so that the floats of one kernel are gone before those of the next arrive.
        parts = jax.block_until_ready(_quantizer(self.kind, tuple(shardings.items()) if split else ())(floats))
        for part, values in parts.items():
            self._fill(f"{name}/{part}", layer, values)
        return finite

    def _sharding(self, name: str, layer: str | None) -> NamedSharding | None:
        """That of a parameter, or of one layer of a stacked one; None: the default device."""
        sharding = self.shardings.get(name)
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:])) if sharding and layer else sharding

    def _fill(self, name: str, layer: str | None, values: jax.Array) -> None:
        if layer is None:
            self.filled[name] = values
            return
        if name not in self.filled:
            like = self.abstract[name]
            make = jax.jit(lambda: jnp.zeros(like.shape, like.dtype), out_shardings=self.shardings.get(name))
            self.filled[name] = make()
        self.filled[name] = _set_layer(self.filled.pop(name), values, int(layer))

    def state(self) -> nnx.State:
        """The parameters, all of which have been filled."""
        return nnx.from_flat_state([(path, leaf.replace(self.filled["/".join(map(str, path))])) for path, leaf in self.flat])


def _place(array: np.ndarray, dtype: jnp.dtype, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """Puts only this host's parts on its devices; with several hosts, `device_put` would broadcast the array to compare it."""
    with np.errstate(over="ignore"):  # what overflows is reported by `_overflow`
        if sharding is None:
            return jax.device_put(array.astype(dtype))
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part].astype(dtype))


@cache
def _quantizer(kind: str, shardings: tuple[tuple[str, NamedSharding], ...]) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Maps a kernel to its parts in the format `kind`, each made on the devices that hold it."""
    where = {"out_shardings": dict(shardings)} if shardings else {}
    return jax.jit(partial(to_format, kind=kind), **where)


@jax.jit
def _finite(values: jax.Array) -> jax.Array:
    return jnp.isfinite(values).all()


def _overflow(array: np.ndarray, dtype: str) -> str:
    """Which of a stored tensor's finite values are none in the type that the model's weights are to have."""
    return f" in {dtype} (model.param_dtype), though they are in {array.dtype}" if np.isfinite(array).all() else ""


@partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, array: jax.Array, layer: int) -> jax.Array:
    """The stack with one layer's values, written in place: as bits, since XLA for CPUs takes all of a bfloat16 to float32."""
    as_bits = partial(jax.lax.bitcast_convert_type, new_dtype=jnp.dtype(f"uint{8 * stack.dtype.itemsize}"))
    filled = jax.lax.dynamic_update_index_in_dim(as_bits(stack), as_bits(array), layer, 0)
    return jax.lax.bitcast_convert_type(filled, stack.dtype)


def save_pretrained(model: Decoder, folder: str | Path, *, text_tokenizer: Any = None, shard_bytes: int = _SHARD_BYTES) -> None:
    """Writes a folder that `transformers.AutoModelForCausalLM.from_pretrained` reads: config.json and safetensors.

    Above `shard_bytes` of weights: several files and their index. With a text tokenizer: also its files, and its special ids in
    config.json. All processes that share the model must call this, and the first one writes. Raises WeightsError for LoRA paths
    that are not merged (see `lora.merge_lora`).
    """
    folder, config, parameters = Path(folder), model.config, _parameters(model)
    if any("/lora/" in name for name in parameters):
        raise WeightsError(f"{folder}: the model has LoRA paths; merge them first, or write an adapter")
    leads = jax.process_index() == 0
    if leads:
        folder.mkdir(parents=True, exist_ok=True)
        # Without config.json the folder is not a model until everything is written. Older weight files would be read instead.
        for file in (folder / "config.json", *_weights(folder)):
            file.unlink(missing_ok=True)
    family, shapes = FAMILIES[config.family], _shapes(config)
    tensors = family.tensors(set(shapes), config.layers)
    size = jnp.dtype(config.param_dtype).itemsize
    files = _group(tensors, [size * sum(int(np.prod(shapes[name])) for name in t.parameters) for t in tensors], shard_bytes)
    names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    if len(files) == 1:
        names = ["model.safetensors"]
    for name, group in zip(names, files):
        written_as = {tensor.stored: jax.eval_shape(partial(_in_stored_layout, tensor), parameters) for tensor in group}
        with tensor_file(folder / name, written_as) if leads else nullcontext() as write:
            for tensor in group:
                array = whole(_in_stored_layout(tensor, parameters))  # all processes gather it
                if write:
                    write(array)
    if not leads:
        return
    if len(files) > 1:
        total = size * sum(int(np.prod(shape)) for shape in shapes.values())
        weight_map = {tensor.stored: name for name, group in zip(names, files) for tensor in group}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    written = {"architectures": [family.architecture], "model_type": config.family, "torch_dtype": config.param_dtype}
    written |= family.write(config)
    if text_tokenizer is not None:
        text_tokenizer.save_pretrained(folder)
        written |= {name: getattr(text_tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def _weights(folder: Path) -> list[Path]:
    """The folder's weight files with names that `save_pretrained` uses."""
    names = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
    return [file for file in folder.iterdir() if names.fullmatch(file.name)]


def stored_vocabulary(model: Decoder) -> dict[str, np.ndarray]:
    """The embedding, and the head if it is not tied, by PyTorch's names, with trained new rows inserted."""
    parameters = _parameters(model)
    tensors = FAMILIES[model.config.family].tensors({"embedding", "head/kernel"} & set(parameters), model.config.layers)
    return {tensor.stored: whole(_in_stored_layout(tensor, parameters)) for tensor in tensors}


def _parameters(model: Decoder) -> dict[str, jax.Array]:
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model))}


def _group(tensors: list[Tensor], sizes: list[int], most: int) -> list[list[Tensor]]:
    groups: list[list[Tensor]] = [[]]
    filled = 0
    for tensor, size in zip(tensors, sizes):
        if groups[-1] and filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    return groups


def whole(array: jax.Array) -> np.ndarray:
    """An array on the host; where several processes hold parts of it, all of them must call this.

    `np.asarray` would keep the host's copy for as long as the array lives.
    """
    if not array.is_fully_addressable:
        return multihost_utils.process_allgather(array, tiled=True)
    joined = np.empty(array.shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            joined[shard.index] = shard.data
    return joined


def _in_stored_layout(tensor: Tensor, parameters: dict[str, jax.Array]) -> jax.Array:
    """A tensor in PyTorch's layout, on the devices."""
    parts = [_parameter(name, parameters) for name in tensor.parameters]
    array = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
    return array.T if tensor.layout in TRANSPOSED else array


def _parameter(name: str, parameters: dict[str, jax.Array]) -> jax.Array:
    """A parameter by its name in the unstacked decoder, with trained new rows inserted."""
    if name in ("embedding", "head/kernel"):
        new, axis = ("new_rows", 0) if name == "embedding" else ("new_head_rows", 1)
        rows = parameters[name]
        if new in parameters:
            added = parameters[new] if axis == 0 else parameters[new].T
            rows = jnp.concatenate([rows, added.astype(rows.dtype)], axis=axis)
        return rows
    if name in parameters:
        return parameters[name]
    _, layer, rest = name.split("/", 2)
    return parameters[f"blocks/{rest}"][int(layer)]
