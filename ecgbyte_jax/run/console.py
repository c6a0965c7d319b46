"""What is shown in the terminal while a run goes on."""

import re
import resource
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line ends
_CLEAR = Path("/proc/self/clear_refs")  # see proc(5)
_BAR, _NAME, _WINDOW = 12, 28, 30.0  # places of a bar and of its name; s that its rate is averaged over


class _PlainConsole(Console):
    """Shows texts as they are: most hold ids, answers or paths, which may look like rich's markup or move the cursor.

    log_every: seconds between the log lines that replace a progress bar when the output is not a terminal; 0: only the last.
    """

    log_every = 30.0

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(_CONTROL.sub("\ufffd", text), **how)


console = _PlainConsole(markup=False, emoji=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


@dataclass
class _Progress:
    """How far a piece of work has got: `begun` of `total` were done before it started, at `start` in s."""

    what: str
    total: int
    begun: int
    start: float = field(default_factory=time.monotonic)
    done: int = 0
    note: str = ""
    ended: float = 0.0
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def report(self, done: int, note: str = "") -> None:
        """Takes note of what is done, and of a text to be shown beside it."""
        now = time.monotonic()
        self.done, self.note = done, note
        self._seen.append((now, done))
        while now - self._seen[0][0] > _WINDOW and len(self._seen) > 2:
            self._seen.popleft()

    def rate(self) -> float:
        """Per second: recently, and since the start once everything is done."""
        if not self.ended and len(self._seen) > 1 and self._seen[-1][0] > self._seen[0][0]:
            (first, before), (last, done) = self._seen[0], self._seen[-1]
            return (done - before) / (last - first)
        return max(self.done - self.begun, 0) / max((self.ended or time.monotonic()) - self.start, 1e-9)

    def _pace(self) -> str:
        return f"{self.rate():.1f}/s" if self.rate() < 1000 else f"{self.rate():,.0f}/s"

    def clock(self) -> str:
        """The time that is left, or that it took: 0:04:23."""
        if self.ended:
            return _spell(self.ended - self.start)
        return _spell((self.total - self.done) / self.rate()) if self.rate() else "-:--:--"

    def line(self) -> str:
        """For a log: everything, in words."""
        if not self.ended and not self.rate():
            return f"{self.what}: {self.done} of {self.total} after {_spell(time.monotonic() - self.start)}"
        time_words = f"took {self.clock()}" if self.ended else f"{self.clock()} left"
        words = (f"{self.done} of {self.total}", self._pace(), time_words, self.note)
        return f"{self.what}: {', '.join(filter(None, words))}"

    def fitted(self, width: int) -> tuple[str, int, str]:
        """What fits on a line of the terminal: (the text before the bar, the bar's places, the text after it).

        The note goes first, from its end, then the bar, then what is beyond the name's own length, then the rate.
        """
        name = f"{self.what:<{_NAME}}"
        count, rate, clock = f"{self.done}/{self.total}", f"{self._pace():>8}", self.clock()
        notes = self.note.split(", ") if self.note else []
        while notes and len(" ".join((name, " " * _BAR, count, rate, clock, ", ".join(notes)))) >= width:
            notes.pop()
        after = " ".join(filter(None, (count, rate, clock, ", ".join(notes))))
        if len(name) + 1 + _BAR + 1 + len(after) < width:
            return f"{name} ", _BAR, f" {after}"
        short = " ".join((count, rate.strip(), clock))
        for before, text in ((name, after), (self.what, short), (self.what, f"{count} {clock}")):
            if len(before) + 1 + len(text) < width:
                return f"{before} ", 0, text
        return f"{self.what[: max(width - len(text) - 2, 0)]} ", 0, text

    def drawn(self) -> Text:
        """One line with a bar, as wide as the terminal is at this moment."""
        before, places, after = self.fitted(console.width)
        full = places * min(self.done, self.total) // self.total if self.total else places
        sign = "-" if console.options.ascii_only else "━"
        rest = sign if console.color_system and not console.no_color else " "
        parts = [(sign * full, "bar.finished" if full == places else "bar.complete"), (rest * (places - full), "bar.back")]
        return Text.assemble(_shown(before), *parts, _shown(after), no_wrap=True, overflow="crop")


def _spell(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _shown(text: str) -> str:
    return _CONTROL.sub("\ufffd", text)


@contextmanager
def keeping_stdout_clear() -> Iterator[None]:
    """Within it everything is shown on the standard error, since the standard output is another program's input."""
    console.stderr = True
    try:
        yield
    finally:
        console.stderr = False


@contextmanager
def progress(what: str, total: int, begun: int = 0) -> Iterator[Callable[..., None]]:
    """A bar with rate and remaining time (at the end, the time it took); yields `report(done, note="")`.

    begun: what was done before, which the rate leaves out. Where the output is no terminal, a line every `console.log_every`
    seconds and one at the end.
    """
    state = _Progress(what, total, begun, done=begun)
    # A notebook asks for colours (FORCE_COLOR), by which rich takes its files for terminals.
    with _bar(state) if console.is_terminal and console.file.isatty() else _log(state):
        try:
            yield state.report
        finally:
            state.ended = time.monotonic()


@contextmanager
def _bar(state: _Progress) -> Iterator[None]:
    with Live(console=console, refresh_per_second=4, get_renderable=state.drawn):
        yield


@contextmanager
def _log(state: _Progress) -> Iterator[None]:
    """Writes from its own thread, so that lines appear even while one step takes minutes."""
    over = threading.Event()

    def write() -> None:
        while not over.wait(console.log_every):
            console.print(state.line())

    thread = threading.Thread(target=write, daemon=True)
    if console.log_every:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if console.log_every:
            thread.join()
        console.print(state.line())


def banner(title: str, rows: dict[str, object]) -> None:
    """A title and aligned `name value` lines; in a terminal, long values go on below themselves."""
    console.print(title, style="bold")
    for name, value in rows.items():
        words, places = str(value), console.width - 26
        if console.is_terminal and max(map(len, words.split()), default=0) <= places:  # a long path stays in one piece
            words = f"\n{' ' * 25}".join(textwrap.wrap(words, places, break_on_hyphens=False))
        console.print(f"  {name:<22} {words}")


def number_table(title: str, corner: str, rows: dict[str, dict[str, float | str]], form: str) -> None:
    """A line for each row and a column for each name; numbers in the given form, texts as they are.

    Where the columns are too many for the window, they go below each other in blocks.
    """
    names = list(next(iter(rows.values())))
    cells = {
        row: [cell if isinstance(cell, str) else format(cell, form) for cell in (numbers[name] for name in names)]
        for row, numbers in rows.items()
    }
    # Headers wrap at words, numbers and the rows' labels nowhere.
    widths = [max(len(text) for text in (*name.split(), *(row[n] for row in cells.values()))) for n, name in enumerate(names)]
    label, gap = max(map(len, (corner, *rows))), 3
    blocks: list[list[int]] = [[]]
    for place in range(len(names)):
        if blocks[-1] and label + sum(widths[n] + gap for n in [*blocks[-1], place]) + gap >= console.width:
            blocks.append([])
        blocks[-1].append(place)
    for number, block in enumerate(blocks):
        table = Table(title=None if number else title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(corner, no_wrap=True)
        for place in block:
            table.add_column(names[place], justify="right", min_width=widths[place])
        for row, texts in cells.items():
            table.add_row(row, *(texts[place] for place in block))
        console.print(table, width=console.width - 2)  # rich takes up to two places more than it is given


def text_table(title: str, rows: list[dict[str, str]]) -> None:
    """A line for each row and a column for each name; texts wrap at words, those of the first column nowhere."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(rows[0]):
        words = [word for text in (name, *(row[name] for row in rows)) for word in text.split()]
        table.add_column(name, no_wrap=place == 0, min_width=max(map(len, words)))
    for row in rows:
        table.add_row(*row.values())
    console.print(table, width=console.width - 2)  # rich takes up to two places more than it is given


def peak_memory() -> int:
    """The most memory in bytes that this process has used since its start, or since `forget_peak_memory`."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak_memory() -> None:
    """Lets `peak_memory` begin anew with what is held now; only Linux can."""
    with suppress(OSError):
        _CLEAR.write_text("5")
