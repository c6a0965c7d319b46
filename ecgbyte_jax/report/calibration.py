"""The picture of a model's calibration: how often it is right at each probability that it gives its likeliest answer."""

import numpy as np
from matplotlib.figure import Figure

from ecgbyte_jax.report.save import MM

_BLUE, _GREY = "#0072b2", "#6b6b6b"
_SIDE = 90.0  # mm


def draw_calibration(bins: list[dict]) -> Figure:
    """A dot for each bin of answers, as large as they are many; the diagonal is perfect calibration.

    bins: with the mean `probability`, the share that is `right`, both 0..1, and the number of `answers`.
    """
    figure = Figure(figsize=(_SIDE * MM, _SIDE * MM), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=_GREY, linewidth=1.0, linestyle="--")
    counts = np.array([row["answers"] for row in bins], float)
    places = [[100 * row[name] for row in bins] for name in ("probability", "right")]
    axes.plot(*places, color=_BLUE, linewidth=1.2)
    axes.scatter(*places, s=12 + 150 * counts / counts.sum(), color=_BLUE, zorder=3)
    axes.set(xlim=(-2, 102), ylim=(-2, 102), aspect="equal")
    axes.set_xlabel("probability of the likeliest answer in %", fontsize=9)
    axes.set_ylabel("right in %", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
