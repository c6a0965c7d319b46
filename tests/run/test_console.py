"""What comes from data is shown as it is, whatever it looks like to rich."""

import io
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
