"""Adapters as PEFT keeps them: `adapter_config.json` and `adapter_model.safetensors`, in and out.

Axes: R rank; n_in and n_out as in the kernel. PEFT's A is [R, n_in] and B [n_out, R]: ours turned.
"""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.decoder import Decoder, unstack
from ecgbyte_jax.model.families import CONV1D, FAMILIES, LINEAR
from ecgbyte_jax.model.hf import stored_vocabulary, whole
from ecgbyte_jax.model.layers import Linear
from ecgbyte_jax.model.lora import LowRankPath, kernels

_PREFIX = "base_model.model."
# Settings that would change what the adapter computes, with the values that mean the plain way.
_PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "use_rslora": (False,),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "modules_to_save": (None, []),
    "lora_bias": (False,),
}


def load_adapter(model: Decoder, folder: str | Path) -> None:
    """Puts the LoRA paths of a PEFT folder beside the model's kernels.

    Raises WeightsError, naming file and field, for a missing or damaged file, an adapter that is no plain LoRA, tensors
    that do not fit the model, and another rank than that of paths which the model already has.
    """
    folder = Path(folder)
    settings, tensors = _read(folder)
    linears = {(name, layer): linear for name, layer, linear in kernels(model)}
    used: set[str] = set()
    found: dict[tuple[str, int], tuple[np.ndarray, np.ndarray, float]] = {}
    for module, layer, names in _modules(model.config):
        stored = [f"{_PREFIX}{module}.lora_{matrix}.weight" for matrix in "AB"]
        if not set(stored) <= set(tensors):
            continue
        used |= set(stored)
        a, b = (tensors[name].T.astype(np.float32) for name in stored)
        rank = _pattern(settings, "rank_pattern", module, settings["r"])
        if not rank == a.shape[1] == b.shape[0]:
            raise WeightsError(
                f"{folder}: {module} has rank {a.shape[1]} in lora_A, {b.shape[0]} in lora_B, {rank} in the settings"
            )
        scale = _pattern(settings, "alpha_pattern", module, settings["lora_alpha"]) / rank
        ends = np.cumsum([_kernel(linears, name, layer).kernel.shape[-1] for name in names])[:-1]
        for name, part in zip(names, np.split(b, ends, axis=1)):
            wanted = _kernel(linears, name, layer).kernel.shape[-2:]
            if (a.shape[0], part.shape[1]) != wanted:
                raise WeightsError(f"{folder}: {module} is for a kernel {(a.shape[0], part.shape[1])}, {wanted} wanted")
            found[name, layer] = a, part, scale
    unused = sorted(set(tensors) - used)
    if unused or not found:
        raise WeightsError(f"{folder}/adapter_model.safetensors: no place for {unused[:3]} in a {model.config.family}")
    for (name, layer), linear in linears.items():
        _put(linear, name, layer, found, settings, folder)


def _put(linear: Linear, name: str, layer: int | None, found: dict, settings: dict, folder: Path) -> None:
    """`layer` None: all layers of a stacked kernel."""
    parts = [
        part for (other, i), part in sorted(found.items(), key=lambda item: item[0]) if other == name and layer in (None, i)
    ]
    if not parts:
        return
    if len({(a.shape, scale) for a, _, scale in parts}) > 1:
        raise WeightsError(f"{folder}: the layers of {name} differ in rank or alpha, which stacked layers cannot")
    a, b = (np.stack(matrices) if layer is None else matrices[0] for matrices in list(zip(*parts))[:2])
    if linear.lora is not None and linear.lora.a.shape != a.shape:
        raise WeightsError(
            f"{folder}: rank {a.shape[-1]} found for {name}, {linear.lora.a.shape[-1]} wanted, as the model has it"
        )
    linear.lora = LowRankPath(jnp.asarray(a), jnp.asarray(b), parts[0][2], settings.get("lora_dropout", 0.0), linear.dtype)


def _pattern(settings: dict, field: str, module: str, default: float) -> float:
    """PEFT's exceptions for modules whose names end in a pattern."""
    patterns = settings.get(field) or {}
    return next((value for end, value in patterns.items() if re.fullmatch(rf"(.*\.)?{end}", module)), default)


def save_adapter(model: Decoder, folder: str | Path, *, base: str, grown: bool = False) -> None:
    """Writes the model's LoRA paths as a PEFT folder; `base` names the pretrained model that they belong to.

    `grown`: the vocabulary has new rows, which PEFT keeps in the adapter as the whole embedding (and head). Where a family
    stores q, k and v as one module, its adapter has three times the rank. Of several processes that share the model all must
    call, and the first one writes. Raises WeightsError without paths.
    """
    folder, model = Path(folder), unstack(model)
    linears = {(name, layer): linear for name, layer, linear in kernels(model)}
    tensors, ranks, targets, path = {}, {}, set(), None
    for module, layer, names in _modules(model.config):
        paths = [linears[name, layer].lora for name in names]
        if all(one is None for one in paths):
            continue
        path = next(one for one in paths if one is not None)
        a, b = _side_by_side(paths, [linears[name, layer].kernel.shape[-1] for name in names])
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a.T)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b.T)
        target = _target(module)
        targets.add(target)
        if a.shape[1] != path.a.shape[1]:
            ranks[target] = a.shape[1]
    if path is None:
        raise WeightsError(f"{folder}: the model has no LoRA paths to write")
    if grown:
        tensors |= {_PREFIX + name: array for name, array in stored_vocabulary(model).items()}
    rank = path.a.shape[1]
    settings = {name: values[0] for name, values in _PLAIN.items()} | {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _number(path.scale * rank),
        "lora_dropout": path.dropout,
        "rank_pattern": ranks,
        "alpha_pattern": {target: _number(path.scale * found) for target, found in ranks.items()},
        "fan_in_fan_out": any(layout == CONV1D for _, layout in FAMILIES[model.config.family].names.values()),
        "target_modules": sorted(targets),
        "inference_mode": True,
        "init_lora_weights": True,
    }
    if jax.process_index():
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _number(value: float) -> float | int:
    """PEFT's own files have whole alphas without a point."""
    return int(value) if float(value).is_integer() else value


def _side_by_side(paths: list[LowRankPath | None], widths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """One path [n_in, 3R], [3R, 3 n_out] for several kernels that are stored as one module: b is block-diagonal."""
    first = next(path for path in paths if path is not None)
    if len(paths) == 1:
        return whole(first.a[...]), whole(first.b[...])
    rank, ends = first.a.shape[1], np.cumsum(widths)
    b = np.zeros((rank * len(paths), ends[-1]), np.float32)
    for i, (path, end, width) in enumerate(zip(paths, ends, widths)):
        if path is not None:
            b[i * rank : (i + 1) * rank, end - width : end] = whole(path.b[...])
    a = [np.zeros(first.a.shape, np.float32) if path is None else whole(path.a[...]) for path in paths]
    return np.concatenate(a, axis=1), b


def _read(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    path = folder / "adapter_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder}: no PEFT adapter, {Path(error.filename or 'adapter_model.safetensors').name} is missing"
        ) from error
    except (ValueError, SafetensorError) as error:
        raise WeightsError(f"{folder}: damaged or truncated: {error}") from error
    for field, known in _PLAIN.items():
        if settings.get(field, known[0]) not in known:
            raise WeightsError(f"{path}: {field} {settings[field]!r} found, one of {known} can be loaded")
    for field in ("r", "lora_alpha"):
        if not isinstance(settings.get(field), int | float) or settings[field] <= 0:
            raise WeightsError(f"{path}: {field} {settings.get(field)!r} found, a number above 0 wanted")
    return settings, tensors


def _modules(config: DecoderConfig) -> list[tuple[str, int, tuple[str, ...]]]:
    """(PEFT's module, layer, our kernels in it) of every linear map in the blocks."""
    family = FAMILIES[config.family]
    found = []
    for module, (ours, layout) in family.names.items():
        if layout in (LINEAR, CONV1D):
            head, _, rest = ours.removeprefix("blocks/{i}/").partition("(")
            names = tuple(head + part for part in rest.removesuffix(")").split("|"))
            if config.gated or names != ("mlp/gate",):
                found += [(family.prefix + module.format(i=i), i, names) for i in range(config.layers)]
    return found


def _kernel(linears: dict, name: str, layer: int) -> Linear:
    return linears[name, layer] if (name, layer) in linears else linears[name, None]


def _target(module: str) -> str:
    """PEFT matches the end of a module's name; GPT-2 has a c_proj in attention and in the MLP."""
    parts = module.split(".")
    return ".".join(parts[-2:]) if parts[-1] == "c_proj" else parts[-1]
