"""What a person sees while a run goes on, and `metrics.jsonl`, what stays of it."""

import json
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ecgbyte_jax.errors import TrainingError

console = Console(highlight=False, soft_wrap=True)


class _Rate(TextColumn):
    """Steps a second, since the start."""

    def render(self, task):
        return f"{task.finished_speed or task.speed or 0:6.1f}/s"


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar with rate and remaining time (at the end, the time it took); yields `report(done, note="")`."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        _Rate(""),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


def banner(title: str, rows: dict[str, object]) -> None:
    """A title and aligned `name value` lines."""
    console.print(f"[bold]{title}[/bold]")
    for name, value in rows.items():
        console.print(f"  {name:<22} {value}", markup=False)


def number_table(title: str, corner: str, rows: dict[str, dict[str, float]], form: str) -> None:
    """One line a row, one column a name, every number in the given form."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(corner)
    names = list(next(iter(rows.values())))
    for name in names:
        table.add_column(name, justify="right")
    for row, numbers in rows.items():
        table.add_row(row, *(format(numbers[name], form) for name in names))
    console.print(table)


def peak_memory() -> int:
    """Bytes, of this process since its start."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class MetricsLog:
    """Appends one JSON line at a time to `metrics.jsonl`, flushed, dropping on opening what lies behind `from_step`."""

    def __init__(self, path: Path, from_step: int):
        kept = _lines(path, from_step)
        self.last: dict = kept[-1] if kept else {}
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, line: dict[str, object]) -> None:
        """`line` must hold its step."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self.last = line

    def close(self) -> None:
        self._file.close()


def _lines(path: Path, up_to_step: int) -> list[dict]:
    """The whole lines of a log up to a step; the last one may be cut where a run was killed."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    try:
        return [line for line in map(json.loads, lines[:-1]) if line["step"] <= up_to_step]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: a line is not one of this log's ({error!r}); move the file away to go on") from error
