"""Reads and writes PEFT's adapters: `adapter_config.json` and `adapter_model.safetensors`.

Axes: R rank, n_in and n_out of the kernel. PEFT's A is [R, n_in] and B [n_out, R]: the transposes of ours.
"""

import json
import re
from collections import Counter
from pathlib import Path
from types import UnionType

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.decoder import Decoder, unstack
from ecgbyte_jax.model.families.table import CONV1D, FAMILIES, LINEAR
from ecgbyte_jax.model.hf import stored_vocabulary, whole
from ecgbyte_jax.model.layers import Linear
from ecgbyte_jax.model.lora import LowRankPath, kernels

_PREFIX = "base_model.model."
# Settings that change what the adapter computes, with the values of plain LoRA. Other initialisations (PiSSA, OLoRA, CorDA,
# LoftQ) also change the weights of the base model.
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
# Settings without effect here: where the adapter is from, and which modules have one, which the tensors also show.
_IDLE = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "runtime_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *("megatron_core", "qalora_group_size"),  # take effect only with megatron_config and use_qalora
)


def load_adapter(model: Decoder, folder: str | Path) -> None:
    """Adds the LoRA paths of a PEFT folder to the model's kernels, in place of any paths that the model has.

    Where the blocks are stacked, layers without an adapter get paths of zeros. Raises WeightsError, naming file and field, for
    a missing or damaged file, an adapter that is not plain LoRA, tensors that do not fit the model, and a rank other than that
    of the model's own paths.
    """
    folder = Path(folder)
    settings, tensors = _read(folder)
    linears = {(name, layer): linear for name, layer, linear in kernels(model)}
    used: set[str] = set()
    paths: dict[tuple[str, int], tuple[np.ndarray, np.ndarray, float]] = {}
    for module, layer, names in _modules(model.config, linears):
        stored = [f"{_PREFIX}{module}.lora_{matrix}.weight" for matrix in "AB"]
        if not set(stored) <= set(tensors):
            continue
        used |= set(stored)
        a, b = (_matrix(tensors, name, folder) for name in stored)
        rank = _pattern(settings, "rank_pattern", module, settings["r"])
        if not rank == a.shape[1] == b.shape[0]:
            raise WeightsError(
                f"{folder}: {module}: rank {a.shape[1]} in lora_A, {b.shape[0]} in lora_B found, {rank} of the config expected"
            )
        scale = _pattern(settings, "alpha_pattern", module, settings["lora_alpha"]) / rank
        ends = np.cumsum([_kernel(linears, name, layer).kernel.shape[-1] for name in names])[:-1]
        for name, part in zip(names, np.split(b, ends, axis=1)):
            shape = _kernel(linears, name, layer).kernel.shape[-2:]
            if (a.shape[0], part.shape[1]) != shape:
                raise WeightsError(f"{folder}: {module}: kernel {(a.shape[0], part.shape[1])} found, {shape} expected")
            paths[name, layer] = a, part, scale
    unused = sorted(set(tensors) - used)
    if unused or not paths:
        raise WeightsError(f"{folder}/adapter_model.safetensors: no place for {unused[:3]} in a {model.config.family}")
    for (name, kernel_layer), linear in linears.items():
        _put(linear, name, kernel_layer, paths, settings, folder)


def _put(linear: Linear, name: str, layer: int | None, paths: dict, settings: dict, folder: Path) -> None:
    """Replaces the path of one kernel; `layer` None: of all layers of a stacked kernel."""
    by_layer = {i: path for (other, i), path in paths.items() if other == name and layer in (None, i)}
    if not by_layer:
        linear.lora = None
        return
    a, b, scale = next(iter(by_layer.values()))
    if len({(a.shape, scale) for a, _, scale in by_layer.values()}) > 1:
        raise WeightsError(f"{folder}: the layers of {name} differ in rank or alpha; set model.scan_from to 0")
    if layer is None:
        zeros = np.zeros_like(a), np.zeros_like(b), scale
        a, b, _ = map(np.stack, zip(*(by_layer.get(i, zeros) for i in range(linear.kernel.shape[0]))))
    if linear.lora is not None and linear.lora.a.shape != a.shape:
        raise WeightsError(
            f"{folder}: rank {a.shape[-1]} found for {name}, the model's rank {linear.lora.a.shape[-1]} expected"
        )
    linear.lora = LowRankPath(jnp.asarray(a), jnp.asarray(b), scale, settings["lora_dropout"], linear.dtype)


def _pattern(settings: dict, field: str, module: str, default: float) -> float:
    """PEFT's value for modules whose names end in a pattern, a regular expression; the first match counts."""
    return next((value for end, value in settings[field].items() if re.match(rf"(.*\.)?({end})$", module)), default)


def _matrix(tensors: dict[str, np.ndarray], name: str, folder: Path) -> np.ndarray:
    """The transpose, in float32."""
    matrix = tensors[name]
    if matrix.ndim != 2 or not jnp.issubdtype(matrix.dtype, jnp.floating) or not np.isfinite(matrix).all():
        about = f"{matrix.dtype} {matrix.shape}"
        raise WeightsError(f"{folder}/adapter_model.safetensors: {name} {about} found, a matrix of finite numbers expected")
    return matrix.T.astype(np.float32)


def save_adapter(model: Decoder, folder: str | Path, *, base: str, grown: bool = False) -> None:
    """Writes the model's LoRA paths as a PEFT folder; `base` names the pretrained model that they belong to.

    `grown`: the vocabulary has new rows, for which PEFT keeps the complete embedding (and head) in the adapter. Where a family
    stores q, k and v as one module, the rank of its adapter is the sum of their ranks. All processes that share the model must
    call this, and the first one writes. Raises WeightsError for a model without paths.
    """
    folder, model = Path(folder), unstack(model)
    linears = {(name, layer): linear for name, layer, linear in kernels(model)}
    tensors, ranks, alphas, modules, path = {}, {}, {}, [], None
    for module, layer, names in _modules(model.config, linears):
        modules.append(module)
        paths = [linears[name, layer].lora for name in names]
        present = [own for own in paths if own is not None]
        if not present:
            continue
        path = present[0]
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
    (folder / "adapter_config.json").unlink(missing_ok=True)  # an older config does not fit the new tensors
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _by_target(numbers: dict[str, float], modules: list[str]) -> dict[str, float]:
    """The modules' numbers, by the end of their names where all modules with that end agree, else by full name."""
    by_target: dict[str, float] = {}
    for target in dict.fromkeys(map(_target, numbers)):
        names = [module for module in modules if _target(module) == target]
        own = {name: numbers[name] for name in names if name in numbers}
        agree = len(own) == len(names) and len(set(own.values())) == 1
        by_target |= {target: next(iter(own.values()))} if agree else own
    return by_target


def _number(value: float) -> float | int:
    """An int where the value is whole, as in PEFT's own files."""
    return int(value) if float(value).is_integer() else value


def _side_by_side(paths: list[LowRankPath | None], widths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) of one path for several kernels that are stored as one module: b is block-diagonal, scaled as the first path."""
    first = next(path for path in paths if path is not None)
    if len(paths) == 1:
        return whole(first.a[...]), whole(first.b[...])
    ends = np.cumsum(widths)
    spans = [(path, end - width, end) for path, width, end in zip(paths, widths, ends) if path is not None]
    b = np.zeros((sum(path.b.shape[0] for path, _, _ in spans), ends[-1]), np.float32)
    row = 0
    for path, start, end in spans:
        b[row : row + path.b.shape[0], start:end] = whole(path.b[...]) * (path.scale / first.scale)
        row += path.b.shape[0]
    return np.concatenate([whole(path.a[...]) for path, _, _ in spans], axis=1), b


def _read(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    path = folder / "adapter_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder}: not a PEFT adapter: {Path(error.filename or 'adapter_model.safetensors').name} is missing"
        ) from error
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise WeightsError(f"{folder}: damaged or truncated: {error}") from error
    except AttributeError as error:  # a dtype that NumPy lacks
        raise WeightsError(f"{folder}/adapter_model.safetensors: tensors of a dtype that cannot be loaded: {error}") from error
    if not isinstance(settings, dict):
        raise WeightsError(f"{path}: a JSON object with the adapter's settings expected")
    settings = {"lora_dropout": 0.0} | settings
    settings |= {field: settings.get(field) or {} for field in ("rank_pattern", "alpha_pattern")}
    _check(settings, path)
    return settings, tensors


def _check(settings: dict, path: Path) -> None:
    """Raises WeightsError for the first setting that is not supported; settings unknown here must be empty."""
    for field, known in _PLAIN.items():
        if settings.get(field, known[0]) not in known:
            raise WeightsError(f"{path}: {field} {settings[field]!r:.60} found, one of {known} expected")
    for field, value in settings.items():
        if field not in (*_PLAIN, *_READ, *_IDLE) and value not in (None, False, [], {}, ""):
            raise WeightsError(f"{path}: {field} {value!r:.60} found, none expected: only plain LoRA can be loaded")
    dropout = settings["lora_dropout"]
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise WeightsError(f"{path}: lora_dropout {dropout!r:.60} found, a number from 0 to below 1 expected")
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
                raise WeightsError(f"{path}: {field}: {pattern!r:.60} found, a regular expression expected: {error}") from error


def _check_number(value: object, kind: type | UnionType, where: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < 2**31:
        raise WeightsError(f"{where} {value!r:.60} found, a {'whole ' if kind is int else ''}number above 0 expected")


def _modules(config: DecoderConfig, linears: dict) -> list[tuple[str, int, tuple[str, ...]]]:
    """(PEFT's module, layer, our kernels in it) of every linear map in the blocks, which are `linears` by name and layer."""
    family = FAMILIES[config.family]
    modules = []
    for module, (ours, layout) in family.names.items():
        if layout in (LINEAR, CONV1D):
            head, _, rest = ours.removeprefix("blocks/{i}/").partition("(")
            names = tuple(head + part for part in rest.removesuffix(")").split("|"))
            layers = (i for i in range(config.layers) if {(names[0], i), (names[0], None)} & linears.keys())
            modules += [(family.prefix + module.format(i=i), i, names) for i in layers]
    return modules


def _kernel(linears: dict, name: str, layer: int) -> Linear:
    return linears[name, layer] if (name, layer) in linears else linears[name, None]


def _target(module: str) -> str:
    """The end of a module's name, which PEFT matches; GPT-2 has a c_proj in attention and another in the MLP."""
    parts = module.split(".")
    return ".".join(parts[-2:]) if parts[-1] == "c_proj" else parts[-1]
