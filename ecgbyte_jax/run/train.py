"""Stage `train`: from token shards to checkpoints."""

from contextlib import closing
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.plan import Plan
from ecgbyte_jax.model.hf import locate
from ecgbyte_jax.run import distributed, prepare, stages
from ecgbyte_jax.run.build import Parts, count
from ecgbyte_jax.run.checkpoint import Checkpoints, DamagedCheckpointError
from ecgbyte_jax.run.corpus import Paths
from ecgbyte_jax.run.feed import Feed, plan_batches
from ecgbyte_jax.run.logbook import banner, console
from ecgbyte_jax.run.loop import Loop, Profile
from ecgbyte_jax.run.metrics_log import MetricsLog
from ecgbyte_jax.run.optim import make_optimizer
from ecgbyte_jax.run.restore import build_for, check_origin, origin
from ecgbyte_jax.run.sharding import bytes_a_device, check_batch_size, kept_whole, make_mesh
from ecgbyte_jax.run.step import TrainState, abstract_state, make_step, start_state
from ecgbyte_jax.run.validate import make_validation

_VERSION = 3  # of this stage's outputs


def settings(config: ConfigDict) -> dict:
    """What the trained weights depend on, beside the prepared data and the pretrained weights."""
    train = {name: config.train[name] for name in ("batch_size", "epochs", "patience", "patience_delta")}
    data = {name: config.data[name] for name in ("packing", "length_buckets")}
    parts = {name: config[name].to_dict() for name in ("model", "lora", "optim", "prompt")}
    parts["model"]["pretrained"] = bool(config.model.pretrained)  # its files count, not the way their folder is written
    return {"version": _VERSION, "seed": config.seed, "train": train, "data": data, **parts}


def describe(config: ConfigDict, workdir: Path) -> stages.Stage:
    """The stage on what `prepare` left here; raises ConfigError where that has not finished or was run otherwise."""
    marker = Paths.of(config, workdir).marker
    prepared = stages.Stage.on_disk("prepare", marker, prepare.settings(config)).require()
    inputs = stages.digest([prepared, _weights_fingerprint(config.model.pretrained)])
    return stages.Stage("train", workdir / "checkpoints" / "stage.json", settings(config), inputs)


def _weights_fingerprint(pretrained: str) -> str:
    if not pretrained:
        return ""
    folder = locate(pretrained)
    files = [file for ending in ("config.json", "*.safetensors", "*.msgpack") for file in sorted(folder.glob(ending))]
    return stages.fingerprint(files, folder)


def train(config: ConfigDict, workdir: Path, profile_steps: tuple[int, int] = (0, 0)) -> None:
    """Runs the stage where it is not done, going on from the newest whole checkpoint of the same settings.

    An earlier training with other settings is moved aside, never deleted. `profile_steps`: the first and the last step that a
    JAX profile is written of. Raises TrainingError on a loss that is not finite, StoppedError on SIGTERM, with a checkpoint.
    """
    stage = describe(config, workdir)
    if distributed.agree(stage.finished()):
        console.print("train: settings and inputs have not changed, nothing to do")
        return
    mesh = make_mesh(**config.mesh.to_dict())
    check_batch_size(mesh, config.train.batch_size, "train.batch_size", config.train.accumulate)
    if distributed.leads():
        if not stage.begun():
            stage.move_aside(workdir, "checkpoints", "metrics.jsonl", "tensorboard", "wandb_run.txt")
        stage.begin()
    distributed.wait_for_all("the stage has begun")
    with jax.set_mesh(mesh):
        checkpoint, checksum = _train(config, workdir, mesh, Profile(workdir / "profile", *profile_steps))
    if distributed.leads():
        stages.keep_settings(config, workdir, "train")
        stage.finish([checkpoint], result=checksum)


def _train(config: ConfigDict, workdir: Path, mesh: Mesh, profile: Profile) -> tuple[Path, int]:
    """The last checkpoint, and its checksum, which stands for the weights."""
    prepared = prepare.load_prepared(config, workdir)
    plan, batches = plan_batches(config, prepared, "train", config.train.epochs, mesh)
    about = origin(config, prepared)

    def examples(step: int) -> list[str]:
        sequences = open_split(prepared.shards, prepared.manifest, "train")
        return [sequences[int(number)].id for row in plan[step - 1].rows for number in row]

    with closing(Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints)) as checkpoints:
        resumed = bool(checkpoints.steps())
        parts = build_for(config, prepared, mesh, to_restore=resumed)
        optimizer, schedule = make_optimizer(config, parts.config.width, len(plan))
        state, start = _resume(checkpoints, abstract_state(parts.trained, optimizer, mesh), about)
        if state is None:
            parts = build_for(config, prepared, mesh) if resumed else parts
            state = start_state(parts.trained, optimizer, mesh)
        _show_start(config, mesh, parts, prepared, plan, start, state)
        with closing(MetricsLog(workdir, start, config.train.wandb_project, about["config"])) as log:
            step = make_step(parts, optimizer, config.lora.dropout, config.seed, config.train.accumulate)
            validate = make_validation(config, workdir, prepared, parts, mesh)
            loop = Loop(config, plan, parts, schedule, checkpoints, log, about, examples)
            last = loop.run(state, start, Feed(batches, start, mesh), step, validate, profile)
            checkpoints.wait()
            return checkpoints.path(last), checkpoints.checksum(last)


def _resume(checkpoints: Checkpoints, like: TrainState, about: dict) -> tuple[TrainState | None, int]:
    """The newest checkpoint that is whole, and its step (None, 0 without one); damaged ones are moved aside and told of."""
    while checkpoints.steps():
        step = checkpoints.steps()[-1]
        try:
            check_origin(checkpoints, step, about)
            return checkpoints.load(step, like), step
        except DamagedCheckpointError as error:
            moved = checkpoints.set_aside(step, str(error))
            console.print(f"train: {error}; moved to {moved}, going back to the one before", markup=False)
    return None, 0


def _show_start(
    config: ConfigDict, mesh: Mesh, parts: Parts, prepared: prepare.Prepared, plan: Plan, start: int, state: TrainState
) -> None:
    device, split = jax.devices()[0], prepared.manifest.splits["train"]
    size, seen = config.train.batch_size, [plan[n] for n in range(min(len(plan), 64))]
    places = sum(len(step.rows) * step.length for step in seen)
    real = sum(int(plan.lengths(n)[:, 0].sum()) for n in range(len(seen)))
    rows = {
        "devices": f"{jax.device_count()} x {device.device_kind}, {jax.process_count()} process(es)",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "parameters": f"{count(parts.trained):,} trained, {count(parts.frozen):,} frozen, {parts.config.param_dtype}",
        "on each device": f"{bytes_a_device(state, parts.frozen) / 1e6:,.1f} MB of parameters and the optimiser's state",
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
