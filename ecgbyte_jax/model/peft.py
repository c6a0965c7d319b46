"""Adapters as PEFT keeps them: `adapter_config.json` and `adapter_model.safetensors`, in and out.

Axes: R rank; n_in and n_out as in the kernel. PEFT's A is [R, n_in] and B [n_out, R]: ours turned.
"""

import json
import re
from collections import Counter
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
# Settings that would change what the adapter computes, with the values that mean the plain way. Other ways to initialise
# (PiSSA, OLoRA, CorDA, LoftQ) change the base model's weights too.
_PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "use_rslora": (False,),
    "layer_replication": (None,),
    "modules_to_save": (None, []),
    "lora_bias": (False,),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
}
_READ = ("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern")
# Settings that change nothing here: where the adapter is from, and which modules have one, which its tensors say too.
_IDLE = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "runtime_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *("megatron_core", "qalora_group_size"),  # count with megatron_config and use_qalora alone
)


def load_adapter(model: Decoder, folder: str | Path) -> None:
    """Puts the LoRA paths of a PEFT folder beside the model's kernels, in the place of all paths that are there.

    Where the blocks are stacked, layers that the adapter leaves out get paths of zeros. Raises WeightsError, naming file and
    field, for a missing or damaged file, an adapter that is no plain LoRA, tensors that do not fit the model, and another
    rank than that of paths which the model already has.
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
        a, b = (_matrix(tensors, name, folder) for name in stored)
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
    parts = {i: part for (other, i), part in found.items() if other == name and layer in (None, i)}
    if not parts:
        linear.lora = None
        return
    a, b, scale = next(iter(parts.values()))
    if len({(a.shape, scale) for a, _, scale in parts.values()}) > 1:
        raise WeightsError(f"{folder}: the layers of {name} differ in rank or alpha, which stacked layers cannot")
    if layer is None:
        none = np.zeros_like(a), np.zeros_like(b), scale
        a, b, _ = map(np.stack, zip(*(parts.get(i, none) for i in range(linear.kernel.shape[0]))))
    if linear.lora is not None and linear.lora.a.shape != a.shape:
        raise WeightsError(
            f"{folder}: rank {a.shape[-1]} found for {name}, {linear.lora.a.shape[-1]} wanted, as the model has it"
        )
    linear.lora = LowRankPath(jnp.asarray(a), jnp.asarray(b), scale, settings["lora_dropout"], linear.dtype)


def _pattern(settings: dict, field: str, module: str, default: float) -> float:
    """PEFT's exceptions for modules whose names end in a pattern, a regular expression; the first that fits counts."""
    return next((value for end, value in settings[field].items() if re.match(rf"(.*\.)?({end})$", module)), default)


def _matrix(tensors: dict[str, np.ndarray], name: str, folder: Path) -> np.ndarray:
    """Turned as it is used here, float32."""
    found = tensors[name]
    if found.ndim != 2 or not jnp.issubdtype(found.dtype, jnp.floating) or not np.isfinite(found).all():
        raise WeightsError(
            f"{folder}/adapter_model.safetensors: {name} {found.dtype} {found.shape} found, a matrix of finite numbers expected"
        )
    return found.T.astype(np.float32)


def save_adapter(model: Decoder, folder: str | Path, *, base: str, grown: bool = False) -> None:
    """Writes the model's LoRA paths as a PEFT folder; `base` names the pretrained model that they belong to.

    `grown`: the vocabulary has new rows, which PEFT keeps in the adapter as the whole embedding (and head). Where a family
    stores q, k and v as one module, its adapter has the ranks of all three together. Of several processes that share the model
    all must call, and the first one writes. Raises WeightsError without paths.
    """
    folder, model = Path(folder), unstack(model)
    linears = {(name, layer): linear for name, layer, linear in kernels(model)}
    tensors, ranks, alphas, modules, path = {}, {}, {}, [], None
    for module, layer, names in _modules(model.config):
        modules.append(module)
        paths = [linears[name, layer].lora for name in names]
        if all(one is None for one in paths):
            continue
        path = next(one for one in paths if one is not None)
        a, b = _side_by_side(paths, [linears[name, layer].kernel.shape[-1] for name in names])
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a.T)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b.T)
        ranks[module], alphas[module] = a.shape[1], _number(path.scale * a.shape[1])
    if path is None:
        raise WeightsError(f"{folder}: the model has no LoRA paths to write")
    if grown:
        tensors |= {_PREFIX + name: array for name, array in stored_vocabulary(model).items()}
    rank, alpha = (Counter(numbers.values()).most_common(1)[0][0] for numbers in (ranks, alphas))
    settings = {name: values[0] for name, values in _PLAIN.items()} | {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": path.dropout,
        "rank_pattern": {name: value for name, value in _by_target(ranks, modules).items() if value != rank},
        "alpha_pattern": {name: value for name, value in _by_target(alphas, modules).items() if value != alpha},
        "fan_in_fan_out": any(layout == CONV1D for _, layout in FAMILIES[model.config.family].names.values()),
        "target_modules": sorted(_by_target(ranks, modules)),
        "inference_mode": True,
    }
    if jax.process_index():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").unlink(missing_ok=True)  # an older one does not belong to the new tensors
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _by_target(numbers: dict[str, float], modules: list[str]) -> dict[str, float]:
    """A number for every module, by the end of the modules' names where all of a kind have the same, else by the whole name."""
    found = {}
    for target in dict.fromkeys(map(_target, numbers)):
        names = [module for module in modules if _target(module) == target]
        same = {numbers.get(name) for name in names}
        found |= {target: same.pop()} if len(same) == 1 else {name: numbers[name] for name in names if name in numbers}
    return found


def _number(value: float) -> float | int:
    """PEFT's own files have whole alphas without a point."""
    return int(value) if float(value).is_integer() else value


def _side_by_side(paths: list[LowRankPath | None], widths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """One path, scaled as the first, for several kernels that are stored as one module: b is block-diagonal."""
    first = next(path for path in paths if path is not None)
    if len(paths) == 1:
        return whole(first.a[...]), whole(first.b[...])
    ends = np.cumsum(widths)
    found = [(path, end - width, end) for path, width, end in zip(paths, widths, ends) if path is not None]
    b = np.zeros((sum(path.b.shape[0] for path, _, _ in found), ends[-1]), np.float32)
    row = 0
    for path, start, end in found:
        b[row : row + path.b.shape[0], start:end] = whole(path.b[...]) * (path.scale / first.scale)
        row += path.b.shape[0]
    return np.concatenate([whole(path.a[...]) for path, _, _ in found], axis=1), b


def _read(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    path = folder / "adapter_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder}: no PEFT adapter, {Path(error.filename or 'adapter_model.safetensors').name} is missing"
        ) from error
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise WeightsError(f"{folder}: damaged or truncated: {error}") from error
    except AttributeError as error:  # numpy has no such type
        raise WeightsError(f"{folder}/adapter_model.safetensors: tensors of a type that cannot be loaded: {error}") from error
    if not isinstance(settings, dict):
        raise WeightsError(f"{path}: an object with the adapter's settings expected")
    settings = {"lora_dropout": 0.0} | settings
    settings |= {field: settings.get(field) or {} for field in ("rank_pattern", "alpha_pattern")}
    _check(settings, path)
    return settings, tensors


def _check(settings: dict, path: Path) -> None:
    """Raises WeightsError for the first setting that cannot be loaded; those that are unknown here have to be empty."""
    for field, known in _PLAIN.items():
        if settings.get(field, known[0]) not in known:
            raise WeightsError(f"{path}: {field} {settings[field]!r:.60} found, one of {known} can be loaded")
    for field, value in settings.items():
        if field not in (*_PLAIN, *_READ, *_IDLE) and value not in (None, False, [], {}, ""):
            raise WeightsError(f"{path}: {field} {value!r:.60} found; only plain LoRA, which has none, can be loaded")
    dropout = settings["lora_dropout"]
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise WeightsError(f"{path}: lora_dropout {dropout!r:.60} found, 0 or more, below 1 expected")
    _check_number(settings.get("r"), int, f"{path}: r")
    _check_number(settings.get("lora_alpha"), int | float, f"{path}: lora_alpha")
    for field, kind in (("rank_pattern", int), ("alpha_pattern", int | float)):
        if not isinstance(settings[field], dict):
            raise WeightsError(f"{path}: {field} {settings[field]!r:.60} found, an object of patterns and numbers expected")
        for pattern, value in settings[field].items():
            _check_number(value, kind, f"{path}: {field} of {pattern!r:.60}")
            try:
                re.compile(f"({pattern})")
            except re.error as error:
                raise WeightsError(f"{path}: {field}: {pattern!r:.60} is no regular expression: {error}") from error


def _check_number(value: object, kind: type, where: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < 2**31:
        raise WeightsError(f"{where} {value!r:.60} found, a {'whole ' if kind is int else ''}number above 0 expected")


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
