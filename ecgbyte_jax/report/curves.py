"""Training and validation curves, from the lines of a metrics log."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ecgbyte_jax.report.save import MM

_BLUE, _ORANGE, _GREY = "#0072b2", "#b34700", "#777777"
_SMOOTHED = 200  # points of a smoothed curve, at most
_AXES = (("grad_norm", "gradient norm"), ("learning_rate", "learning rate"), ("tokens_per_s", "tokens/s"))


def draw_training(lines: list[dict]) -> Figure:
    """Each step's loss with its running mean, the validation loss, and small charts of the other figures below."""
    figure = Figure(figsize=(210 * MM, 120 * MM), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, len(_AXES), height_ratios=(2, 1))
    main = figure.add_subplot(grid[0, :])
    steps, losses = _series(lines, "loss")
    main.plot(steps, losses, color=_BLUE, alpha=0.3, linewidth=0.8, label="training, each step")
    main.plot(*_running_mean(steps, losses), color=_BLUE, linewidth=1.6, label="training, running mean")
    valid = _series(lines, "valid_loss")
    if len(valid[0]):
        main.plot(*valid, color=_ORANGE, marker="o", linewidth=1.6, label="validation")
    if len(losses) and min(losses) > 0:
        main.set_yscale("log")
    main.set_xlabel("step", fontsize=9)
    main.set_ylabel("loss in nats a token", fontsize=9)
    main.legend(fontsize=8, frameon=False)
    _plain(main)
    for place, (name, label) in enumerate(_AXES):
        axes = figure.add_subplot(grid[1, place])
        axes.plot(*_series(lines, name), color=_GREY, linewidth=0.9)
        axes.set_title(label, fontsize=8, loc="left")
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.yaxis.get_offset_text().set_fontsize(7)
        _plain(axes)
    return figure


def _series(lines: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
    return np.array([step for step, _ in points]), np.array([value for _, value in points], float)


def _running_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring steps, at most `_SMOOTHED` of them and of five steps or more."""
    size = max(5, len(values) // _SMOOTHED)
    whole = len(values) // size * size
    if not whole:
        return steps, values
    return steps[:whole].reshape(-1, size).mean(axis=1), values[:whole].reshape(-1, size).mean(axis=1)


def _plain(axes: Axes) -> None:
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
