"""A 12-lead ECG on standard paper: 25 mm/s, 10 mm/mV, true to scale in the saved picture.

One matplotlib axes with the unit of a millimetre covers the figure. Axes of arrays: T samples of a segment.
"""

from dataclasses import dataclass
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.errors import RecordError
from ecgbyte_jax.report.save import EVERY_SAMPLE, MM, title_text

MM_PER_S, MM_PER_MV = 25.0, 10.0
LAYOUTS = ("3x4", "12x1")
_COLUMNS = (("I", "II", "III"), ("aVR", "aVL", "aVF"), ("V1", "V2", "V3"), ("V4", "V5", "V6"))
_RHYTHM = "II"
_WHOLE_LEADS = 2.5  # s; a column of 3 x 4 has room for so much of a lead, and a rhythm strip would repeat it
_MARGIN, _HEAD, _PULSE = 5.0, 10.0, 10.0  # mm: around everything, the title, the calibration pulse
_ROOM = 4.0  # mm above and below a row's traces
_ROW = {"3x4": 25.0, "12x1": 15.0}  # mm, the least height of a row
COARSE = 250.0  # Hz; the sheet names lower rates, at which peaks look blunt
_TRACE = {"color": "black", "linewidth": 0.8, "zorder": 4}
_ORIGINAL = {"color": "#8a8a8a", "linewidth": 0.8, "zorder": 3.8}
_FINE, _BOLD = {"pink": ("#f6d5d5", "#e59b9b"), "grey": ("#ececec", "#cfcfcf")}, (0.25, 0.5)  # colours, line widths in points


@dataclass(frozen=True)
class Panel:
    """One lead's samples start..stop, drawn from `left` with 0 mV at `zero` (mm), in a row from `bottom` to `top` (mm)."""

    lead: int
    start: int
    stop: int
    left: float
    zero: float
    bottom: float
    top: float


@dataclass(frozen=True)
class Sheet:
    """The layout of a page in mm; foot: free below the grid; pulses: (left, 0 mV) of each row's calibration pulse."""

    width: float
    height: float
    foot: float
    rate: float
    panels: tuple[Panel, ...]
    pulses: tuple[tuple[float, float], ...]

    def x(self, panel: Panel) -> np.ndarray:
        """The places of a panel's samples in mm."""
        return panel.left + np.arange(panel.stop - panel.start) / self.rate * MM_PER_S


def lay_out(
    signal: np.ndarray, rate: float, layout: str = "3x4", foot: float = 0.0, original: np.ndarray | None = None
) -> Sheet:
    """The layout of signal [12, T] in mV at `rate` Hz, with room for its `original` [12, T]; `foot` mm are left free below.

    "3x4": four columns of a quarter of the time each, above lead II in full, in which every sample has the same place as in
    its column; a recording of up to 2.5 s has every lead in full instead. "12x1": every lead in full, one below the other.
    Raises RecordError for another shape or layout.
    """
    if signal.ndim != 2 or signal.shape[0] != len(LEADS) or not signal.shape[1] or layout not in LAYOUTS:
        raise RecordError(f"a signal {signal.shape} in layout {layout!r} found, [12, samples] and one of {LAYOUTS} expected")
    rows = _rows(signal.shape[1], rate, layout)
    drawn = signal if original is None else np.concatenate([signal, original])
    heights, zeros = zip(*(_height(drawn, row, layout) for row in rows))
    lengths = [sum(stop - start for _, start, stop in row) / rate * MM_PER_S for row in rows]
    top = _MARGIN + foot + sum(heights)
    panels, pulses = [], []
    for row, height, zero in zip(rows, heights, zeros):
        pulses.append((_MARGIN, top - height + zero))
        before = 0  # samples of the row
        for lead, start, stop in row:
            left = _MARGIN + _PULSE + before / rate * MM_PER_S
            panels.append(Panel(lead, start, stop, left, top - height + zero, top - height, top))
            before += stop - start
        top -= height
    height = _MARGIN + foot + sum(heights) + _HEAD
    return Sheet(_whole(2 * _MARGIN + _PULSE + max(lengths)), _whole(height), foot, rate, tuple(panels), tuple(pulses))


def _rows(samples: int, rate: float, layout: str) -> list[list[tuple[int, int, int]]]:
    """The (lead, start, stop) of each row from left to right."""
    if layout == "12x1":
        return [[(lead, 0, samples)] for lead in range(len(LEADS))]
    whole = samples / rate <= _WHOLE_LEADS
    cuts = np.linspace(0, samples, len(_COLUMNS) + 1).round().astype(int).tolist()
    spans = [(0, samples)] * len(_COLUMNS) if whole else list(pairwise(cuts))
    rows = [[(LEADS.index(names[row]), *span) for names, span in zip(_COLUMNS, spans)] for row in range(3)]
    return rows if whole else [*rows, [(LEADS.index(_RHYTHM), 0, samples)]]


def _height(signals: np.ndarray, row: list[tuple[int, int, int]], layout: str) -> tuple[float, float]:
    """(height of a row, height of its 0 mV above its bottom) in mm, on the grid's lines, so that no trace leaves the row.

    signals: [12, T], or [24, T] with the originals below.
    """
    low = min(float(signals[lead :: len(LEADS), start:stop].min()) for lead, start, stop in row)
    high = max(float(signals[lead :: len(LEADS), start:stop].max()) for lead, start, stop in row)
    below, above = _ROOM - min(low, 0.0) * MM_PER_MV, _ROOM + max(high, 1.0) * MM_PER_MV  # 1 mV: the pulse
    spare = max(0.0, _ROW[layout] - below - above) / 2
    return _whole(below + spare) + _whole(above + spare), _whole(below + spare)


def _whole(mm: float) -> float:
    return float(np.ceil(mm - 1e-9))


def new_sheet(sheet: Sheet, grid: str = "pink") -> tuple[Figure, Axes]:
    """An empty page with the grid above the foot: 1 mm, every fifth line bold; without one where its colour is ""."""
    figure = Figure(figsize=(sheet.width * MM, sheet.height * MM), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, sheet.width), ylim=(0, sheet.height))
    axes.set_axis_off()
    for every, color, width in zip((1, 5), _FINE.get(grid, ()), _BOLD):
        across, up = np.arange(0, sheet.width + 0.5, every), np.arange(0, sheet.height + 0.5, every)
        up = up[up >= sheet.foot]
        lines = [[(x, sheet.foot), (x, sheet.height)] for x in across] + [[(0, y), (sheet.width, y)] for y in up]
        axes.add_collection(LineCollection(lines, colors=color, linewidths=width, zorder=1), autolim=False)
    return figure, axes


@matplotlib.rc_context(EVERY_SAMPLE)
def draw_traces(
    axes: Axes, sheet: Sheet, signal: np.ndarray, *, notes: dict[int, str] | None = None, original: np.ndarray | None = None
) -> None:
    """The leads with their names (and a note after each), and the calibration pulses of 1 mV and 0.2 s.

    Where an `original` signal [12, T] is given, it is drawn in grey underneath.
    """
    for left, zero in sheet.pulses:
        x, y = left + np.array([0, 1, 1, 6, 6, 7]), zero + MM_PER_MV * np.array([0, 0, 1, 1, 0, 0])
        axes.plot(x, y, color="black", linewidth=0.8, zorder=4)
    for panel in sheet.panels:
        for values, style in ((original, _ORIGINAL), (signal, _TRACE)):
            if values is not None:
                heights = panel.zero + MM_PER_MV * values[panel.lead, panel.start : panel.stop]
                axes.plot(sheet.x(panel), heights, solid_joinstyle="round", **style)
        if panel.left > sheet.pulses[0][0] + _PULSE:  # the end of one lead and the beginning of the next
            axes.vlines(panel.left, panel.bottom + 1, panel.top - 1, color="#555555", linewidth=0.6, zorder=3.5)
    draw_names(axes, sheet, notes)


def draw_names(axes: Axes, sheet: Sheet, notes: dict[int, str] | None = None) -> None:
    """The names of the leads, with a note after each."""
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
    for panel in sheet.panels:
        name = LEADS[panel.lead] + ("  " + notes[panel.lead] if notes else "")
        axes.text(panel.left + 0.8, panel.top - 0.8, name, fontsize=8, va="top", weight="bold", zorder=5, bbox=box)


def draw_head(axes: Axes, sheet: Sheet, title: str) -> None:
    """The title, the paper's scale, and a sample rate that is low, at the top."""
    rate = f"{sheet.rate:g} Hz   " if sheet.rate < COARSE else ""
    scale = f"{rate}{MM_PER_S:g} mm/s   {MM_PER_MV:g} mm/mV"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    place = {"fontsize": 8, "va": "center", "zorder": 5, "bbox": box}
    axes.text(sheet.width - _MARGIN, sheet.height - _MARGIN, scale, ha="right", **place)
    room = int((sheet.width - 2 * _MARGIN - 57) / 1.7)  # characters of about 1.7 mm
    shown = title if len(title) <= room else title[: max(room - 1, 0)] + "…"
    axes.text(_MARGIN, sheet.height - _MARGIN, title_text(shown), ha="left", **place)


def draw_ecg(signal: np.ndarray, rate: float, *, layout: str = "3x4", title: str = "") -> Figure:
    """Signal [12, T] in mV at `rate` Hz, leads in the order of `LEADS`, on pink paper; see `lay_out`."""
    return draw_on(lay_out(signal, rate, layout), signal, title=title)


def draw_on(sheet: Sheet, signal: np.ndarray, *, original: np.ndarray | None = None, title: str = "") -> Figure:
    """Draws signal [12, T] in mV on pink paper, on the sheet laid out for it, over its original in grey."""
    figure, axes = new_sheet(sheet)
    draw_traces(axes, sheet, signal, original=original)
    draw_head(axes, sheet, title)
    return figure
