"""Stage `pretrain`: from clean signals, and reports, to an encoder's checkpoints, the first stage of a two-stage baseline."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from ecgbyte_jax.encoders.clip import Clip
from ecgbyte_jax.encoders.config import (
    CONTRASTED,
    MASKED,
    SHARED_WIDTH,
    SIZES,
    EncoderConfig,
    count_features,
    patch_grid,
    vision_of,
)
from ecgbyte_jax.encoders.merl import Merl
from ecgbyte_jax.encoders.vit import MaskedViT
from ecgbyte_jax.errors import ConfigError, ShardsError, WeightsError
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
    batch_shapes,
    build_encoder,
    make_encoder_step,
    make_encoder_validation,
    make_features,
    objective_flops,
)
from ecgbyte_jax.pretrain.probe import choose_questions, probe
from ecgbyte_jax.pretrain.reports import ReportFeatures, Reports, ReportTokens, write_features
from ecgbyte_jax.pretrain.seen import count_segments
from ecgbyte_jax.pretrain.text_encoder import read_bert, report_flops
from ecgbyte_jax.pretrain.vision_weights import read_vision
from ecgbyte_jax.run.console import banner, console
from ecgbyte_jax.run.cost import counted
from ecgbyte_jax.run.processes import agree, leads, wait_for_all
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.train.feed import Feed
from ecgbyte_jax.train.folder import TrainingFolder
from ecgbyte_jax.train.loop import Loop, Profile
from ecgbyte_jax.train.optim import make_optimizer
from ecgbyte_jax.train.step import TrainState, abstract_state, start_state

_PROBED = 2000  # segments of a question, at most


def pretrain(settings: Settings, workdir: Workdir) -> None:
    """Runs the stage where it is not done, going on from the newest whole checkpoint of the same settings.

    The first time, the recordings are read again. Training, its checkpoints and what it displaces are as in stage `train`, in
    the folder pretrain/; health.json there says what the encoder restores and what a linear probe of its features tells.
    Raises ConfigError for patches that do not fill a segment and for batches of one that are to be contrasted, WeightsError for
    a folder of another model than the settings name, ShardsError where a split does not fill a batch or says the same of all
    its segments.
    """
    _check_encoder(settings)
    stage = lineage.pretrained(settings, workdir)
    folder = TrainingFolder(stage, workdir.pretrain, partial(lineage.keep_settings, settings, workdir, "pretrain"))
    folder.take_back()
    if agree(stage.finished()):
        console.print("pretrain: settings and inputs have not changed, nothing to do")
        return
    mesh = make_mesh(**asdict(settings.mesh))
    check_batch_size(mesh, settings.pretrain.batch_size, "pretrain.batch_size")
    if settings.encoder.kind == "merl":
        _write_reports(settings, workdir)
    clean_signals(settings, workdir)
    with jax.set_mesh(mesh), counted(workdir, "pretrain", stage, jax.devices(), keep=leads()) as cost:
        checkpoint, checksum, health, seen = _train(settings, workdir, mesh, folder)
        cost["seen"] = seen
    banner("pretrained", health)
    if leads():
        folder.keep_settings()
        write_whole(workdir.pretrain.encoder_health, [json.dumps(health, indent=1).encode()])
        stage.finish([checkpoint], result=[stage.digest(), checksum])


def _check_encoder(settings: Settings) -> None:
    """Refuses what cannot work before anything is read."""
    encoder, size = settings.encoder, settings.pretrain.batch_size
    count_features(encoder, settings.signal.segment_length)
    if encoder.kind in CONTRASTED and size < 2:
        raise ConfigError(
            f"pretrain.batch_size: {size} found with kind '{encoder.kind}', which contrasts the segments of a batch; 2 expected"
        )
    if encoder.text_encoder:
        read_bert(Path(encoder.text_encoder))
    if encoder.weights:
        read_vision(encoder)


def _write_reports(settings: Settings, workdir: Workdir) -> None:
    """Encodes the answers about each segment, unless an earlier command has."""
    stage = lineage.reports(settings, workdir)
    if leads() and not stage.finished():
        manifest = read_manifest(workdir.shards)
        reports = Reports.of([each for split in ("train", "valid") for each in outlines_of(workdir.shards, manifest, split)])
        stage.begin()
        with counted(workdir, "reports", stage, jax.local_devices()) as cost:
            write_features(workdir.report_features, reports, settings.encoder.text_encoder)
            cost["seen"] = {
                "texts": len(reports.texts),
                "flops": len(reports.texts) * report_flops(settings.encoder.text_encoder),
            }
        stage.finish([workdir.report_features])
    wait_for_all("the reports are encoded")


@dataclass(frozen=True)
class _Data:
    """The prepared segments: all, the numbers of those of both splits, what is asked about these, and their reports."""

    signals: grain.MapDataset
    train: np.ndarray
    valid: np.ndarray
    asked: tuple[list[Sequence], list[Sequence]]
    reports: ReportFeatures | ReportTokens | None

    @classmethod
    def open(cls, workdir: Workdir, encoder: EncoderConfig) -> "_Data":
        manifest = read_manifest(workdir.shards)
        train, valid = (outlines_of(workdir.shards, manifest, split) for split in ("train", "valid"))
        signals = open_signals(workdir.signals)
        if encoder.kind not in CONTRASTED:
            return cls(signals, segments_of(train), segments_of(valid), (train, valid), None)
        reports = Reports.of(train + valid)
        numbers = [segments_of([each for each in split if len(each.ecgs) == 1]) for split in (train, valid)]
        different = {reports.of_segment[int(number)] for number in numbers[0]}
        if len(different) < 2:
            raise ShardsError(
                f"{workdir.shards}: {len(different)} different reports found of {len(numbers[0])} training segments, at least "
                f"2 expected for kind '{encoder.kind}', which tells them apart"
            )
        if encoder.kind == "merl":
            return cls(signals, *numbers, (train, valid), ReportFeatures.open(workdir.report_features, reports))
        return cls(signals, *numbers, (train, valid), _tokens(workdir, encoder, reports))


def _tokens(workdir: Workdir, encoder: EncoderConfig, reports: Reports) -> ReportTokens:
    """By the tokenizer of the weights that CLIP starts from, or that of this run."""
    if not encoder.weights:
        return ReportTokens.of(reports, workdir.text_tokenizer)
    tokens, words = ReportTokens.of(reports, Path(encoder.weights)), read_vision(encoder)
    if tokens.size > words:
        raise WeightsError(
            f"encoder.weights: {encoder.weights}: a tokenizer of {tokens.size} tokens found, vocab_size {words} in "
            "config.json at most expected"
        )
    return replace(tokens, size=words)


def _train(
    settings: Settings, workdir: Workdir, mesh: Mesh, folder: TrainingFolder
) -> tuple[Path, int, dict[str, float], dict[str, Any]]:
    """The last checkpoint, its checksum, the encoder's health, and what the training has seen."""
    how, seed, samples = settings.pretrain, settings.seed, settings.signal.segment_length
    data, rows = _Data.open(workdir, settings.encoder), rows_here(mesh, how.batch_size)
    text_size = data.reports.size if data.reports else 0
    build = partial(build_encoder, settings.encoder, samples, seed, mesh, text_size)
    if len(data.train) * how.epochs < how.batch_size:
        raise ShardsError(
            f"{len(data.train)} training segments and {how.epochs} epochs found for pretrain.batch_size {how.batch_size}: at "
            "least one batch expected"
        )
    plan = plan_segments(len(data.train), how.batch_size, how.epochs, seed)
    batches = signal_batches(data.signals, data.train, plan, rows, data.reports)
    about = {"config": json.loads(json.dumps(asdict(settings))), "digests": {"signals": folder.stage.inputs}, "seed": seed}
    with ExitStack() as opened:
        here = folder.open(about, how.keep_checkpoints, how.wandb_project, opened)
        resumed = here.resumed
        parts = build(to_restore=resumed)
        optimizer, schedule = make_optimizer(settings.pretrain_optim, _width(settings.encoder), len(plan))
        like = abstract_state(parts.params, optimizer, mesh, parts.statistics)
        state, start = here.newest(like)
        if state is None:
            parts = build() if resumed else parts
            state = start_state(parts.params, optimizer, mesh, parts.statistics)
        _show_start(settings, mesh, parts, data, plan, start)
        step = make_encoder_step(parts, optimizer, seed)
        validate = None
        if len(data.valid) >= how.batch_size:
            valid_plan = plan_segments(len(data.valid), how.batch_size, 1.0, seed)
            valid = signal_batches(data.signals, data.valid, valid_plan, rows, data.reports)
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
        trained = replace(like, **written.load(last, {"params": like.params, "statistics": like.statistics}))
        health = (validate(trained) if validate else {}) | _of_nothing(how.batch_size, parts, trained, data)
        health |= _probe(settings, mesh, parts, data, trained, build)
        flops = objective_flops(parts, batch_shapes(settings.encoder, how.batch_size, samples, text_size, mesh))
        seen = count_segments(data.asked[0], data.train, plan, last, flops) if leads() else {}
        return written.path(last), written.checksum(last), health, seen | {"trained_parameters": count(parts.params)}


def _width(encoder: EncoderConfig) -> int:
    """That the published schedule's rates follow."""
    if encoder.kind == "merl":
        return SHARED_WIDTH
    return SIZES[encoder.size][0].width if encoder.kind in MASKED else vision_of(encoder).stack.width


def _of_nothing(batch_size: int, parts: EncoderParts, trained: TrainState, data: _Data) -> dict[str, float]:
    """What a loss is to be compared to: how validation segments vary within themselves; a contrast's loss of equal scores.

    The variance for squared errors, the mean distance from the median for a ViT's absolute ones.
    """
    encoder = parts.merge(trained.params, trained.statistics)
    if isinstance(encoder, Merl | Clip):
        return {"loss_of_nothing": float((4 if isinstance(encoder, Merl) else 1) * np.log(batch_size))}
    chosen, spreads = data.valid[:_PROBED], []
    for start in range(0, len(chosen), batch_size):
        patches = encoder.cut(np.stack([data.signals[int(number)] for number in chosen[start : start + batch_size]]))
        values = np.asarray(patches).reshape(len(patches), -1)
        median = np.median(values, axis=1, keepdims=True)
        spreads.append(np.abs(values - median).mean(axis=1) if isinstance(encoder, MaskedViT) else values.var(axis=1))
    name = "valid_deviation" if isinstance(encoder, MaskedViT) else "valid_variance"
    return {name: float(np.concatenate(spreads).mean())} if spreads else {}


def _probe(
    settings: Settings, mesh: Mesh, parts: EncoderParts, data: _Data, trained: TrainState, build: Callable[[], EncoderParts]
) -> dict[str, float]:
    """What a linear probe of the encoder's features scores, beside that of the encoder before its training."""
    questions = choose_questions(*data.asked, _PROBED)
    if not questions:
        return {}
    numbers = sorted({int(number) for question in questions for part in (question.train, question.valid) for number in part[0]})
    features = make_features(parts, data.signals, settings.pretrain.batch_size, mesh)
    encoders = {"probe": trained, "probe_before_training": build()}
    scores = {name: probe(questions, features(of.params, of.statistics, numbers)) for name, of in encoders.items()}
    chance = float(np.mean([1 / len(question.answers) for question in questions]))
    return {"probed_questions": len(questions)} | scores | {"probe_of_nothing": chance}


def _describe_input(settings: Settings, data: _Data) -> str:
    encoder, texts = settings.encoder, len(data.reports.reports.texts) if data.reports else 0
    if isinstance(data.reports, ReportTokens):
        by = encoder.weights or "this run"
        return f"pictures of 224 x 224 pixels, {texts} different texts by the tokenizer of {by}, {data.reports.size} words"
    if data.reports:
        by = f"BERT, {encoder.text_encoder}" if encoder.text_encoder else "random vectors of their words"
        return f"{texts} different texts as {data.reports.size} features each, by {by}"
    if encoder.kind == "vit":
        return f"pictures of 224 x 224 pixels in {vision_of(encoder).patches} patches"
    grid = patch_grid(encoder, settings.signal.segment_length)
    return f"{grid.groups * grid.patches} patches of {grid.values} values in a segment"


def _show_start(settings: Settings, mesh: Mesh, parts: EncoderParts, data: _Data, plan: Plan, start: int) -> None:
    encoder, size, device = settings.encoder, settings.pretrain.batch_size, jax.devices()[0]
    rows = {
        "devices": f"{jax.device_count()} x {device.device_kind}, {jax.process_count()} process(es)",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "encoder": f"{encoder.kind}, {encoder.size}: {count(parts.params):,} parameters with those of its objective alone",
        "reads": _describe_input(settings, data),
        "training segments": f"{len(data.train)}; {len(data.valid)} for validation",
        "steps": f"{len(plan)} of {size} segments" + (f", going on from {start}" if start else ""),
    }
    if len(data.valid) < size:
        rows["validation"] = "none: the split holds fewer segments than a batch"
    banner("pretrain", rows)
