"""Stage `train`: from token shards to checkpoints."""

from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.controls import vector_lengths
from ecgbyte_jax.inputs.plan import Plan
from ecgbyte_jax.inputs.prepared import Prepared, load_prepared
from ecgbyte_jax.model.build import Parts, count
from ecgbyte_jax.model.kernels.fused import kernel_for
from ecgbyte_jax.model.sharding import bytes_a_device, check_batch_size, kept_whole, make_mesh
from ecgbyte_jax.pretrain.clean import clean_signals
from ecgbyte_jax.run.console import banner, console
from ecgbyte_jax.run.cost import cost_of, counted
from ecgbyte_jax.run.processes import agree, leads
from ecgbyte_jax.run.stage import digest_of
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import SPLITS, Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.train.ahead import compiled_ahead
from ecgbyte_jax.train.feed import Feed, plan_batches
from ecgbyte_jax.train.folder import TrainingFolder
from ecgbyte_jax.train.loop import Loop, Profile
from ecgbyte_jax.train.memory import with_remat
from ecgbyte_jax.train.optim import make_optimizer
from ecgbyte_jax.train.restore import build_for, origin
from ecgbyte_jax.train.seen import count_seen
from ecgbyte_jax.train.step import TrainState, abstract_state, make_step, start_state
from ecgbyte_jax.train.utilisation import step_figures
from ecgbyte_jax.train.validate import make_validation
from ecgbyte_jax.train.vectors import has_first_stage, training_flops, vectors_of

_KEPT = {  # value of `remat` -> what a block keeps for the backward pass
    "": "everything",
    "products": "products and attention; the rest is computed again",
    "attention": "attention; the rest is computed again",
    "inputs": "the blocks' inputs; the rest is computed again",
}


def train(settings: Settings, workdir: Workdir, profile_steps: tuple[int, int] = (0, 0)) -> None:
    """Runs the stage where it is not done, going on from the newest whole checkpoint of the same settings.

    An earlier training with other settings is moved aside when the first step of this one is done, never deleted, and is taken
    back when its settings return. `profile_steps`: the first and the last step that a JAX profile is written of. Raises
    TrainingError on a loss that is not finite, StoppedError on SIGTERM or Ctrl-C, with a checkpoint.
    """
    stage = lineage.trained(settings, workdir)
    folder = TrainingFolder(stage, workdir, partial(lineage.keep_settings, settings, workdir, "train"))
    folder.take_back()
    if agree(stage.finished()):
        console.print("train: settings and inputs have not changed, nothing to do")
        return
    mesh = make_mesh(**asdict(settings.mesh))
    check_batch_size(mesh, settings.train.batch_size, "train.batch_size", settings.train.accumulate)
    if vectors_of(settings):
        clean_signals(settings, workdir)
    with jax.set_mesh(mesh), counted(workdir, "train", stage, jax.devices(), keep=leads()) as cost:
        cost |= {"first_stage": first} if (first := _first_stage(settings, workdir)) else {}
        checkpoint, checksum, seen = _train(settings, workdir, mesh, folder, Profile(workdir.profile, *profile_steps))
        cost["seen"] = seen
    if leads():
        folder.keep_settings()
        stage.finish([checkpoint], result=[stage.digest(), checksum])


def _first_stage(settings: Settings, workdir: Workdir) -> dict[str, Any]:
    """What the encoder of another run has cost there, with the run's path; {} where the ledger of this one has it, or none is.

    A control shares the encoder of its run by a link.
    """
    pretrained = settings.encoder.pretrained
    if not has_first_stage(settings):
        return {}
    run = Workdir(Path(pretrained)) if pretrained else workdir
    markers = {"signals": run.signals_marker, "reports": run.reports_marker, "pretrain": run.pretrain.train_marker}
    if settings.encoder.kind != "merl":
        del markers["reports"]
    digests = {name: digest_of(marker) for name, marker in markers.items()}
    if cost_of(workdir, "pretrain", digests["pretrain"]):
        return {}
    run = run if pretrained else Workdir(run.pretrain.root.resolve().parent)
    costs = {name: cost_of(run, name, digest) for name, digest in digests.items()}
    return {"run": str(run.root.resolve())} | {name: cost for name, cost in costs.items() if cost}


def _train(
    settings: Settings, workdir: Workdir, mesh: Mesh, folder: TrainingFolder, profile: Profile
) -> tuple[Path, int, dict]:
    """The last checkpoint, its checksum, which identifies the weights, and what the training has seen."""
    prepared = load_prepared(workdir, vectors_of(settings))
    for split in SPLITS if prepared.ids.vectors else ():  # before hours of work
        vector_lengths(prepared, split, "own", settings.prompt.max_length)
    plan, batches = plan_batches(settings, prepared, "train", settings.train.epochs, mesh)

    def examples(step: int) -> list[str]:
        sequences = open_split(prepared.shards, prepared.manifest, "train")
        return [sequences[int(number)].id for row in plan[step - 1].rows for number in row]

    with ExitStack() as opened:
        about, train = origin(settings, prepared), settings.train
        here = folder.open(about, train.keep_checkpoints, train.wandb_project, opened)
        resumed = here.resumed
        shown = batches[0]["signals"].shape[1:] if prepared.ids.vectors else ()
        ecgs = shown[0] if shown else 0
        chosen = with_remat(settings, mesh, len(prepared.text_tokenizer), int(prepared.ids.ecg.min()), ecgs)
        parts = build_for(chosen, prepared, mesh, to_restore=resumed)
        optimizer, schedule = make_optimizer(settings.optim, parts.config.width, len(plan))
        state, start = None, 0
        if resumed:
            state, start = here.newest(abstract_state(parts.trained, optimizer, mesh))
        if state is None:
            parts = build_for(chosen, prepared, mesh) if resumed else parts
            state = start_state(parts.trained, optimizer, mesh)
        _show_start(settings, mesh, parts, prepared, plan, start, state)
        step = make_step(parts, optimizer, settings.lora.dropout, settings.seed, train.accumulate)
        validate = make_validation(settings, workdir, prepared, parts, mesh)
        figures = partial(step_figures, plan, parts)
        outputs = here.outputs(start)
        loop = Loop("train", train, len(plan), parts.frozen, schedule, figures, outputs, here.begin, about, examples)
        step = opened.enter_context(compiled_ahead(step, plan, start, state, parts.frozen, mesh, shown))
        last = loop.run(state, start, Feed(batches, start, mesh), step, validate, profile)
        written = loop.outputs.checkpoints
        written.wait()
        flops = training_flops(settings, parts.config.width)
        seen = count_seen(settings, prepared, plan, last, parts.config, parts.trained_in_decoder, flops) if leads() else {}
        seen |= {"trained_parameters": count(parts.trained)}
        return written.path(last), written.checksum(last), seen


def _show_start(
    settings: Settings, mesh: Mesh, parts: Parts, prepared: Prepared, plan: Plan, start: int, state: TrainState
) -> None:
    device, split = jax.devices()[0], prepared.manifest.splits["train"]
    size, seen = settings.train.batch_size, [plan[n] for n in range(min(len(plan), 64))]
    places = sum(len(step.rows) * step.length for step in seen)
    real = sum(int(plan.lengths(n)[:, 0].sum()) for n in range(len(seen)))
    rows = {
        "devices": f"{jax.device_count()} x {device.device_kind}, {jax.process_count()} process(es)",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "parameters": f"{count(parts.trained):,} trained, {count(parts.frozen):,} frozen, {parts.config.param_dtype}"
        + (f", the blocks' kernels {settings.model.quantize}" if settings.model.quantize else ""),
        "on each device": f"{bytes_a_device(state, parts.frozen) / 1e6:,.1f} MB of parameters and the optimizer's state",
        "attention": _describe_attention(parts, device.platform),
        "kept": _KEPT[parts.config.remat],
        "vocabulary": f"{len(prepared.text_tokenizer)} tokens, {prepared.ids.ecg.size} of them ECG",
        "an ECG": _describe_input(settings),
        "training examples": f"{split.examples} in {split.sequences} sequences",
        "a step": f"{size} rows, {places // len(seen)} places on average, {100 * real / places:.0f}% of them real tokens",
        "steps": f"{len(plan)}" + (f", going on from {start}" if start else ""),
    }
    if plan.mixture:
        drawn = zip(settings.data.shares.items(), plan.mixture.passes)
        rows["mixture"] = ", ".join(f"{share:.1%} {name}, {passes:.2g} times an epoch" for (name, share), passes in drawn)
    whole = kept_whole((state.params, parts.frozen), mesh)
    if whole:
        rows["not split"] = f"{'; '.join(whole)}: each device holds all of that axis"
    if prepared.manifest.splits["valid"].sequences < size:
        rows["validation"] = "none: the split holds fewer sequences than a batch"
    banner("train", rows)


def _describe_input(settings: Settings) -> str:
    """What the model reads of an ECG."""
    shown, encoder = settings.ecg_input, settings.encoder
    if shown.kind == "tokens":
        return "its tokens"
    if shown.kind != "encoder":
        return f"{shown.vectors} vector(s) by {shown.kind}"
    weights = "random" if encoder.pretrained == "random" else "pretrained"
    trained = "trained" if shown.train_encoder else "frozen"
    return f"{shown.vectors} vector(s) by {shown.connector} of {encoder.kind} {encoder.size}, {weights}, {trained}"


def _describe_attention(parts: Parts, platform: str) -> str:
    """How attention is computed, and where not by a fused kernel, why."""
    config = parts.config
    if config.attention_kernel:
        return f"the fused kernel '{config.attention_kernel}'"
    _, why = kernel_for(platform, config.head_dim, config.dtype)
    return f"plain operations: {why or 'as model.attention says'}"
