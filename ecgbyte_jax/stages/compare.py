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
from ecgbyte_jax.run.stage import settings_of
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.stages.lineage import FIELDS

_RESAMPLES, _SEED = 10_000, 0
_Example = tuple[str, int]  # id and segment


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What an evaluation left in a run's folder: its results, and its rows by example and seed."""

    name: str
    results: dict
    rows: dict[_Example, dict[int, dict]]
    settings: dict


# What runs of other folds may differ in: the fold, an encoder that was trained on its patients, and the rows of a batch.
_OF_A_FOLD = ("data.fold", "encoder.pretrained", "eval.batch_size")
# What their outputs depend on beside what CHANGES_NO_OUTPUT says does not.
_OF_A_SYSTEM = ("synthetic data", "prepare", "train", "ecg input", "encoder", "early stopping", "answers")


def compare(runs: list[str], out: Path) -> None:
    """Shows and writes (`out` as JSON, beside it the table as CSV) how the runs score on the examples that all answered.

    Beside each run are its scores for another patient's ECG, and below all of them those of the first run's commonest answers.
    A difference is the run's score minus the first run's, with the interval that holds 95% of 10,000 samples of the patients.
    A run is its folder, or that of one of its evaluations with a name. Raises ScoresError for a run without evaluation, for
    other splits or references, and where `out` holds another comparison or cannot be written.

    Runs of one cross-validation, which differ only in `data.fold`, are joined: each patient is in the test split of one of
    them, and intervals are over the patients of all. Raises ScoresError where a fold is missing or there twice.
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
    """The scores of evaluations, with intervals and paired differences from the first; raises ScoresError as `compare` does.

    Those of a cross-validation have `folds`: each run with its fold, sequences, patients and scores.
    """
    evaluated = [_read(run) for run in runs]
    if len({_fold(run) for run in evaluated}) < 2:  # of one fold, or of none
        return compared_all(evaluated)
    systems = _by_system(evaluated)
    scorers = Scorers.load()
    folds = {system.name: [_of_fold(run, scorers) for run in members] for system, members in ((_join(m), m) for m in systems)}
    return compared_all([_join(members) for members in systems]) | {"folds": folds}


def _fold(run: Evaluated) -> tuple[int, int]:
    """(data.folds, data.fold); (0, 0) without a cross-validation."""
    data = run.settings.get("data", {})
    return data.get("folds", 0), data.get("fold", 0)


def _by_system(runs: list[Evaluated]) -> list[list[Evaluated]]:
    """The runs of equal settings together, by fold; raises ScoresError where a fold is missing or there twice."""
    systems: dict[str, list[Evaluated]] = {}
    for run in runs:
        systems.setdefault(json.dumps(_system(run), sort_keys=True), []).append(run)
    for members in systems.values():
        count, found = _fold(members[0])[0], sorted(_fold(run)[1] for run in members)
        if not count:
            raise ScoresError(f"--runs: {members[0].name} has no data.folds, others have; runs of one kind expected")
        if found != [*range(1, count + 1)]:
            raise ScoresError(
                f"--runs: folds {found} of {count} found in {[run.name for run in members]}, each of 1 to {count} once expected"
                f"{_differing(systems)}"
            )
        members.sort(key=_fold)
    return [*systems.values()]


def _system(run: Evaluated) -> dict[str, object]:
    """What is the same for all folds of a system: the settings that outputs depend on, the weights' name, the evaluation."""
    names = [name for stage in _OF_A_SYSTEM for name in FIELDS[stage] if name not in _OF_A_FOLD]
    settings: dict[str, object] = {}
    for name in (*names, "model.pretrained"):
        part, _, field = name.partition(".")
        value = run.settings.get(part, {})
        settings[name] = value.get(field) if field else value
    return settings | {f"eval.{name}": run.results.get(name) for name in ("split", "checkpoint", "ecg", "seeds")}


def _differing(systems: dict[str, list[Evaluated]]) -> str:
    """Which settings the first two systems differ in; "" where there is one."""
    if len(systems) < 2:
        return ""
    first, second = ([*systems.values()][place][0] for place in (0, 1))
    ours, theirs = _system(first), _system(second)
    names = [name for name in ours if ours[name] != theirs[name]]
    return f"; {second.name} differs from {first.name} in {', '.join(names)}, but only data.fold may differ within a system"


def _join(folds: list[Evaluated]) -> Evaluated:
    """The evaluations of all folds as one; raises ScoresError where a patient is in two of them."""
    rows: dict[_Example, dict[int, dict]] = {}
    tested: dict[str, str] = {}
    for run in folds:
        for example, seeds in run.rows.items():
            row = next(iter(seeds.values()))
            for patient in (row["patient"], *row["meta"].get("patients", ())):
                if tested.setdefault(patient, run.name) != run.name:
                    raise ScoresError(
                        f"--runs: patient {patient!r} is in split '{run.results['split']}' of {tested[patient]} and of "
                        f"{run.name}; folds of the same data, evaluated on their test split, expected"
                    )
            rows[example] = seeds
    first = folds[0]
    return Evaluated(
        f"{first.name} and the other {len(folds) - 1} folds", first.results | {"checkpoint_step": None}, rows, first.settings
    )


def _of_fold(run: Evaluated, scorers: Scorers) -> dict:
    patients = {row["patient"] for seeds in run.rows.values() for row in seeds.values()}
    about = {"run": run.name, "fold": _fold(run)[1], "sequences": len(run.rows), "patients": len(patients)}
    return about | {"scores": mean(_measure(run, [*run.rows], scorers))}


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
    return Evaluated(name, parts[0].results | {"seeds": [*found]}, rows, parts[0].settings)


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
        needed = {name: results[name] for name in ("split", "seeds", "checkpoint_step")}
        results = {name: results.get(name) for name in ("checkpoint", "ecg")} | needed
    except FileNotFoundError as error:
        raise ScoresError(f"{path}: no such file; '{run}' has no evaluation: run --stage=eval there") from error
    except (ValueError, KeyError, TypeError, NotADirectoryError) as error:
        raise ScoresError(f"{path}: not the results of an evaluation ({error!r}); run --stage=eval there again") from error
    rows: dict[_Example, dict[int, dict]] = {}
    for row in read_rows(workdir.generations):
        rows.setdefault((row["id"], row["segment"]), {})[row["seed"]] = row
    # Of an evaluation with a name, config.json holds no settings.
    return Evaluated(run, results, rows, _settings(workdir) | {"eval": settings_of(workdir.answers_marker).get("eval", {})})


def _settings(workdir: Workdir) -> dict:
    """What config.json holds; {} where there is none that can be read, as in folders of early runs."""
    try:
        settings = json.loads(workdir.config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


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
        for fold in comparison.get("folds", {}).get(run, ()):
            rows[f"  fold {fold['fold']} ({fold['run']})"] = percent(fold["scores"])
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
