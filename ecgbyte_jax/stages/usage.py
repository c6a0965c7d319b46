"""What --help prints: the stages, the flags, and every setting with its default, meaning and unit."""

import re
import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from ecgbyte_jax.setting_names import default_of, setting_fields
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages.pipeline import STAGES

_NARROWEST, _WIDEST = 40, 100
_ALONE = {
    "compare": "by itself: the scores of several runs in one table, --runs=DIR,DIR",
    "list": "by itself: the runs below a folder, --runs=FOLDER (default: runs)",
}
_FORM = re.compile(r"^<.*?>: |;\s+repeat this option.*", re.S)  # which absl adds to the help of some flags
_START = """\
{command} --config=ecgbyte:demo      a run that needs no data
{command} --config=experiments/NAME.py --stage=STAGES --config.NAME=VALUE
{command} --run=DIR --stage=STAGES   in DIR, with its settings
{command} init                       copies the experiments here
"""


def usage(flags: Iterable[Any], command: str) -> str:
    """The whole text, as wide as the terminal (80 places where there is none, 100 at most).

    flags: absl's; command: how the program is called.
    """
    width = max(min(shutil.get_terminal_size().columns, _WIDEST), _NARROWEST)
    lines = [*_START.format(command=command).splitlines(), "", "Stages, which run in this order; one that is done is skipped:"]
    lines += [line for name, what in (STAGES | _ALONE).items() for line in _entry(f"  {name:<10} ", what, width)]
    lines += ["", "Flags:"]
    for flag in flags:
        lines += _entry(f"  --{flag.name}", _with_default(_FORM.sub("", flag.help), flag.default), width)
    lines += ["", 'Settings, given as --config.NAME=VALUE; () and "" are empty:']
    part = ""
    for name, setting in setting_fields().items():
        if "." in name and name.partition(".")[0] != part:
            part = name.partition(".")[0]
            lines += ["", *textwrap.wrap(f"{part}: {_purpose(part)}", width - 1)]
        rule = setting.metadata["rule"]
        meaning = setting.metadata["meaning"] + (f" [{rule.expected}]" if rule else "")
        lines += [f"  {name}={_spell(default_of(setting))}", *_wrap(meaning, "      ", width)]
    return "\n".join(lines)


def _entry(start: str, text: str, width: int) -> list[str]:
    """`start` and the text beside it where it is short, else below it."""
    if len(start) <= 14:
        return textwrap.wrap(text, width - 1, initial_indent=f"{start:<14}", subsequent_indent=" " * 14)
    return [start, *_wrap(text, " " * 14, width)]


def _wrap(text: str, indent: str, width: int) -> list[str]:
    how: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, width - 1, initial_indent=indent, subsequent_indent=indent, **how)


def _with_default(text: str, default: object) -> str:
    stated = "default" in text.lower() or default in (None, [], "", False, 0.0)
    shown = ",".join(default) if isinstance(default, list) else default
    return text if stated else f"{text} Default: {shown}."


def _purpose(part: str) -> str:
    kind = next(field.default_factory for field in fields(Settings) if field.name == part)
    return re.split(r"(?<! al)\. ", kind.__doc__ or "")[0].split("; ")[0].removesuffix(".")


def _spell(value: object) -> str:
    """A value as it is given on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'
