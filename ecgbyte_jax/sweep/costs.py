"""What the runs of a system have cost, and how their scores rose with it."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ecgbyte_jax.errors import ScoresError
from ecgbyte_jax.run import cost as ledger
from ecgbyte_jax.run.stage import digest_of
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.train.metrics_log import read_lines

AXES = ("examples", "flops", "seconds")


@dataclass(frozen=True)
class Point:
    """A validation: its score 0..1, and what the training had cost until then, its first stage included.

    examples: questions with their answers; flops: analytic ones; seconds: wall time.
    """

    score: float
    examples: float
    flops: float
    seconds: float


def cost_of(run: Workdir, tokenizer: Workdir | None) -> dict[str, float]:
    """What one run has cost: what it has seen, FLOPs, seconds and bytes, of both stages; energy_j where hardware reports it.

    tokenizer: the run whose ledger has the training of the ECG tokenizer, for a system that reads tokens. Raises ScoresError
    where a ledger has nothing of a stage that was run.
    """
    train, first = _entry(run, "train", run.train_marker), _entry(run, "pretrain", run.pretrain.train_marker)
    reports = _entry(run, "reports", run.reports_marker)
    encoding = _entry(tokenizer, "tokenizer", tokenizer.tokenizer_marker) if tokenizer else {}
    seen, before, parts = train["seen"], first.get("seen", {}), [part for part in (train, first, reports, encoding) if part]
    cost = {
        "ecgs": max(seen["ecgs"], before.get("ecgs", 0)),
        "patients": max(seen["patients"], before.get("patients", 0)),
        "examples": seen["sequences"],
        "first stage's segments": before.get("examples", 0),
        **{f"{kind} tokens": seen["tokens"][kind] for kind in ("ecg", "text", "padding")},
        "flops": seen["flops"] + seen["ecg_input_flops"],
        "first stage's flops": before.get("flops", 0.0) + reports.get("seen", {}).get("flops", 0.0),
        "seconds": sum(part["wall_s"] for part in parts),
        "first stage's seconds": first.get("wall_s", 0.0) + reports.get("wall_s", 0.0),
        "tokenizer's seconds": encoding.get("wall_s", 0.0),
        "device_s": sum(part["device_s"] for part in parts),
        "cpu_s": sum(part["cpu_s"] for part in parts),
        "peak_memory": max(part["peak_memory"] for part in parts),
    }
    reported = [part["energy_j"] for part in parts if part.get("energy_j")]
    return cost | ({"energy_j": sum(sum(each.values()) for each in reported)} if len(reported) == len(parts) else {})


def curve(run: Workdir, cost: dict[str, float], metric: str) -> list[Point]:
    """The validations of a run, with what it had cost until then: the second stage's cost in proportion to its steps.

    Raises ScoresError as `validated` does.
    """
    lines = validated(run, metric)
    steps = max(line["step"] for line in lines)
    before = {
        "examples": 0.0,
        "flops": cost["first stage's flops"],
        "seconds": cost["first stage's seconds"] + cost["tokenizer's seconds"],
    }
    spent = {"examples": cost["examples"], "flops": cost["flops"], "seconds": cost["seconds"] - before["seconds"]}
    return [
        Point(line[f"valid_{metric}"], *(before[axis] + spent[axis] * line["step"] / steps for axis in AXES))
        for line in lines
        if f"valid_{metric}" in line
    ]


def validated(run: Workdir, metric: str = "exact_match") -> list[dict]:
    """The lines of a training's log; raises ScoresError where no validation in it has the score."""
    lines = read_lines(run.metrics, 2**62)
    if not any(f"valid_{metric}" in line for line in lines):
        raise ScoresError(
            f"{run.metrics}: no {metric} of a validation found; train.valid_answers above 0, and a validation split that "
            "fills a batch (train.batch_size), expected"
        )
    return lines


def mean_curve(curves: list[list[Point]]) -> list[Point]:
    """The mean over trainings of their validations; one that ended early stays at its last, and costs no more."""
    longest = max(map(len, curves))
    whole = [points + points[-1:] * (longest - len(points)) for points in curves]
    return [
        Point(*(float(np.mean([getattr(point, name) for point in points])) for name in ("score", *AXES)))
        for points in zip(*whole)
    ]


def cost_to_reach(points: list[Point], score: float) -> Point | None:
    """The first point of a curve that has this score, on the straight line between two validations; None if there is none."""
    if points[0].score >= score:
        return points[0]
    for low, high in pairwise(points):
        if high.score >= score:
            part = (score - low.score) / (high.score - low.score)
            return Point(score, *(getattr(low, axis) + part * (getattr(high, axis) - getattr(low, axis)) for axis in AXES))
    return None


def _entry(run: Workdir, stage: str, marker: Path) -> dict[str, Any]:
    """What the stage that left this marker has cost, whatever others have cost there since; {} where there is none."""
    if not marker.is_file():
        return {}
    entry = ledger.cost_of(run, stage, digest_of(marker))
    if not entry or (stage in ("train", "pretrain") and "seen" not in entry):
        raise ScoresError(
            f"{run.cost}: no costs of the stage '{stage}' there, which was run: the file was removed or damaged; remove "
            f"'{marker.parent}' to have that stage, and its costs, again"
        )
    return entry
