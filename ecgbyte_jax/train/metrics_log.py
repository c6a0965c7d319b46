"""The record of a training's figures: `metrics.jsonl`, TensorBoard's files, and Weights & Biases where it is asked for."""

import json
from pathlib import Path
from typing import Any

from ecgbyte_jax.errors import ConfigError, TrainingError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run import processes
from ecgbyte_jax.run.workdir import Workdir


class MetricsLog:
    """One line a step, flushed, in `metrics.jsonl`, and the same figures as TensorBoard's curves.

    Opening it drops all lines after `from_step`. Of several processes only the leader writes; all have the lines.
    """

    def __init__(self, workdir: Workdir, from_step: int, wandb_project: str = "", config: dict | None = None):
        path = workdir.metrics
        self.lines = read_lines(path, from_step)
        processes.wait_for_all("the metrics are read")
        self._file = self._board = self._wandb = None
        if processes.leads():
            from tensorboardX import SummaryWriter  # brings PyTorch where that is installed, which only a training waits for

            write_whole(path, [f"{json.dumps(line)}\n".encode() for line in self.lines])
            self._file = path.open("a")
            self._board = SummaryWriter(str(workdir.tensorboard), purge_step=from_step + 1)
            self._wandb = _open_wandb(wandb_project, workdir, config or {}) if wandb_project else None
        processes.wait_for_all("the metrics are open")  # Weights & Biases may take its time

    def write(self, line: dict[str, Any]) -> None:
        """`line` must hold its step."""
        self.lines.append(line)
        if self._file is None:
            return
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        figures = {name: value for name, value in line.items() if name != "step"}
        for name, value in figures.items():
            self._board.add_scalar(name, value, line["step"])
        if self._wandb is not None:
            self._wandb.log(figures, step=line["step"])

    def close(self) -> None:
        """Closes all of them."""
        if self._file is not None:
            self._file.close()
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_lines(path: Path, up_to_step: int) -> list[dict]:
    """The complete lines of a log up to a step; the last one may be cut short where a run was killed."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    try:
        return [line for line in map(json.loads, lines[:-1]) if line["step"] <= up_to_step]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: a line is not one of this log's ({error!r}); move the file away to go on") from error


def _open_wandb(project: str, workdir: Workdir, config: dict) -> Any:
    """A run that continues the last one of the same work directory; raises ConfigError without the extra."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("train.wandb_project: needs the extra: pip install -e '.[wandb]'") from error
    id_file = workdir.wandb_run
    known = id_file.read_text() if id_file.is_file() else None
    run = wandb.init(project=project, id=known, resume="allow", dir=str(workdir.root), config=config)
    id_file.write_text(run.id)
    return run
