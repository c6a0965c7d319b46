"""Stage `compare`: the scores of several runs in one table, with paired differences to the first of them."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.errors import ScoresError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run.generations import read_rows
from ecgbyte_jax.run.intervals import bootstrap, interval
from ecgbyte_jax.run.logbook import banner, console, number_table
from ecgbyte_jax.run.metrics import PairScores, Scorers, measure

_RESAMPLES, _SEED = 10_000, 0
_Example = tuple[str, int]  # id and segment


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What an evaluation left in a run's folder: results.json, and its lines by example and seed."""

    name: str
    results: dict
    rows: dict[_Example, dict[int, dict]]


def compare(runs: list[str], out: Path) -> None:
    """Shows and writes (`out` as JSON, beside it the table as CSV) how the runs score on the examples that all answered.

    A difference is the run's score less the first run's, with the interval that holds 95% of 10,000 samples of the patients.
    Raises ScoresError for a run without evaluation, other splits or references, and where `out` holds another comparison or
    cannot be written.
    """
    if out.suffix.lower() == ".csv" or out.is_dir() or out.with_suffix(".csv").is_dir():
        raise ScoresError(
            f"--out: '{out}' found, a file for the scores as JSON expected; the table goes beside it: --out=x.json"
        )
    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise ScoresError(f"--runs: {runs} found, two run folders or more wanted, none twice: --runs=runs/a,runs/b")
    read = [_read(run) for run in runs]
    common = _common(read)
    patients = [read[0].rows[example][read[0].results["seeds"][0]]["patient"] for example in common]
    scorers = Scorers.load()
    measured = [_measure(run, common, scorers) for run in read]
    samples = [bootstrap(seeds, patients, _RESAMPLES, _SEED) for seeds in measured]
    scores = [_mean(seeds) for seeds in measured]
    table = {
        run.name: {
            "scores": own,
            "intervals": {name: interval(values) for name, values in drawn.items()},
            "differences": {
                name: {"mean": own[name] - scores[0][name], "interval": interval(drawn[name] - samples[0][name])}
                for name in own
            },
            "answered": len(run.rows),
            "seeds": run.results["seeds"],
            "checkpoint_step": run.results["checkpoint_step"],
        }
        for run, own, drawn in zip(read, scores, samples)
    }
    del table[read[0].name]["differences"]
    found = {"split": read[0].results["split"], "sequences": len(common), "patients": len(set(patients)), "runs": table}
    _write(out, found | {"missing": scorers.missing or {}})
    _show(found, out)


def _read(run: str) -> Evaluated:
    path = Path(run) / "eval" / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results = {name: results[name] for name in ("split", "seeds", "checkpoint_step")}
    except FileNotFoundError as error:
        raise ScoresError(f"{path}: no such file; '{run}' has no evaluation: run --stage=eval there") from error
    except (ValueError, KeyError, TypeError, NotADirectoryError) as error:
        raise ScoresError(f"{path}: not the results of an evaluation ({error!r}); run --stage=eval there again") from error
    rows: dict[_Example, dict[int, dict]] = {}
    for row in read_rows(Path(run) / "eval" / "generations.jsonl"):
        rows.setdefault((row["id"], row["segment"]), {})[row["seed"]] = row
    return Evaluated(run, results, rows)


def _common(runs: list[Evaluated]) -> list[_Example]:
    """The examples that every run answered, in the first one's order; raises ScoresError where they are not the same."""
    first = runs[0]
    for run in runs[1:]:
        if run.results["split"] != first.results["split"]:
            raise ScoresError(
                f"--runs: split '{run.results['split']}' of {run.name} and '{first.results['split']}' of {first.name} found; "
                "one split wanted: evaluate them with the same --config.eval.split"
            )
        for example in first.rows.keys() & run.rows.keys():
            ours, theirs = (next(iter(some.rows[example].values())) for some in (first, run))
            for field in ("question", "reference", "patient"):
                if ours[field] != theirs[field]:
                    raise ScoresError(
                        f"--runs: the {field} of example {example[0]!r} is {theirs[field]!r:.60} in {run.name} and "
                        f"{ours[field]!r:.60} in {first.name}; runs of the same data wanted"
                    )
    common = [example for example in first.rows if all(example in run.rows for run in runs)]
    if not common:
        raise ScoresError(f"--runs: {[run.name for run in runs]} have no example in common; runs of the same data wanted")
    return common


def _measure(run: Evaluated, examples: list[_Example], scorers: Scorers) -> list[PairScores]:
    """The pairs of each seed."""
    found = []
    for seed in run.results["seeds"]:
        rows = [run.rows[example][seed] for example in examples]
        found.append(measure([row["reference"] for row in rows], [row["answer"] for row in rows], scorers))
    return found


def _mean(seeds: list[PairScores]) -> dict[str, float]:
    overall = [pairs.overall() for pairs in seeds]
    return {name: float(np.mean([scores[name] for scores in overall])) for name in overall[0]}


def _write(out: Path, found: dict) -> None:
    """Both files; raises ScoresError where `out` is there and is not this comparison."""
    whole = {out: json.dumps(found, indent=1, ensure_ascii=False) + "\n", out.with_suffix(".csv"): _csv(found["runs"])}
    try:
        for path, text in whole.items():
            if path.exists() and path.read_bytes() != text.encode():
                raise ScoresError(f"{path}: another comparison is there; give --out another name, or move it away")
        for path, text in whole.items():
            write_whole(path, [text.encode()])
    except OSError as error:
        raise ScoresError(f"--out: '{out}' cannot be written: {error.strerror}; give --out another name") from error


def _csv(runs: dict[str, dict]) -> str:
    """A line for each run and score."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "metric", "score", "low", "high", "difference", "difference_low", "difference_high"])
    for run, found in runs.items():
        for name, value in found["scores"].items():
            difference = found.get("differences", {}).get(name)
            more = [difference["mean"], *difference["interval"]] if difference else ["", "", ""]
            writer.writerow([run, name, value, *found["intervals"][name], *more])
    return file.getvalue()


def _show(found: dict, out: Path) -> None:
    rows: dict[str, dict[str, float | str]] = {}
    for run, part in found["runs"].items():
        rows[run] = {name.replace("_", " "): 100 * value for name, value in part["scores"].items()}
        if differences := part.get("differences"):
            rows[f"  less the first ({run})"] = {
                name.replace("_", " "): f"{100 * d['mean']:+.1f}" + ("*" if d["interval"][0] * d["interval"][1] > 0 else "")
                for name, d in differences.items()
            }
    title = f"{found['split']}: {found['sequences']} sequences of {found['patients']} patients that all runs answered, in %"
    number_table(title, "", rows, ".1f")
    console.print("  *: the 95% interval of the difference, patients drawn anew, does not hold 0")
    banner("written", {"table": out.with_suffix(".csv"), "scores and intervals": out})
