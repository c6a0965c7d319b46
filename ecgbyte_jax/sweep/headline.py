"""Stage `headline`: all systems with the same decoder, data and steps, by scores and costs, on one page."""

import json
import shlex
from contextlib import nullcontext
from dataclasses import asdict, replace

import numpy as np

from ecgbyte_jax.evaluate.metrics import measure
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.pretrain.clean import clean_signals
from ecgbyte_jax.pretrain.pretrain import pretrain
from ecgbyte_jax.report.headline import Comparison, Row, render_headline, score_rows, sentences
from ecgbyte_jax.run.console import banner, console, forget_peak_memory, number_table
from ecgbyte_jax.run.lock import holding
from ecgbyte_jax.run.processes import leads
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages.compare import Evaluated, compared_all, joined
from ecgbyte_jax.stages.eval import evaluate
from ecgbyte_jax.stages.train import train
from ecgbyte_jax.sweep.costs import Point, cost_of, cost_to_reach, curve, mean_curve, validated
from ecgbyte_jax.sweep.share import share
from ecgbyte_jax.sweep.systems import SYSTEMS, check_systems, chosen, settings_of

_NEAR = 0.9  # of the best system's score on the validation split


def headline(settings: Settings, workdir: Workdir) -> None:
    """Trains and evaluates what is missing of every system with every seed, and writes headline.html and headline.json.

    Each is a run in `systems/`, which shares this run's prepared data and clean signals, and can be looked at, reported on and
    gone on with like any other. Raises ConfigError as `check_systems` does.
    """
    check_systems(settings)
    names, seeds = chosen(settings), settings.headline.seeds
    parts = {(name, seed): settings_of(settings, name, seed) for seed in seeds for name in names}
    if any(part.ecg_input.kind != "tokens" for part in parts.values()):
        clean_signals(settings, workdir)
    if leads():
        lineage.keep_settings(settings, workdir, "headline")
    runs: dict[tuple[str, int], Workdir] = {}
    for number, ((name, seed), part) in enumerate(parts.items(), start=1):
        run = share(workdir, workdir.systems / f"{name}-{seed}", (workdir.signals,))
        runs[name, seed] = named = replace(run, evaluation_name=part.eval.name)
        console.print(f"headline: {name}, seed {seed}, in {run.root} ({number} of {len(parts)})", style="bold")
        forget_peak_memory()  # of the systems before
        with holding(run.lock) if leads() else nullcontext():
            if SYSTEMS[name].stages == 2:
                pretrain(part, run)
            train(part, run)
            if leads():
                validated(run)  # else no curve can be drawn, when all have been trained
            evaluate(part, named)
    if leads():
        _compare(settings, workdir, {name: {seed: runs[name, seed] for seed in seeds} for name in names})


def _compare(settings: Settings, workdir: Workdir, runs: dict[str, dict[int, Workdir]]) -> None:
    evaluated = [joined(name, {seed: str(run.evaluation) for seed, run in each.items()}) for name, each in runs.items()]
    comparison = compared_all(evaluated)
    metric = json.loads(next(iter(runs[evaluated[0].name].values())).results.read_text())["verdict"]["metric"]
    encoded = {} if settings.tokenizer.file else {"tokens": workdir}
    costs = {name: [cost_of(run, encoded.get(name)) for run in each.values()] for name, each in runs.items()}
    curves = {
        name: mean_curve([*(curve(run, cost, metric) for run, cost in zip(each.values(), costs[name]))])
        for name, each in runs.items()
    }
    best = max(point.score for points in curves.values() for point in points)
    rows = [
        Row(
            name=name,
            what=SYSTEMS[name].what,
            stages=SYSTEMS[name].stages,
            score=found["scores"][metric],
            interval=found["intervals"][metric],
            by_seed=_by_seed(evaluated[place], metric),
            to_other_ecg=found["to_other_ecg"][metric],
            difference=found.get("differences", {}).get(metric),
            curve=[asdict(point) for point in curves[name]],
            to_near_best=_near(curves[name], best),
            cost={
                field: float(np.mean([cost[field] for cost in costs[name]]))
                for field in costs[name][0]
                if all(field in cost for cost in costs[name])
            },
        )
        for place, (name, found) in enumerate(comparison["runs"].items())
    ]
    content = Comparison(
        name=workdir.root.resolve().name,
        synthetic=settings.data.synthetic_records > 0,
        corpus=settings.data.corpus,
        model=settings.model.pretrained or f"{settings.model.layers} layers x {settings.model.width}, from scratch",
        command=f"python main.py --run={shlex.quote(str(workdir.root))} --stage=headline",
        split=comparison["split"],
        questions=comparison["sequences"],
        patients=comparison["patients"],
        metric=metric,
        seeds=list(settings.headline.seeds),
        commonest=comparison["commonest_answer"][metric],
        near=_NEAR,
        target=_NEAR * best,
        rows=rows,
    )
    write_whole(workdir.headline_table, [f"{json.dumps(asdict(content), indent=1)}\n".encode()])
    write_whole(workdir.headline, [render_headline(content)])
    _show(content, workdir)


def _by_seed(run: Evaluated, metric: str) -> list[float]:
    """The score of each training."""
    rows = [*run.rows.values()]
    return [
        measure([row[seed]["reference"] for row in rows], [row[seed]["answer"] for row in rows]).overall()[metric]
        for seed in run.results["seeds"]
    ]


def _near(points: list[Point], best: float) -> dict[str, float] | None:
    """Where a curve reaches the target."""
    reached = cost_to_reach(points, _NEAR * best) if best > 0 else None
    return reached and asdict(reached)


def _show(content: Comparison, workdir: Workdir) -> None:
    head, rows = score_rows(content)
    number_table(f"{content.split}: {content.counted}", "", {row[0]: dict(zip(head[2:], row[2:])) for row in rows}, "s")
    for sentence in sentences(content):
        console.print(sentence, style="bold")
    banner("written", {"page": workdir.headline, "scores, intervals, costs": workdir.headline_table})
