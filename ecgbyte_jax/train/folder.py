"""The folder of a training: what the same training left there is gone on with, what another one left is moved aside."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgbyte_jax.run.console import console
from ecgbyte_jax.run.processes import agree, leads, wait_for_all
from ecgbyte_jax.run.stage import Stage
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.train.checkpoint import Checkpoints, DamagedCheckpointError
from ecgbyte_jax.train.loop import Outputs
from ecgbyte_jax.train.metrics_log import MetricsLog
from ecgbyte_jax.train.restore import check_origin


@dataclass(frozen=True)
class TrainingFolder:
    """A stage that trains, the layout of its outputs, the description of its checkpoints, and how many are kept.

    keep_settings: writes the settings into the run's config.json, for an interrupted training to go on with.
    """

    stage: Stage
    workdir: Workdir
    keep_settings: Callable[[], None]

    def take_back(self) -> None:
        """Puts back what this very training left and another one moved aside."""
        if leads() and self.stage.take_back(self.workdir.checkpoints, *self._moved_with()):
            self.keep_settings()
        wait_for_all("an earlier training is back in its place")

    def open(self, about: dict, keep: int, wandb_project: str, opened: ExitStack) -> "OpenFolder":
        """Opens the checkpoints of this training, where there are any; `opened` closes them."""
        folder = OpenFolder(self, about, keep, wandb_project, opened)
        if agree(self.stage.begun()):  # else those here are of another training
            folder.open_checkpoints()
        return folder

    def displace(self) -> None:
        """Moves aside what another training left here, and marks this one as begun."""
        if leads():
            self.stage.move_aside(self.workdir.checkpoints, *self._moved_with())
            self.stage.begin()
            self.keep_settings()
        wait_for_all("the training has begun")

    def _moved_with(self) -> tuple[Path, ...]:
        """What belongs to the checkpoints and is moved with them."""
        return self.workdir.metrics, self.workdir.tensorboard, self.workdir.wandb_run


@dataclass
class OpenFolder:
    """The opened checkpoints of a training, None before its first step, and its log."""

    folder: TrainingFolder
    about: dict
    keep: int
    wandb_project: str
    opened: ExitStack
    checkpoints: Checkpoints | None = None

    @property
    def resumed(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.checkpoints is not None and bool(self.checkpoints.steps())

    def open_checkpoints(self) -> None:
        """Opens the folder's checkpoints, to read and to write."""
        self.checkpoints = self.opened.enter_context(closing(Checkpoints(self.folder.workdir.checkpoints, self.keep)))

    def newest(self, like: Any) -> tuple[Any | None, int]:
        """The newest whole checkpoint and its step (None, 0 without one); damaged ones are moved aside and reported."""
        while self.checkpoints is not None and self.checkpoints.steps():
            step = self.checkpoints.steps()[-1]
            try:
                check_origin(self.checkpoints, step, self.about)
                return self.checkpoints.load(step, like), step
            except DamagedCheckpointError as error:
                moved = self.checkpoints.set_aside(step, str(error))
                console.print(f"{self.folder.stage.name}: {error}; moved to {moved}, going back to the one before")
        return None, 0

    def outputs(self, start: int) -> Outputs | None:
        """What a training that goes on after step `start` writes to; None for one that has not begun."""
        return None if self.checkpoints is None else self._outputs(self.checkpoints, start)

    def begin(self) -> Outputs:
        """What a new training writes to, in place of what another one left here."""
        self.folder.displace()
        self.open_checkpoints()
        assert self.checkpoints is not None
        return self._outputs(self.checkpoints, 0)

    def _outputs(self, checkpoints: Checkpoints, start: int) -> Outputs:
        log = MetricsLog(self.folder.workdir, start, self.wandb_project, self.about["config"])
        return Outputs(checkpoints, self.opened.enter_context(closing(log)))
