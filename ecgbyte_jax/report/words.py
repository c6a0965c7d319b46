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
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "brier": "Brier score",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
    "hamming_loss": "Hamming loss",
    "findings_micro_f1": "micro F1",
    "findings_macro_f1": "macro F1",
    "findings_missed": "missed findings",
    "findings_extra": "extra findings",
}
_COUNTS = ("sequences", "examples", "patients", "count", "n")
_REASONS = 20
_LABELS = 40  # those of most recordings


def title(name: str, data: dict) -> str:
    """The title of a run's page; data: the settings of its data with the corpus' `name` and `contents`, {} where unknown."""
    return f"ECG-Byte{_on(data)}: run {name}"


def _on(data: dict) -> str:
    if not data:
        return ""
    return " on synthetic ECGs" if data.get("synthetic_records") else f" on {data['name']}"


def introduction(data: dict, read_as: str = "tokens") -> str:
    """What the run is of, in one or two sentences; those of a synthetic one say so first. read_as: what the model reads."""
    if data.get("synthetic_records"):
        return (
            f"The ECGs of this run are synthetic: {data['synthetic_records']:,} recordings that ecgbyte-jax computed itself, "
            "of no patient, so its scores say nothing about real ECGs. A language model was trained to read them as "
            f"{read_as} and to answer questions about them."
        )
    of = f"of {data['name']} " if data else ""
    unknown = "" if data else " Which ECGs these are is unknown: the preparation of this evaluation is not in the run's folder."
    return f"A language model was trained to read 12-lead ECGs {of}as {read_as} and to answer questions about them.{unknown}"


def data_fact(data: dict) -> str:
    """The name of the data set, and what it contains."""
    if not data:
        return "unknown"
    if data.get("synthetic_records"):
        return f"synthetic, {data['synthetic_records']:,} recordings, with questions in the form of {data['name']}"
    published = "; the published split, which may have a patient in several parts" if data.get("published_split") else ""
    fold = f"; fold {data.get('fold')} of {data['folds']}" if data.get("folds") else ""
    return f"{data['name']}: {data['contents']}{published}{fold}"


def model_fact(trained: dict, parameters: int) -> str:
    """The model and the number of its parameters (0: unknown); trained: the settings of its training, {} where unknown."""
    size = f"{_rounded(parameters)} parameters" if parameters else ""
    if not trained:
        return size or "unknown"
    model, lora = _dict(trained.get("model")), _dict(trained.get("lora"))
    if model.get("pretrained"):
        kind = str(model["pretrained"]).rstrip("/").rpartition("/")[2]
    else:
        kind = f"decoder trained from scratch, {model.get('layers')} layers of width {model.get('width')}"
    adapted = f"LoRA of rank {lora['rank']}" if lora.get("rank") else ""
    return ", ".join(filter(None, (kind, adapted, size)))


def _rounded(count: int) -> str:
    if count < 1e5:
        return f"{count:,}"
    size, unit = (1e9, "billion") if count >= 0.9995e9 else (1e6, "million")
    return f"{count / size:.0f} {unit}" if count >= 9.95 * size else f"{count / size:.2g} {unit}"


def evaluated(results: dict) -> str:
    """One sentence on what was evaluated."""
    known = {name: results.get(name) for name in ("patients", "split")}
    step = results.get("checkpoint_step")
    by = f"checkpoint {step}" if step is not None else f"'{results.get('checkpoint')}'"
    text = f"{_counted(results.get('sequences'))} answers about {{patients}} patients of the split '{{split}}'".format(**known)
    seeds = results.get("seeds")
    seed_list = f", seeds {', '.join(map(str, seeds))}" if isinstance(seeds, list) and len(seeds) > 1 else ""
    empty = results.get("empty_answers")
    return f"{text}, by {by}{seed_list}.{f' {empty} answers are empty; they count as wrong.' if empty else ''}"


def verdict(results: dict) -> tuple[list[str], str]:
    """(the sentences of the verdict, what their numbers are); ([], "") where the results hold none."""
    found = _dict(results.get("verdict"))
    sentences = [text for key in ("sentence", "over_commonest") if isinstance(text := found.get(key), str) and text]
    note = (
        f"Numbers: the difference of the {_metric(str(found.get('metric')))} over all questions, each answered once for a "
        "recording, in percentage points, with its 95% interval. To read the ECG is to do better with it than the same model "
        "does with another patient's ECG."
    )
    return [text[0].upper() + text[1:] for text in sentences], note if sentences else ""


def evidence(results: dict) -> str:
    """The results' word for the verdict, "" where they hold none."""
    return str(_dict(results.get("verdict")).get("evidence", ""))


def compared(results: dict) -> tuple[str, dict[str, float], dict[str, list[float]], str]:
    """(metric, system -> score, system -> 95% interval, what was counted) of the score that the page puts first."""
    by_recording = _dict(results.get("by_recording"))
    part = by_recording if by_recording.get("scores") else results
    metric = str(_dict(results.get("verdict")).get("metric") or _first_metric(part))
    scores = {name: row[metric] for name, row in part["scores"].items() if isinstance(row.get(metric), int | float)}
    bounds = {name: _numbers(_dict(row).get(metric)) for name, row in _dict(part.get("intervals")).items()}
    counted = f"{_counted(results.get('sequences'))} answers, each about one segment"
    if part is by_recording:
        counted = (
            f"{_counted(by_recording.get('questions'))} questions, each answered once for a recording, by vote of its segments"
        )
    return _metric(metric), scores, {name: pair for name, pair in bounds.items() if len(pair) == 2}, counted


def _first_metric(part: dict) -> str:
    metrics = [metric for row in part["scores"].values() for metric in row]
    return "exact_match" if "exact_match" in metrics or not metrics else metrics[0]


def _counted(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def score_tables(results: dict) -> list[Table]:
    """Every table of scores in an evaluation's results, in %, without the metrics that it calls hidden."""
    hidden = set(_strings(results.get("hidden")))
    by_recording = _dict(results.get("by_recording"))
    tables = []
    if by_recording.get("scores") and by_recording.get("questions") != results.get("sequences"):  # else the two are the same
        questions = _counted(by_recording.get("questions"))
        tables.append(_scores(by_recording, f"By recording, one vote over its segments ({questions} questions), in %", hidden))
    tables.append(_scores(results, "By segment, in %" if tables else "Scores in %", hidden))
    seeds = _dict(results.get("over_seeds"))
    if seeds:
        metrics = _metrics(seeds.values(), hidden)
        cells = [(name, *(_seed_cell(_dict(row).get(m)) for m in metrics)) for name, row in seeds.items()]
        caption = "Over seeds in %: mean, ± standard deviation, 95% t interval"
        tables.append(Table(caption, ("system", *map(_metric, metrics)), tuple(cells)))
    tables += _yes_no(_dict(_dict(results.get("by_recording")).get("yes_no")))
    tables += _numbers(_dict(_dict(results.get("by_recording")).get("numbers")))
    for name, caption in (
        ("by_question_type", "The model by question type and segment, in %"),
        ("by_attribute_type", "The model by type of attribute and segment, in %"),
        ("by_attribute", "The model by attribute and segment, in %"),
        ("by_corpus", "The model by corpus and segment, in %"),
        ("macro_f1", "Macro F1 over the answers of closed questions, by segment, in %"),
    ):
        part = _dict(results.get(name))
        if part:
            rows_by_name = {key: row if isinstance(row, dict) else {"macro F1": row} for key, row in part.items()}
            tables.append(_plain(caption, rows_by_name, hidden, _dict(results.get(f"{name}_intervals"))))
    tables += _benchmark(_dict(results.get("benchmark"))) + _findings(_dict(results.get("findings")))
    return tables + _perturbed(results, hidden) + _labels(_dict(results.get("labels")))


def _benchmark(part: dict) -> list[Table]:
    """The test sets of a published benchmark that have a score."""
    scored = {name: test for name, test in part.items() if _dict(test).get("scores")}
    how = "by its own rules: {} questions, by recording, in %"
    return [_scores(test, f"{name}, {how.format(_counted(test.get('questions')))}", set()) for name, test in scored.items()]


def _findings(part: dict) -> list[Table]:
    """The findings of reports, and the model's by finding."""
    if not part.get("scores"):
        return []
    about = "by recording, in %: missed of those in the references, extra of those in the answers"
    caption = f"Findings in {_counted(part.get('reports'))} reports, {about}"
    counts = next(iter(_dict(part.get("by_finding")).values()), {})
    rows = sorted(counts.items(), key=lambda row: -row[1][0] - row[1][1])
    cells = tuple(
        (name, *(f"{number:,}" for number in (hits + missed, hits, missed, extra))) for name, (hits, missed, extra) in rows
    )
    head = ("finding", "in references", "in both", "missed", "extra")
    return [_scores(part, caption, set()), *([Table("The model's findings", head, cells)] if cells else [])]


def _perturbed(results: dict, hidden: set[str]) -> list[Table]:
    """The scores on spoilt ECGs, and what these cost."""
    part = {"scores": _dict(results.get("perturbed")), "intervals": results.get("perturbed_intervals")}
    if not part["scores"]:
        return []
    tables, drops = [_scores(part, "The model on spoilt ECGs, by segment, in %", hidden)], _dict(results.get("drops"))
    metrics = _metrics(drops.values(), hidden)
    rows = [
        (name, *(_cell(_dict(row.get(m)).get("mean"), _dict(row.get(m)).get("interval")) for m in metrics))
        for name, row in drops.items()
    ]
    caption = "What they cost: points below the unspoilt ECGs, with the 95% interval of the paired difference"
    return [*tables, Table(caption, ("spoilt by", *map(_metric, metrics)), tuple(rows))] if rows else tables


def _labels(part: dict) -> list[Table]:
    """The label scores, and those of each label."""
    if not part.get("scores"):
        return []
    tables = [_scores(part, f"Label scores, means over {_counted(part.get('labels'))} labels, by recording, in %", set())]
    labels = sorted(part.get("by_label", []), key=lambda label: -label["positives"])
    if not labels:
        return tables
    (model, own), *others = labels[0]["scores"].items()
    rows = []
    for label in labels[:_LABELS]:
        scores, bounds = label["scores"], label["intervals"][model]
        cells = [_cell(scores[model].get(metric), bounds.get(metric)) for metric in own]
        cells += [_cell(scores[name].get("auroc")) for name, _ in others]
        counts = f"{label['positives']:,} of {label['recordings']:,}"
        rows.append((f"{label['question']} {label['answer']}", counts, *cells))
    which = f"the {_LABELS} of {len(labels)} labels with most recordings" if len(labels) > _LABELS else "each label"
    head = ("question and answer", "recordings", *map(_metric, own), *(f"AUROC, {name}" for name, _ in others))
    return [*tables, Table(f"Label scores of {which}, in %", head, tuple(rows))]


def calibration(results: dict) -> tuple[list[dict], str]:
    """(bins of the likeliest answers, what they are); ([], "") where the results hold none."""
    part = _dict(results.get("labels"))
    error = _dict(next(iter(_dict(part.get("scores")).values()), {})).get("calibration_error")
    bins = part.get("calibration")
    if not isinstance(bins, list) or not bins or not isinstance(error, int | float):
        return [], ""
    answers = _counted(part.get("answers"))
    return bins, f"How often the likeliest candidate is right, of {answers} answers: a calibration error of {100 * error:.1f}%."


def _scores(part: dict, caption: str, hidden: set[str]) -> Table:
    scores, intervals = part["scores"], _dict(part.get("intervals"))
    metrics = _metrics(scores.values(), hidden)
    rows = [(name, *(_cell(row.get(m), _dict(intervals.get(name)).get(m)) for m in metrics)) for name, row in scores.items()]
    how = ", with each 95% interval (bootstrap over patients)" if intervals else ""
    return Table(f"{caption}{how}", ("system", *map(_metric, metrics)), tuple(rows))


def _yes_no(part: dict) -> list[Table]:
    systems = _dict(part.get("systems"))
    metrics = _metrics(systems.values(), set())
    rows = [(name, *(_cell(_dict(row).get(metric)) for metric in metrics)) for name, row in systems.items()]
    counts = f"{_counted(part.get('questions'))} questions, {_counted(part.get('yes'))} of them with 'yes'"
    caption = f"Yes or no, by recording: {counts}, in %"
    return [Table(caption, ("system", *map(_metric, metrics)), tuple(rows))] if rows else []


def _numbers(part: dict) -> list[Table]:
    """How far off the answers are that are numbers."""
    rows = []
    for attribute, numbers in part.items():
        bounds = _dict(numbers.get("intervals"))
        for system, scores in _dict(numbers.get("systems")).items():
            error, own = scores.get("mean_absolute_error"), _dict(bounds.get(system))
            cells = [_cell(scores.get(name), own.get(name)) for name in ("within_5", "within_10")]
            mean = f"{error:.3g}" if isinstance(error, int | float) else "-"
            of = f"{attribute}, {numbers.get('unit')}"
            rows.append((of, _counted(numbers.get("questions")), system, mean, *cells, f"{scores.get('unparsed', 0):g}"))
    head = ("answer", "questions", "system", "mean absolute error", "within 5%, in %", "within 10%, in %", "no number")
    caption = "Answers that are numbers, by recording; what is no number counts as wrong, but has no error"
    return [Table(caption, head, tuple(rows))] if rows else []


def _metrics(rows: Iterable[object], hidden: set[str]) -> list[str]:
    """The names in all rows, in their order."""
    return [name for name in dict.fromkeys(name for row in rows for name in _dict(row)) if name not in hidden]


def score_notes(results: dict) -> list[str]:
    """Metrics that could not be computed or are left out, with the reason."""
    notes = [f"{_metric(str(name))} is missing: {reason}" for name, reason in _dict(results.get("missing")).items()]
    of_labels = _dict(_dict(results.get("labels")).get("missing"))
    notes += [f"{_metric(str(name))} of labels is missing: {reason}" for name, reason in of_labels.items()]
    hidden = [_metric(name) for name in _strings(results.get("hidden"))]
    return [*notes, f"Left out, since every reference is one word: {', '.join(hidden)}."] if hidden else notes


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


def _plain(caption: str, scores: dict[str, dict], hidden: set[str], intervals: dict[str, dict]) -> Table:
    metrics = _metrics(({k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in scores.values()), hidden)
    rows = []
    for key, row in scores.items():
        own = _strings(row.get("hidden"))  # what says nothing about this row's references
        bounds = _dict(intervals.get(key))
        cells = ("-" if metric in own else _value(metric, row.get(metric), bounds.get(metric)) for metric in metrics)
        rows.append((str(key), *cells))
    return Table(caption, ("name", *map(_metric, metrics)), tuple(rows))


def _value(metric: str, value: object, interval: object) -> str:
    return f"{value:,}" if metric in _COUNTS and isinstance(value, int) else _cell(value, interval)


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


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _metric(name: str) -> str:
    return _NAMES.get(name, name.replace("_", " "))


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}
