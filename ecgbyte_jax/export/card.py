"""The card of an exported model, `README.md`: its data, scores, controls, verdict and limits.

The fields that a card reads from an evaluation's results may be missing in those of earlier versions.
"""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

import ecgbyte_jax
from ecgbyte_jax.corpora.read import describe
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.inputs.shards import Manifest, SplitSummary
from ecgbyte_jax.settings import SHOWN_AS, DataSettings, Settings

_LATER: dict = {"verdict": None, "hidden": [], "by_recording": None, "perturbed": {}}  # fields that earlier results lack
_SYNTHETIC = "{count} synthetic recordings, with questions made by the same program"


@dataclass(frozen=True)
class Card:
    """What a card says; step: of the checkpoint; segment: its length in words.

    base: the pretrained model's hub id or ""; file: its GGUF file's name or ""; quantized: `model.quantize`;
    results: of the evaluation of this very checkpoint, or None and `unevaluated` says why; temperature: its answers';
    question: one of the training's; cut: how many test segments did not fit into a prompt; vectors: as which the model reads an
    ECG, or 0; shown: what it was trained with in place of each question's ECG, or ""; apart: whether its patients are in
    training too.
    """

    name: str
    step: int
    adapter: bool
    base: str
    file: str
    quantized: str
    synthetic: bool
    data: str
    segment: str
    max_length: int
    dtype: str
    splits: dict[str, SplitSummary]
    cut: str
    vectors: int
    shown: str
    apart: str
    results: dict | None
    unevaluated: str
    temperature: float
    question: str
    version: str = ecgbyte_jax.__version__


def make_card(
    name: str, step: int, settings: Settings, manifest: Manifest, results: dict | None, unevaluated: str, temperature: float
) -> Card:
    """The card of a run's checkpoint, by its settings, its prepared data and the results of its evaluation, if any."""
    rate, samples, test = settings.signal.target_rate, settings.signal.segment_length, manifest.splits["test"]
    synthetic, pretrained = settings.data.synthetic_records, settings.model.pretrained
    vectors = 0 if settings.ecg_input.kind == "tokens" else settings.ecg_input.vectors
    return Card(
        name=name,
        step=step,
        adapter=settings.export.adapter,
        base=pretrained if pretrained and not Path(pretrained).exists() else "",
        file=Path(pretrained).name if Path(pretrained).is_file() else "",
        quantized=settings.model.quantize,
        synthetic=synthetic > 0,
        data=_SYNTHETIC.format(count=synthetic) if synthetic else _data(settings.data),
        segment=f"{samples / rate:g} s" if rate else f"{samples} samples",
        max_length=settings.prompt.max_length,
        dtype=settings.model.dtype,
        splits=manifest.splits,
        cut=f"{test.ecg_cut} of {test.sequences}" if test.ecg_cut and not vectors else "",
        vectors=vectors,
        shown=SHOWN_AS.get(settings.data.ecg, ""),
        apart=_apart(settings, results),
        results=results,
        unevaluated=unevaluated,
        temperature=temperature,
        question=_question(manifest),
    )


def _data(data: DataSettings) -> str:
    about = describe(asdict(data))
    return f"{about.name}: {about.contents}"


def _apart(settings: Settings, results: dict | None) -> str:
    if results and results["split"] == "train":
        return "on whom it was trained: this says nothing about others"
    if settings.data.published_split:
        return "of whom some are in training too, as in ECG-Byte's published split"
    return "none of them in training"


def _question(manifest: Manifest) -> str:
    return next((question for question in sorted(manifest.commonest) if question), "QUESTION")


def write_card(folder: Path, card: Card) -> None:
    """Writes `README.md`. Raises OSError."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    environment.filters["quote"] = shlex.quote  # for a shell
    template = environment.from_string((Path(__file__).parent / "card.md.jinja").read_text(encoding="utf-8"))
    results = None if card.results is None else _LATER | card.results
    hidden = results["hidden"] if results else []
    how = {"metric": _metric, "table": lambda scores, intervals: _table(scores, intervals, hidden)}
    yes_no = results and (results["by_recording"] or {}).get("yes_no")
    metric = results and (results["verdict"] or {}).get("metric", "exact_match")
    text = template.render(card=card, results=results, yes_no=yes_no, perturbed_metric=metric, **how)
    write_whole(folder / "README.md", [text.encode()])


def _metric(name: str) -> str:
    return name.replace("_", " ")


def _table(scores: dict, intervals: dict, hidden: list[str]) -> str:
    """A row for each system and a column for each metric, in %."""
    metrics = [metric for metric in next(iter(scores.values())) if metric not in hidden]
    lines = [f"| | {' | '.join(map(_metric, metrics))} |", f"| --- |{' ---: |' * len(metrics)}"]
    for system, values in scores.items():
        cells = [_cell(values.get(metric), intervals.get(system, {}).get(metric)) for metric in metrics]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "-"
    span = " [{:.1f}, {:.1f}]".format(*(100 * bound for bound in interval)) if interval else ""
    return f"{100 * value:.1f}{span}"
