"""A measured recording as a picture: its beats, and where the waves of its commonest beat begin and end.

Axes: L leads, N samples of the part, B beats.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ecgbyte_jax.ecg.measure.measure import Measures
from ecgbyte_jax.ecg.records import LEADS

_SHOWN = ("I", "II", "V2", "V5")
_SPANS = (("p_on", "qrs_on", "#7fb3e6"), ("qrs_on", "qrs_off", "#e68a7f"), ("qrs_off", "t_off", "#b9dba0"))


def draw_measured(axes: Axes, signal: np.ndarray, rate: float, measures: Measures, title: str, seconds: float) -> None:
    """Draws the first `seconds` of a part [12, N] in mV: leads below each other, PR blue, QRS red, ST to T's end green."""
    shown = signal[[LEADS.index(name) for name in _SHOWN], : round(seconds * rate)]
    time = np.arange(shown.shape[1]) / rate
    bottom = 0.0
    for name, trace in zip(_SHOWN, shown):
        trace = trace - np.median(trace)
        bottom -= max(trace.max(), 0.4)
        axes.plot(time, trace + bottom, color="black", linewidth=0.45)
        axes.text(-0.02, bottom, name, ha="right", va="center", fontsize=6)
        bottom += min(trace.min(), -0.2)
    for peak in measures.peaks:
        if peak < time[-1]:
            axes.axvline(peak, color="#444444", linewidth=0.4, linestyle=":")
            _draw_spans(axes, peak, measures.places, time[-1])
    axes.set_xlim(0, time[-1])
    axes.set_title(title, fontsize=6, loc="left", pad=2)
    axes.axis("off")


def _draw_spans(axes: Axes, peak: float, places: dict[str, float], end: float) -> None:
    for first, last, colour in _SPANS:
        if first in places and last in places:
            axes.axvspan(max(peak + places[first], 0), min(peak + places[last], end), color=colour, alpha=0.55, linewidth=0)


def caption(measures: Measures) -> str:
    """The numbers in one line."""
    numbers: Sequence[tuple[str, float | None]] = (
        ("rate", measures.rate),
        ("PR", measures.pr),
        ("QRS", measures.qrs),
        ("QT", measures.qt),
        ("axis", measures.axis),
    )
    return ", ".join(f"{name} {'-' if value is None else f'{value:.0f}'}" for name, value in numbers)
