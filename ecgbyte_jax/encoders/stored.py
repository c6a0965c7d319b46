"""The map from signals to vectors as a folder beside a language model: what it is as JSON, its weights as safetensors."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ecgbyte_jax.encoders.config import FEATURES_BY, VISION, EcgInputConfig, EncoderConfig
from ecgbyte_jax.encoders.ecg_input import EcgInput, make_ecg_input
from ecgbyte_jax.errors import ConfigError, WeightsError

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def describe(config: EcgInputConfig, encoder: EncoderConfig, samples: int, rate: float) -> dict[str, Any]:
    """What a map is, in plain values; samples: of a segment; rate in Hz, 0: each recording's own."""
    described: dict[str, Any] = {"kind": config.kind, "vectors": config.vectors, "samples": samples, "rate_hz": rate or None}
    if config.kind == "encoder":
        features_by = {name: getattr(encoder, name) for name in FEATURES_BY}
        return described | {"connector": config.connector, "encoder": features_by}
    return described


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Each setting in which a stored map differs from that of the settings, with both values."""
    names = {"samples": "signal.segment_length", "rate_hz": "signal.target_rate"}
    there, here = (
        {names.get(name, f"ecg_input.{name}"): value for name, value in part.items() if name not in ("encoder", "width")}
        | {f"encoder.{name}": value for name, value in part.get("encoder", {}).items()}
        for part in (theirs, ours)
    )
    return [
        f"{name} {there.get(name)!r} found, {here.get(name)!r} in the settings"
        for name in there | here
        if there.get(name) != here.get(name)
    ]


def save_ecg_input(ecg_input: EcgInput, folder: Path, described: dict[str, Any], width: int) -> None:
    """Writes a map that every process holds whole into a folder of its own; width: of its vectors.

    Raises OSError, or SafetensorError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.asarray(leaf[...]) for name, leaf in _by_name(nnx.state(ecg_input)).items()}
    save_file(tensors, folder / _WEIGHTS)
    encoder = described.get("encoder", {})
    otherwise = "a picture of mV / 3 + 1/2" if encoder.get("kind") in VISION else "mV / 0.2"
    published = f"0..{1000 if encoder.get('kind') == 'merl' else 1} over each segment"
    about = {
        "width": width,
        "reads": "clean segments float32 [segments, 12, samples] in mV, leads as in input.json",
        "scaling": published if encoder.get("published_scaling") else otherwise,
        "gives": "float32 [segments, vectors, width], in place of the embeddings between <sig_start> and <sig_end>",
    }
    (folder / _CONFIG).write_text(f"{json.dumps(described | about, indent=1)}\n", encoding="utf-8")


def read_description(folder: Path) -> dict[str, Any]:
    """What a stored map is; raises WeightsError where its config.json is missing or damaged."""
    path = folder / _CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {"kind", "vectors", "samples", "rate_hz", *(("connector", "encoder") if content["kind"] == "encoder" else ())}
        return {name: content[name] for name in content if name in names} | {"width": int(content["width"])}
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise WeightsError(f"{path}: damaged, or not what --stage=export writes: {error!r:.200}") from error


def load_ecg_input(folder: Path) -> EcgInput:
    """The map in a folder; raises WeightsError, naming the file, where it is missing, damaged, or not as it is described."""
    described, path = read_description(folder), folder / _WEIGHTS
    try:
        config = EcgInputConfig(described["kind"], described["vectors"], described.get("connector", "linear"))
        encoder = EncoderConfig(**described.get("encoder", {}))
        shapes: Any = nnx.eval_shape(
            lambda: make_ecg_input(config, encoder, described["samples"], described["width"], nnx.Rngs(0))
        )
        tensors = load_file(path)
    except (ConfigError, TypeError) as error:
        raise WeightsError(f"{folder / _CONFIG}: no map that can be made: {error}") from error
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: missing or damaged: {error}") from error
    graphdef, state = nnx.split(shapes)
    expected = _by_name(state)
    problems = [f"no {name}" for name in expected.keys() - tensors.keys()]
    problems += [f"no place for {name}" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} is {array.dtype} {array.shape}, float32 {expected[name].shape} expected"
        if (array.dtype, array.shape) != (np.float32, expected[name].shape)
        else f"{name} holds values that are not finite"
        for name, array in tensors.items()
        if name in expected
        and not (array.dtype == np.float32 and array.shape == expected[name].shape and np.isfinite(array).all())
    ]
    if problems:
        raise WeightsError(f"{path}: the weights do not fit {_CONFIG}: {'; '.join(sorted(problems)[:3])}")
    filled = jax.tree.map_with_path(lambda at, _: jax.numpy.asarray(tensors[_name(at)]), state)
    return nnx.merge(graphdef, filled)


def _by_name(state: nnx.State) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
