"""Where a model reads vectors in place of ECG tokens: how many, and the map that makes them, with its encoder's weights."""

from contextlib import closing
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ecgbyte_jax.encoders.config import FEATURES_BY, FOLDER, LEADS, EncoderConfig
from ecgbyte_jax.encoders.ecg_input import EcgInput, make_ecg_input
from ecgbyte_jax.encoders.encoder import make_encoder
from ecgbyte_jax.encoders.places import Places, feature_places
from ecgbyte_jax.encoders.stored import describe, differences, load_ecg_input, read_description
from ecgbyte_jax.errors import CheckpointError, ConfigError, WeightsError
from ecgbyte_jax.model.build import MakeEcgInput, Parts
from ecgbyte_jax.model.hf import locate
from ecgbyte_jax.model.sharding import abstract, place
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.checkpoint import Checkpoints, DamagedCheckpointError

# What reads a text, whose size the settings do not tell: of MERL [features of a report, D], of CLIP [words, D].
_TEXTS = ("params/encoder/text_in/kernel/value", "params/encoder/text/words/value")


def vectors_of(settings: Settings) -> int:
    """How many vectors an ECG becomes, 0 where it is read as tokens."""
    return 0 if settings.ecg_input.kind == "tokens" else settings.ecg_input.vectors


def places_of(settings: Settings) -> Places | None:
    """Where what vectors are made of lies in a segment; None where a model reads tokens, or one vector of all samples alike."""
    if settings.ecg_input.kind == "tokens":
        return None
    return feature_places(settings.ecg_input, settings.encoder, settings.signal.segment_length)


def check_drawable(settings: Settings, asked_for: str) -> None:
    """Raises ConfigError where the weight of an ECG cannot be told apart by samples."""
    if settings.ecg_input.kind != "tokens" and places_of(settings) is None:
        raise ConfigError(
            f"{asked_for}: not for a model of ecg_input.kind '{settings.ecg_input.kind}' with one vector, which stands for all "
            "samples of an ECG alike; --stage=report has the shares of the ECG and of the question's words"
        )


def input_of(settings: Settings) -> MakeEcgInput:
    """Makes the map from signals to vectors with random weights; None where a model reads tokens."""
    if settings.ecg_input.kind == "tokens":
        return None
    samples = settings.signal.segment_length
    return lambda width, rngs: make_ecg_input(settings.ecg_input, settings.encoder, samples, width, rngs)


def training_flops(settings: Settings, width: int) -> float:
    """What one ECG's vectors take in training: forward, and twice as much backward for what is trained; 0 for tokens."""
    make = input_of(settings)
    if make is None:
        return 0.0
    shapes = nnx.eval_shape(lambda: make(width, nnx.Rngs(0)))
    frozen = shapes.encoder.flops() if shapes.frozen else 0.0
    return 3 * shapes.flops() - 2 * frozen


def activation_bytes(settings: Settings, width: int) -> int:
    """What one ECG's vectors keep for the backward pass at most, since compilers compute some again; 0 for tokens.

    For a frozen encoder these are its features alone.
    """
    make = input_of(settings)
    if make is None:
        return 0
    module = nnx.eval_shape(lambda: make(width, nnx.Rngs(0)))

    def is_trained(path: tuple, parameter: Any) -> bool:
        return issubclass(parameter.type, nnx.Param) and path[0] not in module.frozen

    graphdef, trained, frozen = nnx.split(module, is_trained, ...)

    def backward(trained: nnx.State, frozen: nnx.State, signals: jax.Array) -> Any:
        return jax.vjp(lambda part: nnx.merge(graphdef, part, frozen)(signals), trained)[1]

    def kept(ecgs: int) -> int:
        signals = jax.ShapeDtypeStruct((ecgs, LEADS, settings.signal.segment_length), jnp.float32)
        leaves = jax.tree.leaves(jax.eval_shape(backward, trained, frozen, signals))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    return kept(2) - kept(1)  # without the weights, which are there anyway


def described(settings: Settings) -> dict[str, Any]:
    """The map from signals to vectors in plain values, see `encoders.stored`."""
    return describe(settings.ecg_input, settings.encoder, settings.signal.segment_length, settings.signal.target_rate)


def stored_map(settings: Settings, folder: Path) -> Path | None:
    """The folder of the map that a language model's folder brings; None where it has none.

    Raises ConfigError where it is not that of the settings, WeightsError where it cannot be read.
    """
    path = folder / FOLDER
    if not path.is_dir():
        return None
    theirs = read_description(path)
    if settings.ecg_input.kind == "tokens":
        different = [f"ecg_input.kind {theirs['kind']!r} found, 'tokens' in the settings"]
    else:
        different = differences(theirs, described(settings))
    if different:
        raise ConfigError(f"{path}: {'; '.join(different)}; the settings that it was exported with expected")
    return path


def pretrained_map(settings: Settings) -> Path | None:
    """The `stored_map` of `model.pretrained`; raises ConfigError as well where another encoder than its own is asked for."""
    folder = locate(settings.model.pretrained) if settings.model.pretrained else None
    path = stored_map(settings, folder) if folder and folder.is_dir() else None
    if path and settings.ecg_input.kind == "encoder" and settings.encoder.pretrained:
        raise ConfigError(
            f"encoder.pretrained: '{settings.encoder.pretrained}' found, '' expected: model.pretrained '{folder}' brings an "
            "encoder"
        )
    return path


def has_first_stage(settings: Settings) -> bool:
    """Whether a model reads an encoder that a first stage trains, here or in another run; raises as `pretrained_map`."""
    return settings.ecg_input.kind == "encoder" and settings.encoder.pretrained != "random" and not pretrained_map(settings)


def load_map(path: Path, width: int, mesh: Mesh) -> EcgInput:
    """A stored map on the mesh; raises WeightsError where it cannot be read, or its vectors have not the model's width."""
    if (found := read_description(path)["width"]) != width:
        raise WeightsError(f"{path}: vectors of width {found} found, {width} expected, that of the language model")
    ecg_input = load_ecg_input(path)
    nnx.update(ecg_input, place({"ecg_input": nnx.state(ecg_input)}, mesh)["ecg_input"])
    return ecg_input


def with_stored(parts: Parts, settings: Settings, workdir: Workdir, mesh: Mesh) -> Parts:
    """The model with what is stored of its map from signals, where it has one and is not read from a checkpoint.

    That is all of it where `model.pretrained` brings one, else its pretrained encoder. Raises CheckpointError or WeightsError
    where they are damaged, ConfigError where they were trained for other signals or have other sizes.
    """
    if path := pretrained_map(settings):
        state = nnx.state(load_map(path, parts.config.width, mesh))
        return _filled(parts, dict(jax.tree.leaves_with_path({"ecg_input": state})), ("ecg_input",))
    pretrained = settings.encoder.pretrained
    if settings.ecg_input.kind != "encoder" or pretrained == "random":
        return parts
    return _filled(parts, _load(settings, Workdir(Path(pretrained)) if pretrained else workdir, mesh), ("ecg_input", "encoder"))


def _filled(parts: Parts, loaded: dict[tuple, jax.Array], within: tuple[str, ...]) -> Parts:
    """The model with the loaded parameters below `within`, but for those that are left to a checkpoint."""
    keys = tuple(map(jax.tree_util.DictKey, within))

    def fill(path: tuple, leaf: Any) -> Any:
        is_within = path[: len(keys)] == keys and not isinstance(leaf, jax.ShapeDtypeStruct)
        return loaded[path] if is_within else leaf

    trained, frozen = (jax.tree.map_with_path(fill, state) for state in (parts.trained, parts.frozen))
    return replace(parts, trained=trained, frozen=frozen)


def _load(settings: Settings, workdir: Workdir, mesh: Mesh) -> dict[tuple, jax.Array]:
    """The parameters and running statistics of a finished first stage's encoder, by their paths."""
    config, samples = settings.encoder, settings.signal.segment_length
    with closing(Checkpoints(workdir.pretrain.checkpoints, keep=None)) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise CheckpointError(f"{workdir.pretrain.checkpoints}: no checkpoint there; run --stage=pretrain again")
        _check_origin(checkpoints.about(step)["config"], settings, checkpoints.path(step))
        shapes = checkpoints.shapes(step)
        text_size, *_ = next((shapes[name] for name in _TEXTS if name in shapes), (1,))
        encoder = nnx.eval_shape(lambda: make_encoder(config, samples, nnx.Rngs(0), text_size))
        params, statistics = nnx.state(encoder, nnx.Param, nnx.BatchStat)
        like = {"params": {"encoder": params}, "statistics": {"encoder": statistics}}
        try:
            loaded = checkpoints.load(step, abstract(like, mesh))
        except DamagedCheckpointError as error:
            raise CheckpointError(f"{error}; remove that folder and run --stage=pretrain to have it again") from error
    return dict(chain(*(jax.tree.leaves_with_path({"ecg_input": part}) for part in loaded.values())))


def _check_origin(trained: dict[str, Any], settings: Settings, path: Path) -> None:
    """Raises ConfigError where an encoder was trained with other sizes, or for other signals."""
    ours = {f"encoder.{name}": getattr(settings.encoder, name) for name in FEATURES_BY}
    ours |= {f"signal.{name}": getattr(settings.signal, name) for name in ("segment_length", "target_rate")}
    trained = trained | {"encoder": asdict(EncoderConfig()) | trained["encoder"]}  # which may be older than some settings
    for name, value in ours.items():
        part, field = name.split(".")
        if (expected := trained[part][field]) != value:
            raise ConfigError(f"{name}: {value!r} found, {expected!r} expected, with which the encoder in {path} was trained")
