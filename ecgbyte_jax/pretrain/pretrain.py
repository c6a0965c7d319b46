"""Stage `pretrain`: from clean signals to an encoder's checkpoints, the first stage of a two-stage baseline."""

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from ecgbyte_jax.encoders.config import SIZES, patch_grid
from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.inputs.batches import outlines_of
from ecgbyte_jax.inputs.plan import Plan
from ecgbyte_jax.inputs.shards import Sequence, read_manifest
from ecgbyte_jax.inputs.signals import open_signals, plan_segments, segments_of, signal_batches
from ecgbyte_jax.model.build import count
from ecgbyte_jax.model.sharding import check_batch_size, make_mesh, rows_here
from ecgbyte_jax.pretrain.clean import clean_signals
from ecgbyte_jax.pretrain.objective import (
    EncoderParts,
    build_encoder,
    make_encoder_step,
    make_encoder_validation,
    make_features,
)
from ecgbyte_jax.pretrain.probe import choose_questions, probe
from ecgbyte_jax.run.console import banner, console
from ecgbyte_jax.run.cost import counted
from ecgbyte_jax.run.processes import agree, leads
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.train.feed import Feed
from ecgbyte_jax.train.folder import TrainingFolder
from ecgbyte_jax.train.loop import Loop, Profile
from ecgbyte_jax.train.optim import make_optimizer
from ecgbyte_jax.train.step import abstract_state, start_state

_PROBED = 2000  # segments of a question, at most


def pretrain(settings: Settings, workdir: Workdir) -> None:
    """Runs the stage where it is not done, going on from the newest whole checkpoint of the same settings.

    The first time, the recordings are read again. Training, its checkpoints and what it displaces are as in stage `train`, in
    the folder pretrain/; health.json there says what the encoder restores and what a linear probe of its features tells.
    Raises ConfigError for patches that do not fill a segment, ShardsError where a split does not fill a batch.
    """
    patch_grid(settings.encoder, settings.signal.segment_length)
    stage = lineage.pretrained(settings, workdir)
    folder = TrainingFolder(stage, workdir.pretrain, partial(lineage.keep_settings, settings, workdir, "pretrain"))
    folder.take_back()
    if agree(stage.finished()):
        console.print("pretrain: settings and inputs have not changed, nothing to do")
        return
    mesh = make_mesh(**asdict(settings.mesh))
    check_batch_size(mesh, settings.pretrain.batch_size, "pretrain.batch_size")
    clean_signals(settings, workdir)
    with jax.set_mesh(mesh), counted(workdir, "pretrain", stage, jax.device_count(), keep=leads()):
        checkpoint, checksum, health = _train(settings, workdir, mesh, folder)
    banner("pretrained", health)
    if leads():
        folder.keep_settings()
        write_whole(workdir.pretrain.encoder_health, [json.dumps(health, indent=1).encode()])
        stage.finish([checkpoint], result=[stage.digest(), checksum])


@dataclass(frozen=True)
class _Data:
    """The prepared segments: all, the numbers of those of both splits, and what is asked about these."""

    signals: grain.MapDataset
    train: np.ndarray
    valid: np.ndarray
    asked: tuple[list[Sequence], list[Sequence]]

    @classmethod
    def open(cls, workdir: Workdir) -> "_Data":
        manifest = read_manifest(workdir.shards)
        train, valid = (outlines_of(workdir.shards, manifest, split) for split in ("train", "valid"))
        return cls(open_signals(workdir.signals), segments_of(train), segments_of(valid), (train, valid))


def _train(settings: Settings, workdir: Workdir, mesh: Mesh, folder: TrainingFolder) -> tuple[Path, int, dict[str, float]]:
    """The last checkpoint, its checksum, and the encoder's health."""
    how, seed, samples = settings.pretrain, settings.seed, settings.signal.segment_length
    data, rows = _Data.open(workdir), rows_here(mesh, how.batch_size)
    if len(data.train) * how.epochs < how.batch_size:
        raise ShardsError(
            f"{len(data.train)} training segments and {how.epochs} epochs found for pretrain.batch_size {how.batch_size}: at "
            "least one batch expected"
        )
    plan = plan_segments(len(data.train), how.batch_size, how.epochs, seed)
    batches = signal_batches(data.signals, data.train, plan, rows)
    about = {"config": json.loads(json.dumps(asdict(settings))), "digests": {"signals": folder.stage.inputs}, "seed": seed}
    with ExitStack() as opened:
        here = folder.open(about, how.keep_checkpoints, how.wandb_project, opened)
        resumed = here.resumed
        parts = build_encoder(settings.encoder, samples, seed, mesh, to_restore=resumed)
        optimizer, schedule = make_optimizer(settings.pretrain_optim, SIZES[settings.encoder.size][0].width, len(plan))
        like = abstract_state(parts.params, optimizer, mesh)
        state, start = here.newest(like)
        if state is None:
            parts = build_encoder(settings.encoder, samples, seed, mesh) if resumed else parts
            state = start_state(parts.params, optimizer, mesh)
        _show_start(settings, mesh, parts, data, plan, start)
        step = make_encoder_step(parts, optimizer, seed)
        validate = None
        if len(data.valid) >= how.batch_size:
            valid_plan = plan_segments(len(data.valid), how.batch_size, 1.0, seed)
            valid = signal_batches(data.signals, data.valid, valid_plan, rows)
            validate = make_encoder_validation(parts, valid, how.valid_batches, seed, mesh)

        def figures(number: int, seconds: float) -> dict[str, float]:
            return {"segments_per_s": round(how.batch_size / seconds, 1)}

        def examples(step: int) -> list[str]:
            return [f"segment {number}" for row in plan[step - 1].rows for number in data.train[row]]

        outputs = here.outputs(start)
        loop = Loop("pretrain", how, len(plan), None, schedule, figures, outputs, here.begin, about, examples)
        last = loop.run(state, start, Feed(batches, start, mesh), step, validate, Profile(workdir.pretrain.profile))
        written = loop.outputs.checkpoints
        written.wait()
        trained = written.load(last, {"params": like.params})["params"]
        health = (validate(trained) if validate else {}) | _variance(parts, trained, data)
        health |= _probe(settings, mesh, parts, data, trained)
        return written.path(last), written.checksum(last), health


def _variance(parts: EncoderParts, trained: Any, data: _Data) -> dict[str, float]:
    """The variance that validation segments have within themselves, to which a loss is to be compared."""
    if not len(data.valid):
        return {}
    patches = parts.merge(trained).cut(np.stack([data.signals[int(number)] for number in data.valid[:_PROBED]]))
    return {"valid_variance": float(np.var(patches, axis=(1, 2, 3)).mean())}


def _probe(settings: Settings, mesh: Mesh, parts: EncoderParts, data: _Data, trained: Any) -> dict[str, float]:
    """What a linear probe of the encoder's features scores, beside that of the encoder before its training."""
    questions = choose_questions(*data.asked, _PROBED)
    if not questions:
        return {}
    numbers = sorted({int(number) for question in questions for part in (question.train, question.valid) for number in part[0]})
    features = make_features(parts, data.signals, settings.pretrain.batch_size, mesh)
    start = build_encoder(settings.encoder, settings.signal.segment_length, settings.seed, mesh).params
    names = {"probe": trained, "probe_before_training": start}
    scores = {name: probe(questions, features(params, numbers)) for name, params in names.items()}
    chance = float(np.mean([1 / len(question.answers) for question in questions]))
    return {"probed_questions": len(questions)} | scores | {"probe_of_nothing": chance}


def _show_start(settings: Settings, mesh: Mesh, parts: EncoderParts, data: _Data, plan: Plan, start: int) -> None:
    encoder, size, device = settings.encoder, settings.pretrain.batch_size, jax.devices()[0]
    rows = {
        "devices": f"{jax.device_count()} x {device.device_kind}, {jax.process_count()} process(es)",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "encoder": f"{encoder.kind}, {encoder.size}: {count(parts.params):,} parameters with the decoder",
        "patches": f"{parts.grid.groups * parts.grid.patches} of {parts.grid.values} values in a segment",
        "training segments": f"{len(data.train)}; {len(data.valid)} for validation",
        "steps": f"{len(plan)} of {size} segments" + (f", going on from {start}" if start else ""),
    }
    if len(data.valid) < size:
        rows["validation"] = "none: the split holds fewer segments than a batch"
    banner("pretrain", rows)
