"""Settings by their names: all of them for --help, what each accepts, and those that a misspelt name may mean."""

import re
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from ecgbyte_jax.rules import Rule, spell
from ecgbyte_jax.settings import Settings


def setting_fields() -> dict[str, Field]:
    """Every setting by its name, `part.name`, in the order of this file; `seed` has no part."""
    named: dict[str, Field] = {}
    for part in fields(Settings):
        if isinstance(part.default_factory, type):
            named |= {f"{part.name}.{inner.name}": inner for inner in fields(part.default_factory)}
        else:
            named[part.name] = part
    return named


def default_of(setting: Field) -> Any:
    """The default of a setting."""
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def setting_of(name: str) -> str:
    """The setting that a name is about: data.root of data.parts.cpsc.root, data.mixture of data.mixture.cpsc; itself else."""
    if found := re.fullmatch(r"data\.parts\.\w+\.(\w+)", name):
        return f"data.{found[1]}"
    return re.sub(r"(?<=^data\.mixture)\.\w+$", "", name)


def expected_values(name: str) -> str:
    """Words for the values that a setting accepts: "a value of type int, at least 1"."""
    name = setting_of(name)
    part, _, last = name.rpartition(".")
    owner = {f.name: f.default_factory for f in fields(Settings)}[part] if part else Settings
    rule: Rule | None = setting_fields()[name].metadata["rule"]
    return spell(get_type_hints(owner)[last]) + (f", {rule.expected}" if rule else "")


def nearest_settings(name: str) -> list[str]:
    """Up to three settings that a misspelt, incomplete or foreign name (`lr`) may mean, the likeliest first."""
    known, last = setting_fields(), name.rpartition(".")[2].lower()
    short = {full: full.rpartition(".")[2] for full in known}
    spelt = [last, *get_close_matches(last, short.values(), 3, 0.75)]
    found = get_close_matches(name, known, 1, 0.85) + [full for close in spelt for full in known if short[full] == close]
    for full, described in known.items():
        meaning = f"{short[full].replace('_', ' ')}, {described.metadata['meaning']}"
        initials = "".join(word[0] for word in re.findall("[a-z]+", meaning)[:6])
        if last.replace("_", " ") in meaning if len(last) > 3 else len(last) > 1 and last in initials:
            found.append(full)
    return list(dict.fromkeys(found))[:3]
