"""Attention over the trace: each sample's weight as the colour beneath it.

Axes of arrays: T samples of a segment.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.report.paper import Panel, Sheet, draw_head, draw_names, draw_traces, lay_out, new_sheet

_FOOT = 14.0  # mm for the colour bar
_CLIP = 99.5  # percentile of |weight| that gets the strongest colour: a token of one sample must not make all others pale
_FULL_3X4 = 2.5  # s; longer segments are drawn 12 x 1, so that no sample is left out
_LABEL = "share of attention"
_LEFT, _ABOUT = 15.0, 1.8  # mm: where the colour bar begins, the height of what is said about it


def lay_out_whole(signal: np.ndarray, rate: float, original: np.ndarray | None = None) -> Sheet:
    """A sheet that shows every sample of signal [12, T] at `rate` Hz once, with room for the colour bar."""
    layout = "3x4" if signal.shape[1] / rate <= _FULL_3X4 else "12x1"
    return lay_out(signal, rate, layout, _FOOT, original)


def draw_attention(
    signal: np.ndarray,
    weights: np.ndarray,
    rate: float,
    *,
    seen: np.ndarray | None = None,
    title: str = "",
    about: str = "",
) -> Figure:
    """Signal [12, T] in mV at `rate` Hz over `weights` [12, T], each lead with its share of their absolute sum.

    Signed weights get two colours around white. Samples where `seen` is False, which the model did not get, are hatched. about:
    a sentence on the weights, below their colours.
    """
    sheet = lay_out_whole(signal, rate)
    figure, axes = new_sheet(sheet, "grey")
    _draw_weights(figure, axes, sheet, weights, seen)
    draw_traces(axes, sheet, signal, notes=_shares(weights))
    draw_head(axes, sheet, title)
    axes.text(_LEFT, _ABOUT, about, fontsize=7, va="center")
    return figure


def draw_layer(sheet: Sheet, weights: np.ndarray, seen: np.ndarray) -> Figure:
    """What `draw_attention` shows but for the trace and its paper: to be multiplied with a picture of the same sheet."""
    figure, axes = new_sheet(sheet, "")
    _draw_weights(figure, axes, sheet, weights, seen)
    draw_names(axes, sheet, _shares(weights))
    return figure


def _draw_weights(figure: Figure, axes: Axes, sheet: Sheet, weights: np.ndarray, seen: np.ndarray | None) -> None:
    """The colours, and in the sheet's foot their bar, which has no numbers: only weights of one picture compare."""
    signed = bool((weights < 0).any())
    top = float(np.percentile(np.abs(weights), _CLIP)) or float(np.abs(weights).max()) or 1.0
    norm = Normalize(-top if signed else 0.0, top)
    colours = {"cmap": "PuOr_r" if signed else "YlOrRd", "norm": norm, "alpha": 0.8, "aspect": "auto", "zorder": 2}
    image = None
    for panel in sheet.panels:
        row = weights[None, panel.lead, panel.start : panel.stop]
        end = panel.left + row.size / sheet.rate * 25.0
        extent = (panel.left, end, panel.bottom + 0.5, panel.top - 0.5)
        image = axes.imshow(row, extent=extent, interpolation="nearest", **colours)
        if seen is not None:
            _hatch(axes, sheet, panel, seen[panel.lead, panel.start : panel.stop])
    axes.set(xlim=(0, sheet.width), ylim=(0, sheet.height))
    bar_width = min(100.0, sheet.width - 2 * _LEFT)
    bar = figure.add_axes((_LEFT / sheet.width, 8.0 / sheet.height, bar_width / sheet.width, 4.0 / sheet.height), zorder=6)
    figure.colorbar(image, cax=bar, orientation="horizontal", drawedges=False)
    ends = ("most against", "most for") if signed else ("low", "high")
    bar.set_xticks([norm.vmin, norm.vmax], ends, fontsize=8)
    for text, side in zip(bar.get_xticklabels(), ("left", "right")):
        text.set_horizontalalignment(side)
    bar.tick_params(length=0)
    bar.set_xlabel(_LABEL, fontsize=8, labelpad=-8)


def _hatch(axes: Axes, sheet: Sheet, panel: Panel, seen: np.ndarray) -> None:
    """Unseen samples are at the end of a segment, where it is cut: the end of a lead, or all of it."""
    first = int(np.argmin(seen)) if not seen.all() else len(seen)
    if first < len(seen):
        x = sheet.x(panel)
        box = (x[first], panel.bottom + 0.5), x[-1] - x[first], panel.top - panel.bottom - 1
        style = {"facecolor": "#dddddd", "edgecolor": "#888888", "hatch": "////", "linewidth": 0, "zorder": 2.5, "alpha": 0.6}
        axes.add_patch(Rectangle(*box, **style))


def _shares(weights: np.ndarray) -> dict[int, str]:
    total = float(np.abs(weights).sum())
    return {lead: f"{np.abs(weights[lead]).sum() / total:.0%}" if total else "0%" for lead in range(len(LEADS))}
