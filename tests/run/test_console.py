"""What comes from data is shown as it is, whatever it looks like to rich."""

import io
import time
from collections.abc import Iterator

import pytest

from ecgbyte_jax.run import console as logbook
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.stages import inspect

ODD = "a[/b] [red]c :heart: \\[d]"


@pytest.fixture
def printed() -> Iterator[io.StringIO]:
    logbook.console.file = io.StringIO()
    yield logbook.console.file
    logbook.console.file = None  # sys.stdout again, whatever that is at the time


def test_ids_types_and_folders_are_shown_as_they_are(printed):
    logbook.console.print(ODD)
    logbook.banner(ODD, {ODD: ODD})
    logbook.number_table(ODD, ODD, {ODD: {ODD: 1.0}}, ".1f")
    with logbook.progress(ODD, 1) as report:
        report(1, ODD)
    shown = printed.getvalue()
    assert shown.count(ODD) == 10, shown


def test_control_characters_do_not_reach_the_terminal(printed):
    logbook.console.print("a\x1b[2Jb\x00c\nd")
    assert printed.getvalue() == "a�[2Jb�c\nd\n"


def test_a_prompt_s_id_is_shown_as_it_is(printed, prepared):
    from ecgbyte_jax.inputs.prepared import load_prepared

    found = load_prepared(Workdir(prepared))
    sequence = inspect._draw(found, "train", 0)[0]
    object.__setattr__(sequence, "id", ODD)
    inspect._show_prompt(found, sequence, 1024)
    assert f"prompt of {ODD}: " in printed.getvalue()


def bar(note: str = "loss 0.2503, rate 8.8e-04, 11,365 tokens/s") -> logbook._Progress:
    """287 steps, done in 143.5 s."""
    state = logbook._Progress("train", 287, 0, start=1000.0, ended=1143.5)
    state.done, state.note = 287, note
    return state


@pytest.mark.parametrize(
    ("width", "before", "places", "after"),
    [
        (120, 29, 12, " 287/287    2.0/s 0:02:24 loss 0.2503, rate 8.8e-04, 11,365 tokens/s"),
        (100, 29, 12, " 287/287    2.0/s 0:02:24 loss 0.2503, rate 8.8e-04"),
        (80, 29, 12, " 287/287    2.0/s 0:02:24 loss 0.2503"),
        (70, 29, 12, " 287/287    2.0/s 0:02:24"),
        (60, 29, 0, "287/287    2.0/s 0:02:24"),
        (40, 6, 0, "287/287 2.0/s 0:02:24"),
        (25, 6, 0, "287/287 0:02:24"),
    ],
)
def test_a_bar_fits_the_window_and_loses_the_note_first_and_the_count_never(width, before, places, after):
    found = bar().fitted(width)
    assert (len(found[0]), *found[1:]) == (before, places, after) and before + places + len(after) < width


def test_a_bar_ends_with_the_rate_since_its_start_without_what_was_done_before():
    state = bar()
    assert state.rate() == 2.0
    state.begun = 143.5
    assert state.rate() == 1.0
    state = logbook._Progress("encode", 500, 0)
    state.report(500)  # at once, as the first thing that is heard of it
    state.report(500)  # and again at once: its rate of late is beyond all measure
    state.ended = state.start + 2
    assert "250.0/s" in "".join(map(str, state.fitted(80)))


def test_without_a_terminal_a_line_comes_every_few_seconds_and_one_at_the_end(printed, monkeypatch):
    monkeypatch.setattr(logbook.console, "log_every", 0.05)
    with logbook.progress("train", 1000) as report:
        time.sleep(0.08)  # a long first step
        for step in range(1, 11):
            report(step, "loss 0.2503")
            time.sleep(0.02)
        report(1000, "loss 0.1")
    first, *between, last = printed.getvalue().splitlines()
    assert first == "train: 0 of 1000 after 0:00:00"
    assert 2 <= len(between) <= 6 and all("/s, 0:0" in line and "left, loss 0.2503" in line for line in between), between
    assert last.startswith("train: 1000 of 1000, ") and last.endswith("/s, took 0:00:00, loss 0.1")


def test_a_notebook_that_asks_for_colours_gets_lines_and_no_bar(printed, monkeypatch):
    monkeypatch.setattr(logbook.console, "_force_terminal", True)  # as FORCE_COLOR does
    with logbook.progress("train", 2) as report:
        report(2)
    assert logbook.console.is_terminal and "\x1b" not in printed.getvalue()
    assert printed.getvalue().startswith("train: 2 of 2, ")


def test_without_log_lines_only_the_last_is_written(printed, monkeypatch):
    monkeypatch.setattr(logbook.console, "log_every", 0.0)
    with logbook.progress("train", 2) as report:
        report(1)
        time.sleep(0.05)
        report(2)
    assert printed.getvalue().startswith("train: 2 of 2, ") and printed.getvalue().count("\n") == 1


@pytest.mark.parametrize("width", [40, 50, 80, 100, 160])
def test_a_table_keeps_words_whole_and_within_the_window(printed, monkeypatch, width):
    monkeypatch.setattr(logbook.console, "width", width)
    names = ("exact match", "bleu", "mean bleu", "meteor", "rouge 1", "rouge 2", "rouge l", "bertscore f1")
    systems = ("model", "another patient's ECG", "commonest answer")
    logbook.number_table("test", "", {system: dict.fromkeys(names, 45.12) for system in systems}, ".1f")
    lines = printed.getvalue().splitlines()
    words = [word for line in lines for word in line.split()]
    assert max(map(len, lines)) <= width
    assert all(system in printed.getvalue() for system in systems)
    for name in names:
        assert all(word in words for word in name.split()), name
    assert words.count("45.1") == len(names) * len(systems)
