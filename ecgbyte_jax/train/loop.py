"""The loop of a training: steps, their figures, validation, checkpoints, and the reasons to end."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from ecgbyte_jax.errors import StoppedError, TrainingError
from ecgbyte_jax.model.sharding import settle
from ecgbyte_jax.run import processes
from ecgbyte_jax.run.console import console, progress
from ecgbyte_jax.settings import PretrainSettings, TrainSettings
from ecgbyte_jax.train.checkpoint import Checkpoints
from ecgbyte_jax.train.feed import Feed
from ecgbyte_jax.train.metrics_log import MetricsLog
from ecgbyte_jax.train.step import TrainState


@dataclass
class Profile:
    """A JAX profile of the steps `first` to `last`, written into `folder`; none where first is 0."""

    folder: Path
    first: int = 0
    last: int = 0
    _running: bool = False

    def before(self, number: int) -> None:
        """Begins before the first of its steps."""
        if self.first and self.first <= number <= self.last and not self._running:
            jax.profiler.start_trace(str(self.folder))
            self._running = True

    def after(self, number: int, state: TrainState) -> None:
        """Ends after its last step, when the work is done."""
        if self._running and number >= self.last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends, where the training ends before its last step."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            console.print(f"profile of steps {self.first} to {self.last}: {self.folder}")


@dataclass(frozen=True)
class Outputs:
    """What a training writes."""

    checkpoints: Checkpoints
    log: MetricsLog


@dataclass
class Loop:
    """Everything that stays the same from step to step.

    A resumed training has its `outputs`; a new one gets them from `begin` when its first step is done, so that one that cannot
    take a step displaces nothing. name: of the stage. figures: (number of a step, seconds) -> its speed and the like, for the
    log.
    """

    name: str
    train: TrainSettings | PretrainSettings
    steps: int
    frozen: Any
    schedule: optax.Schedule
    figures: Callable[[int, float], dict[str, float]]
    outputs: Outputs | None
    begin: Callable[[], Outputs]
    about: dict
    batch_examples: Callable[[int], list[str]]
    _clock: float = field(default_factory=time.monotonic)

    def run(
        self, state: TrainState, start: int, feed: Feed, step: Callable, validate: Callable | None, profile: Profile
    ) -> int:
        """Takes the steps after `start`, logs each, validates and saves every few; returns the number of the last one.

        A step's figures are read while the next one runs, so that the devices never wait.
        """
        waiting: tuple[int, dict, float] | None = None
        if self.outputs and self._is_overfitting():
            return start
        with progress(self.name, self.steps, start) as report, processes.stop_requests() as requested, closing(profile):
            for number in range(start + 1, self.steps + 1):
                profile.before(number)
                batch, waited = feed.take(), feed.waited
                state, metrics = step(state, self.frozen, batch, number)
                feed.prefetch()
                settle(metrics)
                if self.outputs is None:
                    self._check_first(number, metrics)
                    self.outputs = self.begin()
                if waiting:
                    report(waiting[0], self._write(self._read(*waiting), state))
                waiting = (number, metrics, waited)
                profile.after(number, state)
                due = number % self.train.checkpoint_every == 0 or number == self.steps
                stop = requested(number)
                if not due and not stop:
                    continue
                line, waiting = self._read(*waiting), None
                line |= validate(state) if validate and due else {}
                report(number, self._write(line, state))
                self.outputs.checkpoints.save(number, state, self.about, line.get("valid_loss"))
                self._clock = time.monotonic()
                if stop and number < self.steps:
                    self.outputs.checkpoints.wait()
                    raise StoppedError(f"training stopped after step {number}, as asked; the same command goes on from there")
                if due and self._is_overfitting():
                    console.print(f"{self.name}: ended at step {number}, the validation loss has stopped falling")
                    return number
        return self.steps

    def _check_first(self, number: int, metrics: dict[str, jax.Array]) -> None:
        """Raises TrainingError where the first step is not finite, before anything is displaced by its training."""
        bad = next((name for name in ("loss", "grad_norm") if not np.isfinite(float(metrics[name]))), None)
        if bad is not None:
            examples = ", ".join(self.batch_examples(number))
            raise TrainingError(
                f"step {number}: {bad} is {metrics[bad]}; nothing was written; the batch's examples: {examples}"
            )

    def _read(self, number: int, metrics: dict[str, jax.Array], waited: float) -> dict[str, float]:
        """One line of the log; waits until the step is done."""
        line = {"step": number} | {name: float(value) for name, value in metrics.items()}
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        line |= {"learning_rate": float(self.schedule(number - 1)), "input_wait": round(min(waited / seconds, 1.0), 4)}
        return line | self.figures(number, seconds)

    def _write(self, line: dict[str, float], state: TrainState) -> str:
        """Writes a line of the log; returns what the progress bar shows of it."""
        self._check_finite(line, state)
        self.outputs.log.write(line)
        if "valid_loss" in line:
            match = f", exact match {100 * line['valid_exact_match']:.1f}%" if "valid_exact_match" in line else ""
            console.print(f"step {line['step']}: loss {line['loss']:.4f}, validation loss {line['valid_loss']:.4f}{match}")
        speed, value = next((name, value) for name, value in line.items() if name.endswith("_per_s"))
        shown = f"loss {line['loss']:.4f}, rate {line['learning_rate']:.1e}, {value:,.0f} {speed.removesuffix('_per_s')}/s"
        return shown + (f", MFU {100 * line['mfu']:.0f}%" if "mfu" in line else "")

    def _check_finite(self, line: dict[str, float], state: TrainState) -> None:
        """Stops the run at a figure that is not finite, with a checkpoint of the state before the step."""
        bad = next((name for name in ("loss", "grad_norm", "valid_loss") if not np.isfinite(line.get(name, 0.0))), None)
        if bad is None:
            return
        where = f"step {line['step']}: {bad} is {line[bad]}"
        if bad == "valid_loss":
            raise TrainingError(f"{where}; the last checkpoint is step {self.outputs.checkpoints.latest()}")
        before = int(state.step)  # a step that is not finite leaves the state unchanged
        if before not in self.outputs.checkpoints.steps():
            self.outputs.checkpoints.save(before, state, self.about)
            self.outputs.checkpoints.wait()
        examples = ", ".join(self.batch_examples(line["step"]))
        raise TrainingError(f"{where}; checkpoint {before} holds the state before it; the batch's examples: {examples}")

    def _is_overfitting(self) -> bool:
        """Published early stopping: the last loss exceeds the best of all but the last `train.patience` ones."""
        patience = self.train.patience
        losses = [line["valid_loss"] for line in self.outputs.log.lines if "valid_loss" in line]
        worse = patience and len(losses) > patience and losses[-1] > min(losses[:-patience]) + self.train.patience_delta
        return bool(processes.agree(int(worse)))
