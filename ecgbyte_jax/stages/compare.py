"""Tool `compare`: the scores of several runs in one table, with paired differences from the first of them."""

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

from ecgbyte_jax.errors import ScoresError
from ecgbyte_jax.evaluate.generations import read_rows
from ecgbyte_jax.evaluate.intervals import bootstrap, interval
from ecgbyte_jax.evaluate.metrics import PairScores, Scorers, measure
from ecgbyte_jax.evaluate.results import mean
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run.console import banner, console, number_table
from ecgbyte_jax.run.workdir import Workdir

_RESAMPLES, _SEED = 10_000, 0
_Example = tuple[str, int]  # id and segment


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What an evaluation left in a run's folder: its results, and its rows by example and seed."""

    name: str
    results: dict
    rows: dict[_Example, dict[int, dict]]


def compare(runs: list[str], out: Path) -> None:
    """Shows and writes (`out` as JSON, beside it the table as CSV) how the runs score on the examples that all answered.

    Beside each run are its scores for another patient's ECG, and below all of them those of the first run's commonest answers.
    A difference is the run's score minus the first run's, with the interval that holds 95% of 10,000 samples of the patients.
    A run is its folder, or that of one of its evaluations with a name. Raises ScoresError for a run without evaluation, for
    other splits or references, and where `out` holds another comparison or cannot be written.
    """
    if out.suffix.lower() == ".csv" or out.is_dir() or out.with_suffix(".csv").is_dir():
        raise ScoresError(
            f"--out: '{out}' found, a file for the scores as JSON expected; the table goes beside it: --out=x.json"
        )
    if len(runs) < 2 or len({_locate(Path(run)).evaluation.resolve() for run in runs}) < len(runs):
        raise ScoresError(f"--runs: {runs} found, two run folders or more expected, none twice: --runs=runs/a,runs/b")
    comparison = compared(runs)
    _write(out, comparison)
    _show(comparison, out)


def compared(runs: list[str]) -> dict:
    """The scores of evaluations, with intervals and paired differences from the first; raises ScoresError as `compare` does."""
    return compared_all([_read(run) for run in runs])


def joined(name: str, runs: dict[int, str]) -> Evaluated:
    """The evaluations of several trainings by their seeds as one, whose scores are means over them.

    Raises ScoresError for a run without evaluation, and for one of several seeds or of another data than the others.
    """
    found = {seed: _read(run) for seed, run in runs.items()}
    for run in found.values():
        if len(run.results["seeds"]) > 1:
            raise ScoresError(f"{run.name}: eval.seeds {run.results['seeds']} found, one expected: the training has its own")
    parts = [*found.values()]
    rows = {
        example: {seed: next(iter(run.rows[example].values())) for seed, run in found.items()} for example in _common(parts)
    }
    return Evaluated(name, parts[0].results | {"seeds": [*found]}, rows)


def compared_all(evaluated: list[Evaluated]) -> dict:
    """As `compared`, of what was read."""
    first, common = evaluated[0], _common(evaluated)
    patients = [first.rows[example][first.results["seeds"][0]]["patient"] for example in common]
    scorers = Scorers.load()
    measured = [_measure(run, common, scorers) for run in evaluated]
    samples = [bootstrap(seeds, patients, _RESAMPLES, _SEED) for seeds in measured]
    scores = [mean(seeds) for seeds in measured]
    table = {
        run.name: {
            "scores": own,
            "intervals": {name: interval(values) for name, values in drawn.items()},
            "differences": {
                name: {"mean": own[name] - scores[0][name], "interval": interval(drawn[name] - samples[0][name])}
                for name in own
            },
            "to_other_ecg": mean(_measure(run, common, scorers, "answer_to_other_ecg")),
            "answered": len(run.rows),
            "seeds": run.results["seeds"],
            "checkpoint_step": run.results["checkpoint_step"],
        }
        for run, own, drawn in zip(evaluated, scores, samples)
    }
    del table[first.name]["differences"]
    comparison = {"split": first.results["split"], "sequences": len(common), "patients": len(set(patients)), "runs": table}
    comparison["commonest_answer"] = mean(_measure(first, common, scorers, "commonest_answer"))
    return comparison | {"missing": scorers.missing or {}}


def _read(run: str) -> Evaluated:
    workdir = _locate(Path(run))
    path = workdir.results
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results = {name: results[name] for name in ("split", "seeds", "checkpoint_step")}
    except FileNotFoundError as error:
        raise ScoresError(f"{path}: no such file; '{run}' has no evaluation: run --stage=eval there") from error
    except (ValueError, KeyError, TypeError, NotADirectoryError) as error:
        raise ScoresError(f"{path}: not the results of an evaluation ({error!r}); run --stage=eval there again") from error
    rows: dict[_Example, dict[int, dict]] = {}
    for row in read_rows(workdir.generations):
        rows.setdefault((row["id"], row["segment"]), {})[row["seed"]] = row
    return Evaluated(run, results, rows)


def _locate(path: Path) -> Workdir:
    """The layout for a run's folder, or for that of an evaluation, RUN/eval/NAME."""
    path = Path(os.path.abspath(path))  # a link to another disk stays one: what is beside its end is not of the run
    run = Workdir(path)
    if run.results.exists() or not (path / run.results.name).is_file():
        return run
    return Workdir(path.parent) if path.name == run.evaluation.name else Workdir(path.parents[1], path.name)


def _common(runs: list[Evaluated]) -> list[_Example]:
    """The examples that every run answered, in the first one's order; raises ScoresError where they are not the same."""
    first = runs[0]
    for run in runs[1:]:
        if run.results["split"] != first.results["split"]:
            raise ScoresError(
                f"--runs: split '{run.results['split']}' of {run.name} and '{first.results['split']}' of {first.name} found; "
                "one split expected: evaluate them with the same --config.eval.split"
            )
        for example in first.rows.keys() & run.rows.keys():
            ours, theirs = (next(iter(each.rows[example].values())) for each in (first, run))
            for field in ("question", "reference", "patient"):
                if ours[field] != theirs[field]:
                    raise ScoresError(
                        f"--runs: the {field} of example {example[0]!r} is {theirs[field]!r:.60} in {run.name} and "
                        f"{ours[field]!r:.60} in {first.name}; runs of the same data expected"
                    )
    common = [example for example in first.rows if all(example in run.rows for run in runs)]
    if not common:
        raise ScoresError(f"--runs: {[run.name for run in runs]} have no example in common; runs of the same data expected")
    return common


def _measure(run: Evaluated, examples: list[_Example], scorers: Scorers, answer: str = "answer") -> list[PairScores]:
    """The pairs of each seed; answer: the rows' field."""
    measured = []
    for seed in run.results["seeds"]:
        rows = [run.rows[example][seed] for example in examples]
        measured.append(measure([row["reference"] for row in rows], [row[answer] for row in rows], scorers))
    return measured


def _write(out: Path, comparison: dict) -> None:
    """Writes both files; raises ScoresError where one exists with other content."""
    texts = {
        out: json.dumps(comparison, indent=1, ensure_ascii=False) + "\n",
        out.with_suffix(".csv"): _csv(comparison["runs"]),
    }
    try:
        for path, text in texts.items():
            if path.exists() and path.read_bytes() != text.encode():
                raise ScoresError(f"{path}: another comparison is there; give --out another name, or move it away")
        for path, text in texts.items():
            write_whole(path, [text.encode()])
    except OSError as error:
        raise ScoresError(f"--out: '{out}' cannot be written: {error.strerror}; give --out another name") from error


def _csv(runs: dict[str, dict]) -> str:
    """A line for each run and score."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "metric", "score", "low", "high", "difference", "difference_low", "difference_high"])
    for run, part in runs.items():
        for name, value in part["scores"].items():
            difference = part.get("differences", {}).get(name)
            cells = [difference["mean"], *difference["interval"]] if difference else ["", "", ""]
            writer.writerow([run, name, value, *part["intervals"][name], *cells])
    return file.getvalue()


def _show(comparison: dict, out: Path) -> None:
    rows: dict[str, dict[str, float | str]] = {}

    def percent(scores: dict[str, float]) -> dict[str, float | str]:
        return {name.replace("_", " "): 100 * value for name, value in scores.items()}

    for run, part in comparison["runs"].items():
        rows[run] = percent(part["scores"])
        rows[f"  another patient's ECG ({run})"] = percent(part["to_other_ecg"])
        if differences := part.get("differences"):
            rows[f"  minus the first ({run})"] = {
                name.replace("_", " "): f"{100 * d['mean']:+.1f}" + ("*" if d["interval"][0] * d["interval"][1] > 0 else "")
                for name, d in differences.items()
            }
    rows["commonest answer"] = percent(comparison["commonest_answer"])
    counts = f"{comparison['sequences']} sequences of {comparison['patients']} patients that all runs answered"
    title = f"{comparison['split']}: {counts}, in %"
    number_table(title, "", rows, ".1f")
    console.print("  *: the 95% interval of the difference, over resampled patients, does not contain 0")
    banner("written", {"table": out.with_suffix(".csv"), "scores and intervals": out})
