"""Stage `train`: from token shards to checkpoints."""

from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

import jax
from jax.sharding import Mesh

from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.plan import Plan
from ecgbyte_jax.inputs.prepared import Prepared, load_prepared
from ecgbyte_jax.model.build import Parts, count
from ecgbyte_jax.model.kernels.fused import kernel_for
from ecgbyte_jax.model.sharding import bytes_a_device, check_batch_size, kept_whole, make_mesh
from ecgbyte_jax.run.console import banner, console
from ecgbyte_jax.run.cost import counted
from ecgbyte_jax.run.processes import agree, leads, wait_for_all
from ecgbyte_jax.run.stage import Stage
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.train.ahead import compiled_ahead
from ecgbyte_jax.train.checkpoint import Checkpoints, DamagedCheckpointError
from ecgbyte_jax.train.feed import Feed, plan_batches
from ecgbyte_jax.train.loop import Loop, Outputs, Profile
from ecgbyte_jax.train.memory import with_remat
from ecgbyte_jax.train.metrics_log import MetricsLog
from ecgbyte_jax.train.optim import make_optimizer
from ecgbyte_jax.train.restore import build_for, check_origin, origin
from ecgbyte_jax.train.seen import count_seen
from ecgbyte_jax.train.step import TrainState, abstract_state, make_step, start_state
from ecgbyte_jax.train.validate import make_validation

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
    if leads() and stage.take_back(workdir.checkpoints, *_moved_with(workdir)):
        lineage.keep_settings(settings, workdir, "train")
    wait_for_all("an earlier training is back in its place")
    if agree(stage.finished()):
        console.print("train: settings and inputs have not changed, nothing to do")
        return
    mesh = make_mesh(**asdict(settings.mesh))
    check_batch_size(mesh, settings.train.batch_size, "train.batch_size", settings.train.accumulate)
    with jax.set_mesh(mesh), counted(workdir, "train", stage, jax.device_count(), keep=leads()) as cost:
        checkpoint, checksum, seen = _train(settings, workdir, mesh, stage, Profile(workdir.profile, *profile_steps))
        cost["seen"] = seen
    if leads():
        lineage.keep_settings(settings, workdir, "train")
        stage.finish([checkpoint], result=[stage.digest(), checksum])


def _train(settings: Settings, workdir: Workdir, mesh: Mesh, stage: Stage, profile: Profile) -> tuple[Path, int, dict]:
    """The last checkpoint, its checksum, which identifies the weights, and what the training has seen."""
    prepared = load_prepared(workdir)
    plan, batches = plan_batches(settings, prepared, "train", settings.train.epochs, mesh)
    about = origin(settings, prepared)

    def examples(step: int) -> list[str]:
        sequences = open_split(prepared.shards, prepared.manifest, "train")
        return [sequences[int(number)].id for row in plan[step - 1].rows for number in row]

    with ExitStack() as opened:

        def open_checkpoints() -> Checkpoints:
            return opened.enter_context(closing(Checkpoints(workdir.checkpoints, settings.train.keep_checkpoints)))

        def open_outputs(checkpoints: Checkpoints, start: int) -> Outputs:
            log = MetricsLog(workdir, start, settings.train.wandb_project, about["config"])
            return Outputs(checkpoints, opened.enter_context(closing(log)))

        def begin() -> Outputs:
            if leads():
                stage.move_aside(workdir.checkpoints, *_moved_with(workdir))
                stage.begin()
                lineage.keep_settings(settings, workdir, "train")  # an interrupted one goes on with them
            wait_for_all("the training has begun")
            return open_outputs(open_checkpoints(), 0)

        checkpoints = open_checkpoints() if agree(stage.begun()) else None  # else those here are of another training
        resumed = checkpoints is not None and bool(checkpoints.steps())
        chosen = with_remat(settings, mesh, len(prepared.text_tokenizer), int(prepared.ids.ecg.min()))
        parts = build_for(chosen, prepared, mesh, to_restore=resumed)
        optimizer, schedule = make_optimizer(settings.optim, parts.config.width, len(plan))
        state, start = None, 0
        if resumed:
            state, start = _resume(checkpoints, abstract_state(parts.trained, optimizer, mesh), about)
        if state is None:
            parts = build_for(chosen, prepared, mesh) if resumed else parts
            state = start_state(parts.trained, optimizer, mesh)
        _show_start(settings, mesh, parts, prepared, plan, start, state)
        step = make_step(parts, optimizer, settings.lora.dropout, settings.seed, settings.train.accumulate)
        validate = make_validation(settings, workdir, prepared, parts, mesh)
        outputs = open_outputs(checkpoints, start) if checkpoints else None
        loop = Loop(settings.train, plan, parts, schedule, outputs, begin, about, examples)
        step = opened.enter_context(compiled_ahead(step, plan, start, state, parts.frozen, mesh))
        last = loop.run(state, start, Feed(batches, start, mesh), step, validate, profile)
        written = loop.outputs.checkpoints
        written.wait()
        seen = count_seen(settings, prepared, plan, last, parts.config, count(parts.trained)) if leads() else {}
        return written.path(last), written.checksum(last), seen


def _moved_with(workdir: Workdir) -> tuple[Path, ...]:
    """What belongs to the checkpoints and is moved with them."""
    return workdir.metrics, workdir.tensorboard, workdir.wandb_run


def _resume(checkpoints: Checkpoints, like: TrainState, about: dict) -> tuple[TrainState | None, int]:
    """The newest checkpoint that is whole, and its step (None, 0 without one); damaged ones are moved aside and reported."""
    while checkpoints.steps():
        step = checkpoints.steps()[-1]
        try:
            check_origin(checkpoints, step, about)
            return checkpoints.load(step, like), step
        except DamagedCheckpointError as error:
            moved = checkpoints.set_aside(step, str(error))
            console.print(f"train: {error}; moved to {moved}, going back to the one before")
    return None, 0


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
        "training examples": f"{split.examples} in {split.sequences} sequences",
        "a step": f"{size} rows, {places // len(seen)} places on average, {100 * real / places:.0f}% of them real tokens",
        "steps": f"{len(plan)}" + (f", going on from {start}" if start else ""),
    }
    whole = kept_whole((state.params, parts.frozen), mesh)
    if whole:
        rows["not split"] = f"{'; '.join(whole)}: each device holds all of that axis"
    if prepared.manifest.splits["valid"].sequences < size:
        rows["validation"] = "none: the split holds fewer sequences than a batch"
    banner("train", rows)


def _describe_attention(parts: Parts, platform: str) -> str:
    """How attention is computed, and where not by a fused kernel, why."""
    config = parts.config
    if config.attention_kernel:
        return f"the fused kernel '{config.attention_kernel}'"
    _, why = kernel_for(platform, config.head_dim, config.dtype)
    return f"plain operations: {why or 'as model.attention says'}"
