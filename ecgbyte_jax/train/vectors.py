"""Where a model reads vectors in the place of ECG tokens: how many, and the map that makes them, with its encoder's weights."""

from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from ecgbyte_jax.encoders.config import FEATURES_BY
from ecgbyte_jax.encoders.ecg_input import make_ecg_input
from ecgbyte_jax.encoders.encoder import make_encoder
from ecgbyte_jax.encoders.places import Places, feature_places
from ecgbyte_jax.errors import CheckpointError, ConfigError
from ecgbyte_jax.model.build import MakeEcgInput, Parts
from ecgbyte_jax.model.sharding import abstract
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.checkpoint import Checkpoints, DamagedCheckpointError

_TEXT = "params/encoder/text_in/kernel/value"  # of MERL: [features of a report, D]


def vectors_of(settings: Settings) -> int:
    """How many vectors an ECG becomes, 0 where it is read as tokens."""
    return 0 if settings.ecg_input.kind == "tokens" else settings.ecg_input.vectors


def check_tokens(settings: Settings, asked_for: str) -> None:
    """Raises ConfigError where a model reads vectors, and what is asked for is about its ECG tokens."""
    if settings.ecg_input.kind != "tokens":
        raise ConfigError(
            f"{asked_for}: not for a model of ecg_input.kind '{settings.ecg_input.kind}', which reads no ECG tokens"
        )


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


def with_encoder(parts: Parts, settings: Settings, workdir: Workdir, mesh: Mesh) -> Parts:
    """The model with the weights of its pretrained encoder, where it has one and is not read from a checkpoint.

    Raises CheckpointError where they are damaged, ConfigError where the encoder was trained for other signals or has other
    sizes.
    """
    pretrained = settings.encoder.pretrained
    if settings.ecg_input.kind != "encoder" or pretrained == "random":
        return parts
    loaded = _load(settings, Workdir(Path(pretrained)) if pretrained else workdir, mesh)
    for state in (parts.trained, parts.frozen):
        encoder = state.get("ecg_input", {}).get("encoder")
        if encoder and not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(encoder)):
            state["ecg_input"]["encoder"] = jax.tree.map_with_path(lambda path, _: loaded[path], encoder)
    return parts


def _load(settings: Settings, workdir: Workdir, mesh: Mesh) -> dict[tuple, jax.Array]:
    """The parameters and running statistics of a finished first stage's encoder, by their paths."""
    config, samples = settings.encoder, settings.signal.segment_length
    with closing(Checkpoints(workdir.pretrain.checkpoints, keep=None)) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise CheckpointError(f"{workdir.pretrain.checkpoints}: no checkpoint there; run --stage=pretrain again")
        _check_origin(checkpoints.about(step)["config"], settings, checkpoints.path(step))
        text_width, *_ = checkpoints.shapes(step).get(_TEXT, (1,))
        encoder = nnx.eval_shape(lambda: make_encoder(config, samples, nnx.Rngs(0), text_width))
        params, statistics = nnx.state(encoder, nnx.Param, nnx.BatchStat)
        like = {"params": {"encoder": params}, "statistics": {"encoder": statistics}}
        try:
            loaded = checkpoints.load(step, abstract(like, mesh))
        except DamagedCheckpointError as error:
            raise CheckpointError(f"{error}; remove that folder and run --stage=pretrain to have it again") from error
    return {path: leaf for part in loaded.values() for path, leaf in jax.tree.leaves_with_path(part["encoder"])}


def _check_origin(trained: dict[str, Any], settings: Settings, path: Path) -> None:
    """Raises ConfigError where an encoder was trained with other sizes, or for other signals."""
    ours = {f"encoder.{name}": getattr(settings.encoder, name) for name in FEATURES_BY}
    ours |= {f"signal.{name}": getattr(settings.signal, name) for name in ("segment_length", "target_rate")}
    for name, value in ours.items():
        part, field = name.split(".")
        if (expected := trained[part][field]) != value:
            raise ConfigError(f"{name}: {value!r} found, {expected!r} expected, with which the encoder in {path} was trained")
