"""What is shown in the terminal while a run goes on."""

import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line ends


class _PlainConsole(Console):
    """Shows texts as they are: most hold ids, answers or paths, which may look like rich's markup or move the cursor."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(_CONTROL.sub("\ufffd", text), **how)


console = _PlainConsole(markup=False, emoji=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


class _Rate(TextColumn):
    """Steps a second, since the start."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:6.1f}/s")


@contextmanager
def keeping_stdout_clear() -> Iterator[None]:
    """Within it everything is shown on the standard error, since the standard output is another program's input."""
    console.stderr = True
    try:
        yield
    finally:
        console.stderr = False


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar with rate and remaining time (at the end, the time it took); yields `report(done, note="")`."""
    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        _Rate(""),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


def banner(title: str, rows: dict[str, object]) -> None:
    """A title and aligned `name value` lines."""
    console.print(title, style="bold")
    for name, value in rows.items():
        console.print(f"  {name:<22} {value}")


def number_table(title: str, corner: str, rows: dict[str, dict[str, float | str]], form: str) -> None:
    """A line for each row and a column for each name; numbers in the given form, texts as they are."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(corner, no_wrap=True)
    names = list(next(iter(rows.values())))
    for name in names:
        table.add_column(name, justify="right")
    for row, numbers in rows.items():
        cells = (numbers[name] for name in names)
        table.add_row(row, *(cell if isinstance(cell, str) else format(cell, form) for cell in cells))
    console.print(table)


def peak_memory() -> int:
    """The most memory in bytes that this process has used since its start."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
