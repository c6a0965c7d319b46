"""The chart at the top of the report: one score of the model beside those of what it is compared with."""

from matplotlib.figure import Figure

from ecgbyte_jax.report.save import MM

_BLUE, _GREY = "#0072b2", "#6b6b6b"
_WIDTH = 105.0  # mm: letters stay legible on a phone


def draw_comparison(scores: dict[str, float], intervals: dict[str, list[float]], label: str) -> Figure:
    """One dot per system with its value and, where there is one, its 95% interval; scores and bounds 0..1."""
    figure = Figure(figsize=(_WIDTH * MM, (18 + 11 * len(scores)) * MM), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for place, (name, score) in enumerate(scores.items()):
        colour = _GREY if place else _BLUE
        low, high = intervals.get(name) or (score, score)
        axes.hlines(place, 100 * low, 100 * high, color=colour, linewidth=2.4)
        axes.plot(100 * score, place, "o", color=colour, markersize=7)
        axes.text(100 * score, place - 0.22, f"{100 * score:.1f}", color=colour, fontsize=10, ha="center", va="bottom")
    axes.set_yticks(range(len(scores)), scores, fontsize=10)
    axes.set(xlim=(-2, 102), ylim=(len(scores) - 0.6, -0.75))
    axes.set_xlabel(label, fontsize=10)
    axes.tick_params(axis="x", labelsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure
