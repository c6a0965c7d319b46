"""Weights of Hugging Face folders: which stored tensor fills which parameter, checked from both sides."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
from flax import nnx
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError, safe_open

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.decoder import Decoder, DecoderConfig, RopeScaling

# Stored name (PyTorch's, dots) -> parameter (slashes). A kernel is stored [out, in] by PyTorch, [in, out] by Flax.
_LLAMA = (
    (r"model\.embed_tokens\.weight", r"embedding"),
    (r"model\.layers\.(\d+)\.self_attn\.([qkvo])_proj\.weight", r"blocks/\1/attention/\2/kernel"),
    (r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight", r"blocks/\1/mlp/\2/kernel"),
    (r"model\.layers\.(\d+)\.input_layernorm\.weight", r"blocks/\1/attention_norm/scale"),
    (r"model\.layers\.(\d+)\.post_attention_layernorm\.weight", r"blocks/\1/mlp_norm/scale"),
    (r"model\.norm\.weight", r"norm/scale"),
    (r"lm_head\.weight", r"head/kernel"),
)
# Stored, but nothing to load: derived from config.json.
_IGNORED = (r".*rotary_emb\.inv_freq",)
# Flax's last name of a tensor -> PyTorch's.
_FLAX_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "weight": "weight"}


def load_pretrained(
    folder: str | Path, *, dtype: str = "float32", param_dtype: str = "float32", remat: bool = False
) -> tuple[Decoder, DecoderConfig]:
    """The decoder of a Hugging Face folder, and its config.

    Reads config.json and `*.safetensors` or `flax_model.msgpack`, one file or several with an index. Raises WeightsError
    that names every missing, unexpected and mis-shaped tensor at once, or the field of config.json at fault.
    """
    folder = Path(folder)
    config = replace(read_config(folder), dtype=dtype, param_dtype=param_dtype, remat=remat)
    abstract = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    wanted = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    try:
        stored = dict(_stored_tensors(folder))
    except (SafetensorError, msgpack.exceptions.UnpackException, ValueError) as error:
        raise WeightsError(f"{folder}: a file of weights is damaged or truncated: {error}") from error
    found = _match(stored, set(wanted), config.tied_embeddings, folder)
    wrong = [
        f"{name} is {found[name].shape}, {leaf.shape} wanted"
        for name, leaf in wanted.items()
        if found[name].shape != leaf.shape
    ]
    if wrong:
        raise WeightsError(f"{folder}: shapes do not fit config.json: {'; '.join(wrong)}")
    filled = [
        (path, leaf.replace(jnp.asarray(found["/".join(map(str, path))], param_dtype)))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(filled)), config


def read_config(folder: Path) -> DecoderConfig:
    """The decoder that `config.json` describes; raises WeightsError for what this decoder cannot do."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file; model.pretrained wants a folder downloaded from Hugging Face") from error
    except json.JSONDecodeError as error:
        raise WeightsError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise WeightsError(f"{path}: an object with the model's settings wanted")
    _refuse(path, raw, "model_type", ("llama",))
    _refuse(path, raw, "hidden_act", ("silu",))
    for bias in ("attention_bias", "mlp_bias"):
        _refuse(path, {bias: raw.get(bias, False)}, bias, (False,))
    try:
        theta, scaling = _read_rope(path, raw)
        return DecoderConfig(
            vocab_size=raw["vocab_size"],
            width=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
            mlp_width=raw["intermediate_size"],
            max_positions=raw["max_position_embeddings"],
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=raw["rms_norm_eps"],
            tied_embeddings=raw["tie_word_embeddings"],
        )
    except KeyError as error:
        raise WeightsError(f"{path}: field {error} is missing") from error
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise WeightsError(f"{path}: a field is not of the kind that Hugging Face writes: {error}") from error


def _read_rope(path: Path, raw: dict) -> tuple[float, RopeScaling | None]:
    """transformers 5 keeps both in `rope_parameters`, transformers 4 in `rope_theta` and `rope_scaling`."""
    rope = raw.get("rope_parameters") or {"rope_theta": raw["rope_theta"], **(raw.get("rope_scaling") or {})}
    kind = rope.get("rope_type", "default")
    _refuse(path, {"rope_type": kind}, "rope_type", ("default", "llama3"))
    if kind == "default":
        return rope["rope_theta"], None
    original = rope["original_max_position_embeddings"]
    return rope["rope_theta"], RopeScaling(rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], original)


def _refuse(path: Path, raw: dict, field: str, known: tuple) -> None:
    if raw.get(field) not in known:
        raise WeightsError(f"{path}: {field} {raw.get(field)!r} found, one of {known} can be loaded")


def _stored_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(PyTorch's name, array) of every tensor in the folder; kernels of Flax files are turned to [out, in]."""
    for file in _weight_files(folder):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="flax") as tensors:
                yield from ((name, np.asarray(tensors.get_tensor(name))) for name in tensors.keys())  # noqa: SIM118 (no mapping)
        else:
            for path, array in flatten_dict(msgpack_restore(file.read_bytes())).items():
                name = ".".join((*path[:-1], _FLAX_LEAVES.get(path[-1], path[-1])))
                yield name, array.T if path[-1] == "kernel" else array


def _weight_files(folder: Path) -> list[Path]:
    for stem, ending in (("model", "safetensors"), ("flax_model", "msgpack")):
        if (folder / f"{stem}.{ending}").is_file():
            return [folder / f"{stem}.{ending}"]
        index = folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
            gone = [file.name for file in files if not file.is_file()]
            if gone:
                raise WeightsError(f"{index}: the files {gone} are missing")
            return files
    raise WeightsError(f"{folder}: neither model.safetensors nor flax_model.msgpack (nor an index of several files) is there")


def _match(stored: dict[str, np.ndarray], wanted: set[str], tied: bool, folder: Path) -> dict[str, np.ndarray]:
    """Parameter name -> array [in, out]; raises WeightsError where a name is left over on either side."""
    found, unexpected = {}, []
    for name, array in stored.items():
        rule = next(((p, to) for p, to in _LLAMA if re.fullmatch(p, name)), None)
        parameter = re.sub(*rule, name) if rule else None
        if parameter in wanted:
            found[parameter] = array.T if parameter.endswith("kernel") else array
        elif not (tied and parameter == "head/kernel") and not any(re.fullmatch(p, name) for p in _IGNORED):
            unexpected.append(name)
    missing = sorted(wanted - set(found))
    if missing or unexpected:
        raise WeightsError(f"{folder}: no tensor found for {missing}; no place found for {sorted(unexpected)}")
    return found


def grow_vocabulary(model: Decoder, size: int, key: jax.Array) -> Decoder:
    """The model with `size` rows in its embedding (and head), as `transformers` resizes with mean_resizing.

    New rows are drawn from a normal with the old rows' mean and 1e-9 times their covariance: a random mixture of the
    centred rows has just that covariance, so that no [D, D] matrix is needed.
    """
    added = size - model.config.vocab_size
    if added < 0:
        raise WeightsError(f"the tokenizer has {size} tokens, the model {model.config.vocab_size}: too few for a smaller one")
    for_embedding, for_head = jax.random.split(key)
    model.embedding = nnx.Param(_append_rows(model.embedding[...], added, for_embedding))
    if model.head is not None:
        model.head.kernel = nnx.Param(_append_rows(model.head.kernel[...].T, added, for_head).T)
    model.config = replace(model.config, vocab_size=size)
    return model


def _append_rows(rows: jax.Array, added: int, key: jax.Array) -> jax.Array:
    """[V, D] -> [V + added, D]."""
    old = rows.astype(jnp.float32)
    mean = old.mean(axis=0)
    mixture = jax.random.normal(key, (added, len(old))) * (1e-9 / len(old)) ** 0.5
    return jnp.concatenate([rows, (mean + mixture @ (old - mean)).astype(rows.dtype)])
