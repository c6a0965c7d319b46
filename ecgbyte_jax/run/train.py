"""Stage `train`: from token shards to checkpoints.

Axes: B rows of a batch, T places of a row, A places at a row's end that hold every answer, V vocabulary.
"""

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
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

from ecgbyte_jax.errors import TrainingError
from ecgbyte_jax.inputs.batches import open_split, training_batches
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.run import prepare, stages
from ecgbyte_jax.run.build import Parts, build_model, count
from ecgbyte_jax.run.checkpoint import Checkpoints
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
    return {"version": _VERSION, "seed": config.seed, "train": train, **parts}


def describe(config: ConfigDict, workdir: Path) -> stages.Stage:
    """The stage on what `prepare` left here; raises ConfigError where that has not finished or was run otherwise."""
    marker = prepare.Paths.of(config, workdir).marker
    prepared = stages.Stage.on_disk("prepare", marker, prepare.settings(config)).require()
    pretrained = Path(config.model.pretrained)
    weights = stages.fingerprint(sorted(pretrained.glob("*")), pretrained) if config.model.pretrained else ""
    inputs = stages.digest([prepared, weights])
    return stages.Stage("train", workdir / "checkpoints" / "stage.json", settings(config), inputs)


def train(config: ConfigDict, workdir: Path) -> None:
    """Runs the stage where it is not done, going on from the newest checkpoint of the same settings.

    An earlier training with other settings is moved aside, never deleted. Raises TrainingError on a loss that is not finite.
    """
    stage = describe(config, workdir)
    if stage.finished():
        console.print("train: settings and inputs have not changed, nothing to do")
        return
    if not stage.begun():
        _move_aside(workdir, stage)
    stage.begin()
    mesh = make_mesh(**config.mesh.to_dict())
    check_batch_size(mesh, config.train.batch_size, "train.batch_size")
    with jax.set_mesh(mesh):
        _train(config, workdir, mesh)
    stage.finish()


def _move_aside(workdir: Path, stage: stages.Stage) -> None:
    if not stage.marker.exists():
        return
    number = 1 + sum(1 for _ in workdir.glob("checkpoints.old-*"))
    console.print(
        f"train: the training here had other settings or data ({stage.changes()}); moved to checkpoints.old-{number}",
        markup=False,
    )
    os.rename(workdir / "checkpoints", workdir / f"checkpoints.old-{number}")
    if (workdir / "metrics.jsonl").exists():
        os.rename(workdir / "metrics.jsonl", workdir / f"checkpoints.old-{number}" / "metrics.jsonl")


def _train(config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    prepared = prepare.load_prepared(config, workdir)
    batches = open_batches(config, prepared, "train", config.train.batch_size, config.train.epochs)
    parts = build_model(config, len(prepared.text_tokenizer), mesh)
    optimizer, schedule = make_optimizer(config, parts.config.width, len(batches))
    state = start_state(parts.trained, optimizer, mesh)
    longest = prepared.manifest.splits["train"].longest_answer
    with closing(Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints)) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            state = checkpoints.load(start, state)
        _show_start(config, mesh, parts, prepared, len(batches), start)
        with closing(MetricsLog(workdir / "metrics.jsonl", start)) as log:
            loop = _Loop(
                mesh=mesh,
                total=len(batches),
                every=config.train.checkpoint_every,
                frozen=parts.frozen,
                step=make_step(parts, optimizer, longest, config.lora.dropout, config.seed),
                validate=_make_validation(config, prepared, parts, mesh),
                schedule=schedule,
                checkpoints=checkpoints,
                log=log,
            )
            loop.run(batches, state, start)


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


@dataclass(frozen=True)
class _Loop:
    """The steps of a training, with what is written and shown in between."""

    mesh: Mesh
    total: int
    every: int
    frozen: Any
    step: Callable
    validate: Callable | None
    schedule: optax.Schedule
    checkpoints: Checkpoints
    log: MetricsLog

    def run(self, batches: grain.MapDataset, state: TrainState, start: int) -> None:
        """Steps start + 1 .. total. A step's figures are read when the next is under way, so the device never waits."""
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        iterator = iter(batches[start:].to_iter_dataset(ahead))
        waiting, began = None, time.monotonic()
        with progress("train", self.total) as report:
            for number in range(start + 1, self.total + 1):
                batch = next(iterator)
                state, metrics = self.step(state, self.frozen, put_batch(batch, self.mesh))
                if waiting:
                    self._record(*waiting, report)
                now = time.monotonic()
                rate, began = batch["attention_mask"].sum() / (now - began), now
                waiting = (number, metrics, rate)
                if number % self.every == 0 or number == self.total:
                    self._record(*waiting, report, state)
                    waiting = None
                    self.checkpoints.save(number, state)
                    began = time.monotonic()

    def _record(self, number: int, metrics: dict, rate: float, report: Callable, state: TrainState | None = None) -> None:
        """Writes one step's line; with `state`, the validation loss too. Raises TrainingError on a loss that is not finite."""
        line = {"step": number} | {name: float(value) for name, value in metrics.items()}
        line |= {"learning_rate": float(self.schedule(number - 1)), "tokens_per_s": round(float(rate), 1)}
        if not np.isfinite(line["loss"]):
            raise TrainingError(
                f"step {number}: the loss is {line['loss']}; the last checkpoint is step {self.checkpoints.latest()}"
            )
        if state is not None and self.validate is not None:
            line["valid_loss"] = self.validate(state.params, self.frozen)
            console.print(f"step {number}: loss {line['loss']:.4f}, validation loss {line['valid_loss']:.4f}")
        self.log.write(line)
        report(number, f"loss {line['loss']:.4f}")


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
