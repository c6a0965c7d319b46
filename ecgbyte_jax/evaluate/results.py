"""The results of an evaluation: the scores of its answers and of the baselines, with their intervals."""

from collections import Counter
from collections.abc import Callable, Container

import numpy as np

from ecgbyte_jax.evaluate.benchmarks import ecg_bench, ecg_reasoning
from ecgbyte_jax.evaluate.findings import make_findings
from ecgbyte_jax.evaluate.intervals import bootstrap, interval, over_seeds
from ecgbyte_jax.evaluate.measured.numbers import number_intervals, number_scores, parse_number
from ecgbyte_jax.evaluate.metrics import (
    YES_NO,
    PairScores,
    Scorers,
    is_closed,
    macro_f1,
    measure,
    uninformative,
    yes_no_scores,
)
from ecgbyte_jax.evaluate.verdict import difference, give_verdict, main_metric
from ecgbyte_jax.evaluate.votes import by_recording

MODEL, OTHER_ECG, COMMONEST = "model", "another patient's ECG", "commonest answer"
_FIELDS = {MODEL: "answer", OTHER_ECG: "answer_to_other_ecg", COMMONEST: "commonest_answer"}
# Each score of the results with its version, to be raised with its code: an evaluation with others is scored again.
SCORES = {
    "exact_match": 1,
    "bleu": 1,
    "mean_bleu": 1,
    "meteor": 1,
    "rouge_1": 1,
    "rouge_2": 1,
    "rouge_l": 1,
    "bertscore_precision": 1,
    "bertscore_recall": 1,
    "bertscore_f1": 1,
    "macro_f1": 1,
    "sensitivity": 1,
    "specificity": 1,
    "balanced_accuracy": 1,
    "auroc": 1,
    "auprc": 1,
    "f1": 1,
    "brier": 1,
    "calibration_error": 1,
    "macro_auc": 1,
    "hamming_loss": 1,
    "accuracy": 1,
    **dict.fromkeys(ecg_reasoning.SCORES, 1),
    "findings_micro_f1": 2,
    "findings_macro_f1": 2,
    "findings_missed": 2,
    "findings_extra": 2,
    "mean_absolute_error": 2,
    "within_5": 2,
    "within_10": 2,
}
_GROUPS = {"by_question_type": "question_type", "by_attribute_type": "attribute_type", "by_attribute": "attribute"}
_PART = "mixture_part"  # the field that names the corpus of a mixture


def make_results(rows: list[dict], scorers: Scorers, resamples: int, seed: int, reports: Container[str] = ()) -> dict:
    """The results, except for what was evaluated, from the rows of generations; `scores` are means over the seeds.

    reports: the corpora of a mixture, or "" for the only one, whose answers are reports: their findings are compared, as are
    those of the answers to a benchmark's report questions.
    `drops`: by how much each score is lower on perturbed signals, with the paired interval over resampled patients.
    """
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    by_seed = [[row for row in rows if row["seed"] == seed] for seed in seeds]
    patients = [row["patient"] for row in by_seed[0]]
    references = [row["reference"] for row in by_seed[0]]
    measured, samples = _measure_systems(by_seed, scorers, resamples, seed)
    results = {
        "sequences": len(by_seed[0]),
        "patients": len(set(patients)),
        "empty_answers": sum(not row["answer"] for row in rows),
        "seeds": seeds,
        **_by_recording([by_recording(rows) for rows in by_seed], scorers, resamples, seed),
        "hidden": uninformative(references),
        "scores": _scores(measured),
        "intervals": _intervals(samples),
    }
    if len(seeds) > 1:
        results["over_seeds"] = {
            system: {name: over_seeds(values) for name, values in _each(pairs).items()} for system, pairs in measured.items()
        }
    mixed = any(_PART in row["meta"] for row in by_seed[0])
    for group, field in (_GROUPS | ({"by_corpus": _PART} if mixed else {})).items():
        kinds = [_kinds(row["meta"].get(field)) for row in by_seed[0]]
        results |= _parts(group, kinds, references, measured)
        results[f"{group}_intervals"] = {
            kind: _intervals({MODEL: _of_kind(kind, kinds, patients, measured[MODEL], resamples, seed)})[MODEL]
            for kind in results[group]
        }
    results |= _closed(by_seed)
    results |= _benchmark([by_recording(rows) for rows in by_seed], resamples, seed)
    told = [row for row in by_seed[0] if row["meta"].get(_PART, "") in reports or _type(row) in ecg_bench.JUDGED]
    results |= _findings(told, resamples, seed)
    results |= {"perturbed": {}, "perturbed_intervals": {}, "drops": {}}
    for name in rows[0].get("answers_perturbed", {}):
        pairs = _measure(by_seed, lambda row, n=name: row["answers_perturbed"][n], scorers)
        scores, drawn, clean = mean(pairs), bootstrap(pairs, patients, resamples, seed), samples[MODEL]
        results["perturbed"][name], results["perturbed_intervals"][name] = scores, _intervals({name: drawn})[name]
        results["drops"][name] = {
            metric: difference(value, scores[metric], clean[metric], drawn[metric])._asdict()
            for metric, value in results["scores"][MODEL].items()
        }
    return results | {"missing": scorers.missing or {}}


def _by_recording(by_seed: list[list[dict]], scorers: Scorers, resamples: int, seed: int) -> dict:
    """`by_recording`, the scores of the answers that each recording's segments elected, and the `verdict` on the model.

    by_seed: one row for each question.
    """
    measured, samples = _measure_systems(by_seed, scorers, resamples, seed)
    scores, patients = _scores(measured), {row["patient"] for row in by_seed[0]}
    metric = main_metric([row["reference"] for row in by_seed[0]])
    differences = {
        system: difference(scores[MODEL][metric], scores[system][metric], samples[MODEL][metric], samples[system][metric])
        for system in (OTHER_ECG, COMMONEST)
    }
    verdict = give_verdict(metric, differences[OTHER_ECG], differences[COMMONEST], len(patients))
    verdict |= {"differences": {system: found._asdict() for system, found in differences.items()}}
    voted = {"questions": len(by_seed[0]), "scores": scores, "intervals": _intervals(samples)} | _yes_no(by_seed)
    voted |= _numbers(by_seed, resamples, seed)
    return {"verdict": verdict, "by_recording": voted}


def _scores(measured: dict[str, list[PairScores]]) -> dict[str, dict[str, float]]:
    return {system: mean(pairs) for system, pairs in measured.items()}


def _intervals(samples: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, list[float]]]:
    return {system: {name: interval(values) for name, values in drawn.items()} for system, drawn in samples.items()}


def _measure_systems(
    by_seed: list[list[dict]], scorers: Scorers, resamples: int, seed: int
) -> tuple[dict[str, list[PairScores]], dict[str, dict[str, np.ndarray]]]:
    """The pairs of each seed, of the model and its controls; their scores in resamples of the patients."""
    patients = [row["patient"] for row in by_seed[0]]
    measured = {system: _measure(by_seed, lambda row, f=field: row[f], scorers) for system, field in _FIELDS.items()}
    return measured, {system: bootstrap(pairs, patients, resamples, seed) for system, pairs in measured.items()}


def _measure(by_seed: list[list[dict]], text: Callable[[dict], str], scorers: Scorers) -> list[PairScores]:
    return [measure([row["reference"] for row in rows], [text(row) for row in rows], scorers) for rows in by_seed]


def _each(seeds: list[PairScores]) -> dict[str, list[float]]:
    """Name -> the score of each seed."""
    overall = [pairs.overall() for pairs in seeds]
    return {name: [scores[name] for scores in overall] for name in overall[0]}


def mean(seeds: list[PairScores]) -> dict[str, float]:
    """Name -> the mean score over the seeds."""
    return {name: float(np.mean(values)) for name, values in _each(seeds).items()}


def _kinds(value: object) -> tuple[str, ...]:
    """The kinds that a row is of, by a field of its meta: ECG-QA's questions may be about several attributes."""
    return (value,) if isinstance(value, str) else tuple(dict.fromkeys(value)) if isinstance(value, list) else ()


def _of_kind(
    kind: str, kinds: list[tuple[str, ...]], patients: list[str], seeds: list[PairScores], resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """The scores of a kind's rows in resamples of their patients."""
    chosen = np.flatnonzero([kind in of_row for of_row in kinds])
    return bootstrap([pairs.rows(chosen) for pairs in seeds], [patients[row] for row in chosen], resamples, seed)


def _parts(
    group: str, kinds: list[tuple[str, ...]], references: list[str], measured: dict[str, list[PairScores]]
) -> dict[str, dict]:
    """The scores of the rows of each kind: the model's, with `hidden` as for all rows, and separately the baselines'."""
    results: dict[str, dict] = {group: {}, f"{group}_baselines": {}}
    for kind in sorted({kind for of_row in kinds for kind in of_row}):
        chosen = np.flatnonzero([kind in of_row for of_row in kinds])
        scores = {system: mean([pairs.rows(chosen) for pairs in seeds]) for system, seeds in measured.items()}
        hidden = uninformative([references[row] for row in chosen])
        results[group][kind] = {"sequences": len(chosen), "hidden": hidden, **scores.pop(MODEL)}
        results[f"{group}_baselines"][kind] = scores
    return results


def _closed(by_seed: list[list[dict]]) -> dict[str, dict[str, float]]:
    """macro_f1 of every system over the questions that list their answers; {} where there are none."""
    closed = [[row for row in rows if is_closed(row["meta"].get("question_type", ""))] for rows in by_seed]
    if not closed[0]:
        return {}
    return {
        "macro_f1": {
            system: float(np.mean([macro_f1([r["reference"] for r in rows], [r[field] for r in rows]) for rows in closed]))
            for system, field in _FIELDS.items()
        }
    }


def _benchmark(by_seed: list[list[dict]], resamples: int, seed: int) -> dict[str, dict]:
    """benchmark: the scores of each published test set by its own rules, or why it has none; {} without such questions.

    by_seed: one row for each question.
    """
    if ecg_reasoning.is_asked(by_seed[0][0]):
        return {"benchmark": _reasoning(by_seed, resamples, seed)}
    sets = sorted({_type(row) for row in by_seed[0]})
    found: dict[str, dict] = {name: {"unscored": ecg_bench.JUDGED[name]} for name in sets if name in ecg_bench.JUDGED}
    for name in filter(ecg_bench.is_scored, sets):
        of_set = [[row for row in rows if _type(row) == name] for rows in by_seed]
        found[name] = {"questions": len(of_set[0])} | _over_systems(
            lambda rows, field, name=name: ecg_bench.score(name, rows, field, resamples, seed), of_set
        )
    return {"benchmark": found} if found else {}


def _reasoning(by_seed: list[list[dict]], resamples: int, seed: int) -> dict[str, dict]:
    """The scores of the two parts of ECG-Reasoning-Benchmark, by the set of their recordings."""
    found = {}
    for source in sorted({row["meta"]["reasoning"]["source"] for row in by_seed[0]}):
        of_set = [[row for row in rows if row["meta"]["reasoning"]["source"] == source] for rows in by_seed]
        found[f"reasoning, {source}"] = {"questions": len(of_set[0])} | _over_systems(
            lambda rows, field: ecg_reasoning.score(rows, field, resamples, seed), of_set
        )
    return found


def _over_systems(score: Callable[[list[dict], str], ecg_bench.Scores], by_seed: list[list[dict]]) -> dict[str, dict]:
    """The scores of every system with their intervals, means over the seeds; score: of rows and a field with answers."""
    scores, intervals = {}, {}
    for system, field in _FIELDS.items():
        scored = [score(rows, field) for rows in by_seed]
        values = {metric: [one.scores[metric] for one in scored] for metric in scored[0].scores}
        samples = {metric: np.mean([one.samples[metric] for one in scored], axis=0) for metric in values}
        known = {metric: drawn[~np.isnan(drawn)] for metric, drawn in samples.items()}
        scores[system] = {metric: None if None in each else float(np.mean(each)) for metric, each in values.items()}
        intervals[system] = {metric: interval(drawn) if len(drawn) else None for metric, drawn in known.items()}
    return {"scores": scores, "intervals": intervals}


def _findings(rows: list[dict], resamples: int, seed: int) -> dict[str, dict]:
    """findings: those of the answers beside those of their references, of the first seed; {} without reports."""
    return {"findings": make_findings(by_recording(rows), _FIELDS, resamples, seed)} if rows else {}


def _type(row: dict) -> str:
    return row["meta"].get("question_type", "")


def _yes_no(by_seed: list[list[dict]]) -> dict[str, dict]:
    """yes_no: sensitivity and specificity of every system, means over the seeds; {} without questions of yes or no."""
    asked = [[row for row in rows if row["reference"].strip().lower() in YES_NO] for rows in by_seed]
    if not asked[0]:
        return {}
    references = [row["reference"].strip().lower() for row in asked[0]]
    systems = {}
    for system, field in _FIELDS.items():
        seeds = [yes_no_scores([row["reference"] for row in rows], [row[field] for row in rows]) for rows in asked]
        systems[system] = {name: None if value is None else _mean_of(name, seeds) for name, value in seeds[0].items()}
    return {"yes_no": {"questions": len(references), "yes": references.count(YES_NO[0]), "systems": systems}}


def _numbers(by_seed: list[list[dict]], resamples: int, seed: int) -> dict[str, dict]:
    """numbers: by attribute, how far off every system's numbers are, means over the seeds; {} without such questions.

    The intervals are those of the model's first seed.
    """
    asked = sorted({_quantity(row) for row in by_seed[0]} - {None})
    units = Counter(attribute for attribute, _ in asked)
    numbers = {}
    for attribute, unit in asked:
        seeds = [[row for row in rows if _quantity(row) == (attribute, unit)] for rows in by_seed]
        references = [row["reference"] for row in seeds[0]]
        systems = {}
        for system, field in _FIELDS.items():
            scores = [number_scores(references, [row[field] for row in rows], unit) for rows in seeds]
            systems[system] = {name: _mean_of_defined([each[name] for each in scores]) for name in scores[0]}
        answers, patients = [row["answer"] for row in seeds[0]], [row["patient"] for row in seeds[0]]
        bounds = number_intervals(references, answers, unit, patients, resamples, seed)
        name = attribute or "numbers"
        numbers[name if units[attribute] == 1 else f"{name}, {unit}"] = {
            "questions": len(references),
            "unit": unit,
            "systems": systems,
            "intervals": {MODEL: bounds},
        }
    return {"numbers": numbers} if numbers else {}


def _quantity(row: dict) -> tuple[str, str] | None:
    """(attribute, unit) of a question whose reference is a number in the unit that it names; None of any other."""
    unit = row["meta"].get("unit")  # which in a table of one's own may be anything
    is_number = isinstance(unit, str) and unit and parse_number(row["reference"], unit) is not None
    return (row["meta"].get("attribute_type", ""), unit) if is_number else None


def _mean_of_defined(values: list[float | int | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _mean_of(name: str, seeds: list[dict]) -> float:
    return float(np.mean([scores[name] for scores in seeds]))


def summarise(results: dict) -> str:
    """One sentence: what was evaluated, the main score beside those of the controls, and the verdict; by recording."""
    metric, voted = results["verdict"]["metric"], results["by_recording"]
    model, *controls = (f"{100 * scores[metric]:.1f}" for scores in voted["scores"].values())
    others = ", ".join(f"{name} {score}" for name, score in zip((OTHER_ECG, COMMONEST), controls))
    asked = f"{voted['questions']} questions about {results['patients']} patients of split '{results['split']}'"
    return f"{metric.replace('_', ' ')} {model}% ({others}) on {asked}; {results['verdict']['sentence']}"


def answered_by(results: dict) -> str:
    """The checkpoint, or the folder, that gave the answers of an evaluation's results."""
    return str(results["checkpoint"] if results["checkpoint_step"] is None else results["checkpoint_step"])
