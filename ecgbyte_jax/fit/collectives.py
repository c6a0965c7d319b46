"""The communication of a compiled program, counted in its text."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
# What is started is counted where it is done: there the text has its results alone.
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(?:-done)?\(")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|called_computations|branch_computations)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_WHILE = re.compile(r" while\(.*condition=%([\w.\-]+)")
_LIMIT = re.compile(r" constant\((\d+)\)")
_ARRAY = re.compile(r"(pred|s4|u4|s8|u8|s16|u16|s32|u32|s64|u64|bf16|f16|f32|f64|f8\w*)\[([\d,]*)\]")
_BITS = {"pred": 8, "bf16": 16}


@dataclass(frozen=True)
class Collectives:
    """How often a program sends something of one kind in a run, and the bytes of the results on each device."""

    places: int  # in the program's text
    times: int  # in a run: those in a loop count for every round
    bytes: int


def count_collectives(text: str) -> dict[str, Collectives]:
    """The collectives of a compiled program (HLO text after all passes), by kind."""
    bodies, entry = _computations(text)
    times: dict[str, int] = defaultdict(int)
    times[entry] = 1
    for name in _in_order_of_calls(bodies, entry):
        for line in bodies[name]:
            rounds = _rounds(line, bodies)
            for called in _called(line):
                times[called] += times[name] * rounds
    totals: dict[str, list[int]] = {}
    for name, lines in bodies.items():
        for line in lines:
            if (found := _COLLECTIVE.search(line)) and times[name]:
                total = totals.setdefault(found[2], [0, 0, 0])
                sent = times[name] * _bytes(found[1])
                totals[found[2]] = [total[0] + 1, total[1] + times[name], total[2] + sent]
    return {kind: Collectives(*total) for kind, total in sorted(totals.items())}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation, by its name; the name of the one that is run."""
    bodies: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            bodies[name], entry = [], name if found[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _rounds(line: str, bodies: dict[str, list[str]]) -> int:
    """How often a line runs what it calls: of a loop as XLA says, or up to the number that its condition compares with."""
    if known := _TRIPS.search(line):
        return int(known[1])
    loop = _WHILE.search(line)
    limits = [int(found[1]) for inner in bodies[loop[1]] if (found := _LIMIT.search(inner))] if loop else []
    return limits[0] if len(limits) == 1 else 1


def _called(line: str) -> list[str]:
    return [name.strip().lstrip("%") for found in _CALLED.finditer(line) for name in found[1].split(",")]


def _in_order_of_calls(bodies: dict[str, list[str]], entry: str) -> list[str]:
    """Every computation after all that call it."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen or name not in bodies:
            return
        seen.add(name)
        for line in bodies[name]:
            for called in _called(line):
                visit(called)
        order.append(name)

    visit(entry)
    return order[::-1]


def _bytes(shape: str) -> int:
    """The bytes of all arrays of a result."""
    total = 0
    for kind, dimensions in _ARRAY.findall(shape):
        bits = _BITS.get(kind) or int(re.search(r"\d+", kind)[0])
        total += math.prod(int(size) for size in dimensions.split(",") if size) * bits // 8
    return total
