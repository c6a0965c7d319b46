"""Stage `train`: from token shards to checkpoints.

Axes: B rows of a batch, T places of a row, A places at a row's end that hold every answer, V vocabulary.
"""

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count as count_from
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ecgbyte_jax.errors import CheckpointError, TrainingError
from ecgbyte_jax.inputs.batches import open_split, training_batches
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.hf import locate
from ecgbyte_jax.run import prepare, stages
from ecgbyte_jax.run.build import Parts, build_model, count
from ecgbyte_jax.run.checkpoint import Checkpoints
from ecgbyte_jax.run.corpus import Paths
from ecgbyte_jax.run.logbook import MetricsLog, banner, console, progress
from ecgbyte_jax.run.optim import make_optimizer
from ecgbyte_jax.run.sharding import check_batch_size, make_mesh, make_sharded, put_batch

_VERSION = 1  # of this stage's outputs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step changes: the trained parameters, the optimiser's state, the number of steps taken (int32 [])."""

    params: Any
    opt_state: Any
    step: jax.Array


def settings(config: ConfigDict) -> dict:
    """What the trained weights depend on, beside the prepared data and the pretrained weights."""
    train = {name: config.train[name] for name in ("batch_size", "epochs")}
    parts = {name: config[name].to_dict() for name in ("model", "lora", "optim", "prompt")}
    parts["model"]["pretrained"] = bool(config.model.pretrained)  # its files count, not the way their folder is written
    return {"version": _VERSION, "seed": config.seed, "train": train, **parts}


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


def train(config: ConfigDict, workdir: Path) -> None:
    """Runs the stage where it is not done, going on from the newest checkpoint of the same settings.

    An earlier training with other settings is moved aside, never deleted. Raises TrainingError on a loss that is not finite.
    """
    stage = describe(config, workdir)
    if stage.finished():
        console.print("train: settings and inputs have not changed, nothing to do")
        return
    mesh = make_mesh(**config.mesh.to_dict())
    check_batch_size(mesh, config.train.batch_size, "train.batch_size")
    if not stage.begun():
        _move_aside(workdir, stage)
    stage.begin()
    with jax.set_mesh(mesh):
        checkpoint, last = _train(config, workdir, mesh)
    stage.finish([checkpoint], result=last)


def _move_aside(workdir: Path, stage: stages.Stage) -> None:
    if not (workdir / "checkpoints").exists():
        return
    number = next(n for n in count_from(1) if not (workdir / f"checkpoints.old-{n}").exists())
    why = stage.changes() or "unknown ones"
    console.print(
        f"train: the training here had other settings or data ({why}); moved to checkpoints.old-{number}", markup=False
    )
    os.rename(workdir / "checkpoints", workdir / f"checkpoints.old-{number}")
    if (workdir / "metrics.jsonl").exists():
        os.rename(workdir / "metrics.jsonl", workdir / f"checkpoints.old-{number}" / "metrics.jsonl")


def _train(config: ConfigDict, workdir: Path, mesh: Mesh) -> tuple[Path, list[float]]:
    """The last checkpoint, and the last step's loss and gradient norm, which stand for the weights."""
    prepared = prepare.load_prepared(config, workdir)
    batches = open_batches(config, prepared, "train", config.train.batch_size, config.train.epochs)
    parts = build_for(config, prepared, mesh)
    optimizer, schedule = make_optimizer(config, parts.config.width, len(batches))
    state = start_state(parts.trained, optimizer, mesh)
    longest = prepared.manifest.splits["train"].longest_answer
    with closing(Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints)) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            state = checkpoints.load(start, state)
        _show_start(config, mesh, parts, prepared, len(batches), start)
        with closing(MetricsLog(workdir / "metrics.jsonl", start)) as log:
            step = make_step(parts, optimizer, longest, config.lora.dropout, config.seed)
            validate = _make_validation(config, prepared, parts, mesh)
            every = config.train.checkpoint_every
            _run_steps(mesh, batches, state, start, parts.frozen, step, schedule, validate, every, checkpoints, log)
            return checkpoints.path(len(batches)), [log.last["loss"], log.last["grad_norm"]]


def build_for(config: ConfigDict, prepared: prepare.Prepared, mesh: Mesh) -> Parts:
    """The model at its start, with a row for every token of the prepared text tokenizer."""
    return build_model(config, len(prepared.text_tokenizer), mesh, first_new_id=int(prepared.ids.ecg.min()))


def restore_model(config: ConfigDict, workdir: Path, prepared: prepare.Prepared, mesh: Mesh) -> tuple[Decoder, int]:
    """The model with the newest checkpoint's weights, and the checkpoint's step; raises CheckpointError where there is none."""
    parts = build_for(config, prepared, mesh)
    optimizer, _ = make_optimizer(config, parts.config.width, 1)
    with closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        latest = checkpoints.latest()
        if latest is None:
            raise CheckpointError(f"{workdir / 'checkpoints'}: no checkpoint there; add train to --stage")
        state = checkpoints.load(latest, start_state(parts.trained, optimizer, mesh))
    return parts.model(state.params), latest


def open_batches(
    config: ConfigDict, prepared: prepare.Prepared, split: str, batch_size: int, epochs: float
) -> grain.MapDataset:
    """This process's share of the batches of `epochs` shuffled epochs of a split; item n belongs to step n."""
    sequences = open_split(prepared.shards, prepared.manifest, split)
    host, hosts = jax.process_index(), jax.process_count()
    return training_batches(sequences, prepared.ids, config.prompt.max_length, batch_size, epochs, config.seed, host, hosts)


def start_state(trained: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Step 0; the optimiser's moments are split over the mesh like the parameters that they belong to."""
    opt_state = make_sharded(lambda: optimizer.init(jax.tree.map(jnp.zeros_like, trained)), mesh)
    return TrainState(trained, opt_state, jax.device_put(jnp.int32(0), NamedSharding(mesh, PartitionSpec())))


def answer_loss(model: Decoder, batch: dict[str, jax.Array], longest_answer: int, dropout_key: jax.Array | None) -> jax.Array:
    """Mean cross-entropy in nats over the answers' tokens, float32 [].

    Rows are padded on the left, so the answers lie in the last A places: logits are made for those alone.
    """
    hidden, _ = model.hidden(batch["input_ids"], batch["attention_mask"], batch["positions"], dropout_key=dropout_key)
    logits = model.logits(hidden[:, -longest_answer - 1 : -1])  # [B, A, V]
    targets, weights = batch["input_ids"][:, -longest_answer:], batch["loss_mask"][:, -longest_answer:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)  # [B, A]
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1)


def make_step(
    parts: Parts, optimizer: optax.GradientTransformation, longest_answer: int, dropout: float, seed: int
) -> Callable[[TrainState, Any, dict], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step (state, frozen, batch) -> (state, {loss, grad_norm}); it takes the old state's memory."""
    graphdef = parts.graphdef

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, frozen: Any, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if dropout > 0 else None

        def loss_of(params: Any) -> jax.Array:
            return answer_loss(nnx.merge(graphdef, params, frozen), batch, longest_answer, key)

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients)}
        return TrainState(params, opt_state, state.step + 1), metrics

    return step


def _make_validation(
    config: ConfigDict, prepared: prepare.Prepared, parts: Parts, mesh: Mesh
) -> Callable[[Any, Any], float] | None:
    """(params, frozen) -> mean loss over the same validation batches each time; None where the split is too small."""
    split, size = prepared.manifest.splits["valid"], config.train.batch_size
    if split.sequences < size:
        return None
    batches = open_batches(config, prepared, "valid", size, 1.0)

    @jax.jit
    def loss(params: Any, frozen: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return answer_loss(nnx.merge(parts.graphdef, params, frozen), batch, split.longest_answer, None)

    def validate(params: Any, frozen: Any) -> float:
        some = range(min(len(batches), config.train.valid_batches))
        return float(np.mean([loss(params, frozen, put_batch(batches[i], mesh)) for i in some]))

    return validate


def _run_steps(
    mesh: Mesh,
    batches: grain.MapDataset,
    state: TrainState,
    start: int,
    frozen: Any,
    step: Callable,
    schedule: optax.Schedule,
    validate: Callable | None,
    every: int,
    checkpoints: Checkpoints,
    log: MetricsLog,
) -> None:
    """Steps start + 1 to the last, with a line in the log for each, and validation and a checkpoint every `every` steps."""
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    iterator = iter(batches[start:].to_iter_dataset(ahead))
    waiting, clock = None, time.monotonic()

    def read(number: int, metrics: dict, tokens: int) -> dict[str, float]:
        """One line of the log; waits for the step to be done."""
        nonlocal clock
        line = {"step": number} | {name: float(value) for name, value in metrics.items()}
        now = time.monotonic()
        rate, clock = tokens / (now - clock), now
        return line | {"learning_rate": float(schedule(number - 1)), "tokens_per_s": round(rate, 1)}

    def write(line: dict[str, float]) -> None:
        _check_finite(line, checkpoints)
        log.write(line)
        report(line["step"], f"loss {line['loss']:.4f}")

    with progress("train", len(batches)) as report:
        for number in range(start + 1, len(batches) + 1):
            batch = next(iterator)
            state, metrics = step(state, frozen, put_batch(batch, mesh))
            if waiting:  # a step's figures are read when the next one is under way, so that the device never waits
                write(read(*waiting))
            waiting = (number, metrics, int(batch["attention_mask"].sum()))
            if number % every == 0 or number == len(batches):
                line, waiting = read(*waiting), None
                if validate:
                    line["valid_loss"] = validate(state.params, frozen)
                    console.print(f"step {number}: loss {line['loss']:.4f}, validation loss {line['valid_loss']:.4f}")
                write(line)
                checkpoints.save(number, state)
                clock = time.monotonic()


def _check_finite(line: dict[str, float], checkpoints: Checkpoints) -> None:
    for name in ("loss", "grad_norm", "valid_loss"):
        if not np.isfinite(line.get(name, 0.0)):
            raise TrainingError(
                f"step {line['step']}: {name} is {line[name]}; the last checkpoint is step {checkpoints.latest()}"
            )


def _show_start(config: ConfigDict, mesh: Mesh, parts: Parts, prepared: prepare.Prepared, steps: int, start: int) -> None:
    device, split = jax.devices()[0], prepared.manifest.splits["train"]
    size = config.train.batch_size
    rows = {
        "devices": f"{jax.device_count()} x {device.device_kind}, {jax.process_count()} process(es)",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "parameters": f"{count(parts.trained):,} trained, {count(parts.frozen):,} frozen, {parts.config.param_dtype}",
        "vocabulary": f"{len(prepared.text_tokenizer)} tokens, {prepared.ids.ecg.size} of them ECG",
        "training examples": f"{split.examples} in {split.sequences} sequences",
        "a step": f"{size} x {config.prompt.max_length} places, {size * split.tokens // split.sequences} tokens on average",
        "steps": f"{steps}" + (f", going on from {start}" if start else ""),
    }
    if prepared.manifest.splits["valid"].sequences < size:
        rows["validation"] = "none: the split holds fewer sequences than a batch"
    banner("train", rows)
