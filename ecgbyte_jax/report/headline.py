"""The page of the headline comparison: its sentences, tables and charts, from plain values."""

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from ecgbyte_jax.report.comparison import draw_comparison
from ecgbyte_jax.report.page import Picture, Table, fill, picture
from ecgbyte_jax.report.save import MM

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a6761d", "#56b4e9")  # Okabe and Ito's, legible on white
_LINES = ("-", "--", ":")
_AXES = {"examples": "questions with answers", "flops": "FLOPs, both stages", "seconds": "seconds, both stages"}
_UNITS = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6))


@dataclass(frozen=True)
class Row:
    """A system: scores and intervals 0..1, means over its trainings; costs of one training.

    stages: how many trainings it takes. difference: {mean, interval} to the first system, None for this. curve: validations as
    {score, examples, flops, seconds}; to_near_best: that point of it at which the target is reached, None where it is not.
    """

    name: str
    what: str
    stages: int
    score: float
    interval: list[float]
    by_seed: list[float]
    to_other_ecg: float
    difference: dict[str, Any] | None
    curve: list[dict[str, float]]
    to_near_best: dict[str, float] | None
    cost: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """What was compared; near: the share of the best validation score that is the `target`; commonest: a score, see `Row`."""

    name: str
    synthetic: bool
    corpus: str
    model: str
    command: str
    split: str
    questions: int
    patients: int
    metric: str
    seeds: list[int]
    commonest: float
    near: float
    target: float
    rows: list[Row]

    @property
    def counted(self) -> str:
        """What the scores are of."""
        trainings = "one training" if len(self.seeds) == 1 else f"the mean of {len(self.seeds)} trainings"
        return f"{self.questions:,} questions about {self.patients:,} patients, {trainings} of each system"

    @property
    def measured(self) -> str:
        """The name of the score."""
        return self.metric.replace("_", " ")


def sentences(content: Comparison) -> list[str]:
    """What the comparison shows, whatever that is."""
    first, best = content.rows[0], max(content.rows, key=lambda row: row.score)
    found = [f"Best {content.measured}: {best.name}, {_percent(best.score, best.interval)}% of {content.counted}."]
    sides: dict[str, list[str]] = {"better": [], "worse": [], "no different beyond chance": []}
    for row in content.rows[1:]:
        low, high = row.difference["interval"]
        sides["better" if low > 0 else "worse" if high < 0 else "no different beyond chance"].append(row.name)
    said = "; ".join(f"{side}: {_and(names)}" for side, names in sides.items() if names)
    if said:
        found.append(f"Compared with {first.name}, {_percent(first.score, first.interval)}%: {said}.")
    blind = [row.name for row in content.rows if row.interval[0] <= content.commonest]
    if blind:
        found.append(f"Not above the commonest answer ({100 * content.commonest:.1f}%) beyond chance: {_and(blind)}.")
    return [*found, _cheapest(content)]


def _cheapest(content: Comparison) -> str:
    reached = [row for row in content.rows if row.to_near_best]
    if not reached:
        return "No system has given a right answer to a validation question."
    goal = f"{100 * content.near:.0f}% of the best validation score ({100 * content.target:.1f}%)"
    least = {axis: min(reached, key=lambda row, axis=axis: row.to_near_best[axis]) for axis in _AXES}
    said = ", ".join(
        f"{least[axis].name} with the fewest {unit} ({_short(least[axis].to_near_best[axis])})"
        for axis, unit in (("examples", "examples"), ("flops", "FLOPs"), ("seconds", "seconds"))
    )
    return f"{goal} is reached by {_and([row.name for row in reached])}: {said}."


def score_rows(content: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of the table of scores."""
    first = content.rows[0].name
    head = ("system", "an ECG as", f"{content.measured}, % [95%]", "each training", "with another patient's ECG")
    head += (f"minus {first}", *(f"{axis} to {100 * content.target:.0f}%" for axis in ("examples", "FLOPs", "seconds")))
    rows = []
    for row in content.rows:
        gain = row.difference and _signed(row.difference["mean"], row.difference["interval"])
        near = [_short(row.to_near_best[axis]) if row.to_near_best else "not reached" for axis in _AXES]
        seeds = ", ".join(f"{100 * score:.1f}" for score in row.by_seed)
        scores = (_percent(row.score, row.interval), seeds, f"{100 * row.to_other_ecg:.1f}", gain or "-")
        rows.append((row.name, row.what, *scores, *near))
    return head, rows


def render_headline(content: Comparison) -> bytes:
    """The page; the same content gives the same bytes."""
    head, rows = score_rows(content)
    of = "synthetic ECGs" if content.synthetic else content.corpus
    scores = {row.name: row.score for row in content.rows} | {"commonest answer": content.commonest}
    chart = draw_comparison(scores, {row.name: row.interval for row in content.rows}, f"{content.measured} in %")
    alt = "; ".join(f"{name} {100 * score:.1f}%" for name, score in scores.items())
    counted = content.counted[0].upper() + content.counted[1:]
    introduction = (
        "Ways to give an ECG to a language model, with the same decoder, prompts, questions, steps and data. Systems of two "
        "stages first train an encoder by itself on the same recordings; that counts into their costs."
    )
    if content.synthetic:
        introduction += (
            " The ECGs are synthetic, of no patient, the models and encoders tiny: the figures say what these score and cost "
            "here, and do not rank the methods on real ECGs."
        )
    return fill(
        "headline.html",
        title=f"ECG-Byte and its alternatives on {of}: run {content.name}",
        introduction=introduction,
        sentences=sentences(content),
        chart=picture(chart, "The systems compared", f"{content.measured.capitalize()}: {alt}.", f"{counted}."),
        facts=[
            ("Language model", content.model),
            ("Data", of),
            ("Seeds of the trainings", ", ".join(map(str, content.seeds))),
        ],
        command=content.command,
        scores=Table(f"Split {content.split}: {content.counted}", head, tuple(rows)),
        score_notes=[
            f"The intervals are over patients; a difference is paired question by question. The last columns are what the mean "
            f"training had cost when it reached {100 * content.near:.0f}% of the best system's score on the validation "
            "split, between two validations on a straight line."
        ],
        curves=[_curves(content, axis) for axis in _AXES],
        costs=_cost_table(content),
        cost_notes=[
            "Means of the trainings, from their cost.json. FLOPs are analytic, of the decoder and of what makes its input, "
            "forward and backward. Seconds are of this machine, with compilation and validation. The tokenizer's training "
            "counts for tokens; cleaning the recordings, the same for all, does not. GB are the most that the process held on "
            "the host. Energy is given where the hardware reports it."
        ],
    )


def _curves(content: Comparison, axis: str) -> Picture:
    figure = _draw(content, axis)
    last = "; ".join(f"{row.name} {100 * row.curve[-1]['score']:.1f}% at {_short(row.curve[-1][axis])}" for row in content.rows)
    against = f"{content.measured.capitalize()} on the validation split against {_AXES[axis]}"
    caption = f"{against}; the dashed line is the target of the table."
    return picture(figure, f"Score against {axis}", f"Last validation: {last}.", caption)


def _draw(content: Comparison, axis: str) -> Figure:
    figure = Figure(figsize=(180 * MM, 100 * MM), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for place, row in enumerate(content.rows):
        axes.plot(
            [point[axis] for point in row.curve],
            [100 * point["score"] for point in row.curve],
            color=_COLOURS[place % len(_COLOURS)],
            linestyle=_LINES[place // len(_COLOURS) % len(_LINES)],
            marker="o",
            markersize=3.5,
            linewidth=1.6,
            label=row.name,
        )
    axes.axhline(100 * content.target, color="#6b6b6b", linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, None), ylim=(0, 100))
    axes.set_xlabel(_AXES[axis], fontsize=10)
    axes.set_ylabel(f"{content.measured} in %", fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    return figure


def _cost_table(content: Comparison) -> Table:
    cells = [_cost_cells(row) for row in content.rows]
    return Table("What one training of each system has cost", (*cells[0],), tuple((*each.values(),) for each in cells))


def _cost_cells(row: Row) -> dict[str, str]:
    cost = row.cost
    counts = {
        "ECGs": "ecgs",
        "patients": "patients",
        "examples": "examples",
        "first stage's segments": "first stage's segments",
    }
    counts |= {"ECG tokens": "ecg tokens", "other tokens": "text tokens", "padding": "padding tokens"}
    times = {"first stage, s": "first stage's seconds", "tokenizer, s": "tokenizer's seconds", "all, s": "seconds"}
    times |= {"CPU s": "cpu_s", "device s": "device_s"}
    return {
        "system": row.name,
        "stages": str(row.stages),
        **{name: f"{cost[field]:,.0f}" for name, field in counts.items()},
        "first stage, FLOP": _short(cost["first stage's flops"]),
        "decoder and input, FLOP": _short(cost["flops"]),
        **{name: f"{cost[field]:,.1f}" for name, field in times.items()},
        "GB": f"{cost['peak_memory'] / 1e9:.1f}",
        "kJ": f"{cost['energy_j'] / 1000:,.1f}" if "energy_j" in cost else "-",
    }


def _percent(score: float, interval: list[float]) -> str:
    low, high = interval
    return f"{100 * score:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _signed(score: float, interval: list[float]) -> str:
    low, high = interval
    return f"{100 * score:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _short(value: float) -> str:
    """12,300, or with three digits and a unit: 1.23 T."""
    for unit, size in _UNITS:
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
