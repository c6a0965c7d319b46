"""The report's sentences and tables, from the contents of a run's files."""

from collections.abc import Iterable

from ecgbyte_jax.report.page import Table

_NAMES = {
    "exact_match": "exact match",
    "bleu": "BLEU",
    "mean_bleu": "mean BLEU",
    "meteor": "METEOR",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "bertscore_precision": "BERTScore P",
    "bertscore_recall": "BERTScore R",
    "bertscore_f1": "BERTScore F1",
}
_COUNTS = ("sequences", "examples", "patients", "count", "n")
_REASONS = 20


def evaluated(results: dict) -> str:
    """One sentence on what was evaluated."""
    known = {name: results.get(name) for name in ("sequences", "patients", "split", "empty_answers")}
    step = results.get("checkpoint_step")
    by = f"checkpoint {step}" if step is not None else f"'{results.get('checkpoint')}'"
    text = "{sequences} answers about {patients} patients of the split '{split}'".format(**known)
    seeds = results.get("seeds")
    seed_list = f", seeds {', '.join(map(str, seeds))}" if isinstance(seeds, list) and len(seeds) > 1 else ""
    return f"{text}, by {by}{seed_list}. {known['empty_answers']} answers are empty; they count as wrong."


def score_tables(results: dict) -> list[Table]:
    """Every table of scores in an evaluation's results, in %."""
    scores, intervals = results["scores"], _dict(results.get("intervals"))
    metrics = list(dict.fromkeys(metric for row in scores.values() for metric in row))
    rows = [(name, *(_cell(row.get(m), _dict(intervals.get(name)).get(m)) for m in metrics)) for name, row in scores.items()]
    how = ", with 95% intervals (bootstrap over patients)" if intervals else ""
    tables = [Table(f"Scores in %{how}", ("system", *map(_metric, metrics)), tuple(rows))]
    seeds = _dict(results.get("over_seeds"))
    if seeds:
        metrics = list(dict.fromkeys(metric for row in seeds.values() for metric in _dict(row)))
        cells = [(name, *(_seed_cell(_dict(row).get(m)) for m in metrics)) for name, row in seeds.items()]
        tables.append(
            Table(
                "Over seeds in %: mean, ± standard deviation, 95% t interval", ("system", *map(_metric, metrics)), tuple(cells)
            )
        )
    for name, caption in (
        ("by_question_type", "The model by question type, in %"),
        ("by_attribute", "The model by attribute, in %"),
        ("perturbed", "The model on spoilt ECGs, in %"),
        ("macro_f1", "Macro F1 over the answers of closed questions, in %"),
    ):
        part = _dict(results.get(name))
        if part:
            rows_by_name = {key: row if isinstance(row, dict) else {"macro F1": row} for key, row in part.items()}
            tables.append(_plain(caption, rows_by_name))
    return tables


def score_notes(results: dict) -> list[str]:
    """Metrics that could not be computed, with the reason."""
    notes = [f"{_metric(str(name))} is missing: {reason}" for name, reason in _dict(results.get("missing")).items()]
    baselines = (
        "'another patient's ECG' is the same model given the ECG of another patient: what it loses there it had read from "
        "the ECG. 'commonest answer' always gives the commonest answer in training."
    )
    return [*notes, baselines]


def split_table(manifest: dict) -> Table:
    """What each split holds, from the manifest of the shards."""
    rows = []
    for name, split in _dict(manifest.get("splits")).items():
        mean = split.get("tokens", 0) / max(split.get("sequences", 0), 1)
        counts = [split.get(key, 0) for key in ("examples", "sequences", "longest_sequence", "ecg_cut")]
        rows.append((name, f"{counts[0]:,}", f"{counts[1]:,}", f"{mean:.0f}", f"{counts[2]:,}", f"{counts[3]:,}"))
    head = ("split", "examples", "sequences", "tokens, mean", "tokens, longest", "ECG cut to fit")
    return Table("What was prepared", head, tuple(rows))


def aside_table(reasons: list[tuple[str, int]]) -> Table:
    """How many examples were set aside, by the commonest reasons."""
    rows = [(reason, f"{count:,}") for reason, count in reasons[:_REASONS]]
    if len(reasons) > _REASONS:
        rows.append(("other reasons", f"{sum(count for _, count in reasons[_REASONS:]):,}"))
    return Table(f"Set aside: {sum(count for _, count in reasons):,} examples", ("reason", "examples"), tuple(rows))


def settings_tables(config: dict) -> list[Table]:
    """A table for each part of a run's settings."""
    parts = {"run": {k: v for k, v in config.items() if not isinstance(v, dict)}}
    parts |= {name: part for name, part in config.items() if isinstance(part, dict)}
    return [
        Table(name, ("setting", "value"), tuple((k, str(v)) for k, v in part.items())) for name, part in parts.items() if part
    ]


def _plain(caption: str, scores: dict[str, dict]) -> Table:
    metrics = list(
        dict.fromkeys(metric for row in scores.values() for metric in row if not isinstance(row[metric], dict | list))
    )
    rows = [(str(key), *(_value(metric, row.get(metric)) for metric in metrics)) for key, row in scores.items()]
    return Table(caption, ("name", *map(_metric, metrics)), tuple(rows))


def _value(metric: str, value: object) -> str:
    return f"{value:,}" if metric in _COUNTS and isinstance(value, int) else _cell(value)


def _cell(value: object, interval: object = None) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{100 * value:.1f}{_interval(interval)}"


def _seed_cell(value: object) -> str:
    """A cell for {mean, std, t95: [low, high]}."""
    over = _dict(value)
    if not isinstance(over.get("mean"), int | float):
        return "-"
    std = f"\u00a0±\u00a0{100 * over['std']:.1f}" if isinstance(over.get("std"), int | float) else ""
    return f"{100 * over['mean']:.1f}{std}{_interval(over.get('t95'))}"


def _interval(value: object) -> str:
    """A cell may break before it, but not within it."""
    low_high = _numbers(value)
    return " [{:.1f},\u00a0{:.1f}]".format(*(100 * bound for bound in low_high)) if len(low_high) == 2 else ""


def _numbers(value: object) -> list[float]:
    return list(value) if isinstance(value, Iterable) and all(isinstance(item, int | float) for item in value) else []


def _metric(name: str) -> str:
    return _NAMES.get(name, name.replace("_", " "))


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}
