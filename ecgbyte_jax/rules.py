"""Settings: dataclass fields with a default, a meaning, and a rule that every value must satisfy."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_origin, get_type_hints

from ecgbyte_jax.errors import SettingsError


@dataclass(frozen=True)
class Rule:
    """Which values are accepted, and the words for it in error messages."""

    accepts: Callable[[Any], bool]
    expected: str


def at_least(least: float) -> Rule:
    """A finite number of at least `least`."""
    return Rule(lambda value: least <= value < math.inf, f"at least {least}")


def above(bound: float) -> Rule:
    """A finite number greater than `bound`."""
    return Rule(lambda value: bound < value < math.inf, f"a finite number above {bound}")


def between(low: float, high: float) -> Rule:
    """A number from `low` to `high`, both included."""
    return Rule(lambda value: low <= value <= high, f"{low} to {high}")


def one_of(*known: object) -> Rule:
    """One of a few values."""
    return Rule(lambda value: value in known, f"one of {known}")


def some_of(*known: object) -> Rule:
    """A tuple of values among a few."""
    return Rule(lambda values: set(values) <= set(known), f"some of {known}")


def setting(default: object, meaning: str, rule: Rule | None = None, is_path: bool = False) -> Any:
    """A dataclass field with its meaning (including units) and rule, for `check` and the documentation of settings.

    is_path: the value names a file or folder, where a leading ~ is the home directory.
    """
    metadata = {"meaning": meaning, "rule": rule, "is_path": is_path}
    if isinstance(default, dict):  # each has one of its own
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def check(part: Any, also: Iterable[str] = ()) -> None:
    """Raises SettingsError that lists every field of a dataclass whose value has the wrong type or violates its rule.

    also: further problems that the caller found, one line each; empty ones are ignored.
    """
    types = get_type_hints(type(part))
    lines = [_problem(f.name, getattr(part, f.name), types[f.name], f.metadata.get("rule")) for f in fields(part)]
    # Rules that compare fields make sense only if each field is valid by itself.
    problems = [line for line in lines if line] or [line for line in also if line]
    if problems:
        raise SettingsError(problems)


def _problem(name: str, value: Any, kind: Any, rule: Rule | None) -> str:
    if not _is_a(value, kind):
        return f"{name}: {value!r} found, {spell(kind)} expected"
    if rule is not None and not _accepts(rule, value):
        return f"{name}: {value!r} found, {rule.expected} expected"
    return ""


def _accepts(rule: Rule, value: Any) -> bool:
    try:
        return bool(rule.accepts(value))
    except (OSError, OverflowError, ValueError):  # a path that no system has, or a number that no float holds
        return False


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value has a field's type; an int is also accepted as float, but a bool is not a number."""
    if kind is Any:
        return True
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is Mapping:
        return isinstance(value, dict) and all(_is_a(item, get_args(kind)[1]) for item in value.values())
    accepted = (int, float) if kind is float else kind
    return isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))


def spell(kind: Any) -> str:
    """Words for the type of a field."""
    if get_origin(kind) is tuple:
        return f"a tuple of {get_args(kind)[0].__name__}"
    if get_origin(kind) is Mapping:
        inner = get_args(kind)[1]
        return f"values of type {inner.__name__} by name" if isinstance(inner, type) else "settings by name"
    return f"a value of type {kind.__name__}"
