"""Pictures of the ECG tokenizer: tokens over a trace, their frequencies and lengths, compression by number of merges.

Axes of arrays: T samples of a segment, V ECG vocabulary.
"""

import colorsys

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.report.save import EVERY_SAMPLE, MM, title_text

_GOLDEN = 0.618033988749895  # of the colour circle: neighbouring ids get distant hues
_BLUE, _ORANGE = "#0072b2", "#b34700"


@matplotlib.rc_context(EVERY_SAMPLE)
def draw_tokens(signal: np.ndarray, rate: float, tokenizer: ECGTokenizer, *, title: str = "") -> Figure:
    """Signal [12, T] in mV at `rate` Hz in grey, and over it what its tokens restore, with a tick where each begins.

    A token has the same colour everywhere.
    """
    ids, offsets = tokenizer.encode(signal, return_offsets=True)
    restored = tokenizer.decode(ids)
    samples = signal.shape[1]
    token_of = np.repeat(np.arange(len(ids)), np.diff(np.append(offsets, signal.size))).reshape(signal.shape)
    starts = np.isin(np.arange(signal.size), offsets).reshape(signal.shape)
    figure = Figure(figsize=(280 * MM, 210 * MM), layout="constrained", facecolor="white")
    grid = figure.subplots(4, 3, sharex=True)
    seconds = np.arange(samples) / rate
    for lead, axes in enumerate(grid.T.ravel()):
        axes.plot(seconds, signal[lead], color="#999999", linewidth=2.2, zorder=1)
        points = np.stack([seconds, restored[lead]], axis=-1)
        colours = [_colour(int(ids[token])) for token in token_of[lead]]
        axes.add_collection(
            LineCollection(np.stack([points[:-1], points[1:]], axis=1), colors=colours[1:], linewidths=1.2, zorder=3)
        )
        low, high = axes.get_ylim()
        axes.vlines(seconds[starts[lead]], low, low + 0.1 * (high - low), color="#444444", linewidth=0.5, zorder=2)
        axes.set_ylim(low, high)
        axes.set_title(f"{LEADS[lead]}: {len(np.unique(token_of[lead]))} tokens", fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
        axes.set_xlim(0, samples / rate)
    figure.supxlabel("s", fontsize=8)
    figure.supylabel("mV", fontsize=8)
    handles = [
        Line2D([], [], color="#999999", linewidth=2.2, label="original"),
        Line2D([], [], color=_colour(3), linewidth=1.2, label="restored, a colour a token"),
        Line2D([], [], color="#444444", marker="|", linestyle="none", label="a token begins"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    name = f"{title}   " if title else ""
    figure.suptitle(title_text(f"{name}{len(ids)} tokens for {signal.size} samples"), fontsize=9, x=0.01, ha="left")
    return figure


def _colour(id: int) -> tuple[float, float, float]:
    return colorsys.hls_to_rgb(id * _GOLDEN % 1.0, 0.42, 0.85)


def draw_usage(counts: np.ndarray, lengths: np.ndarray) -> Figure:
    """The frequency of each token, by rank, and the lengths of tokens in samples; counts and lengths int [V]."""
    figure = _chart(2)
    left, right = figure.axes
    used = np.sort(counts[counts > 0])[::-1]
    left.loglog(np.arange(1, len(used) + 1), used / max(used.sum(), 1), color=_BLUE)
    left.set_title(f"use: {len(used)} of {len(counts)} tokens occur", fontsize=9, loc="left")
    left.set(xlabel="rank of the token", ylabel="share of all tokens")
    longest = int(lengths.max())
    edges = np.unique(np.geomspace(1, longest + 1, 30).astype(int))
    middle, width = edges[:-1], np.diff(edges)
    for weights, colour, name in ((np.ones_like(counts), _ORANGE, "of the vocabulary"), (counts, _BLUE, "as used")):
        share, _ = np.histogram(lengths, edges, weights=weights / max(weights.sum(), 1))
        right.step(np.append(middle, edges[-1]), np.append(share / width, 0), where="post", color=colour, label=name)
    right.set_title(f"length: up to {longest} samples", fontsize=9, loc="left")
    right.set(xscale="log", xlabel="samples a token", ylabel="share of tokens, per sample of length")
    right.legend(fontsize=8, frameon=False)
    return figure


def draw_compression(symbols_a_token: dict[int, float]) -> Figure:
    """The compression curve; symbols_a_token: number of merges -> samples a token."""
    figure = _chart(1)
    (axes,) = figure.axes
    merges = sorted(symbols_a_token)
    values = [symbols_a_token[number] for number in merges]
    axes.plot(merges, values, marker="o", color=_BLUE)
    for x, y in zip(merges, values):
        axes.annotate(f"{y:.1f}", (x, y), textcoords="offset points", xytext=(0, 6), fontsize=8, ha="center")
    axes.margins(0.1, 0.18)
    axes.set(xlabel="merges", ylabel="samples a token")
    return figure


def _chart(columns: int) -> Figure:
    """A plain chart of several axes side by side."""
    figure = Figure(figsize=((90 * columns + 30) * MM, 80 * MM), layout="constrained", facecolor="white")
    for axes in np.ravel(figure.subplots(1, columns)):
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.set_axisbelow(True)
        axes.xaxis.label.set_size(9)
        axes.yaxis.label.set_size(9)
    return figure
