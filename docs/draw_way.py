"""Draws the way of the data, from a recording to the attention on it: the picture of the README.

python main.py --config=experiments/demo.py:small --workdir=runs/small --stage=prepare,train
python -m docs.draw_way --run=runs/small --root=PTBXL --out=docs/way.png
"""

import argparse
import colorsys
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ecgbyte_jax.ecg.records import LEADS, read_record
from ecgbyte_jax.evaluate.answers import read_answers
from ecgbyte_jax.explain.explain import look
from ecgbyte_jax.inputs.prompt import Dialogue, render_prompt
from ecgbyte_jax.inputs.recording import read_recording
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings, stored_config
from ecgbyte_jax.train.restore import open_trained

_RECORD, _SEGMENT, _LEAD = "records500/00000/00005_hr", 3, LEADS.index("II")
_QUESTION = "Does this ECG show low QRS voltages in the frontal and horizontal leads?"
_INK, _GREY, _GRID, _BOLD = "#222222", "#767676", "#f6d5d5", "#e59b9b"
_SHOWN = 72  # tokens of the sequence
_GOLDEN = 0.618033988749895


def draw(run: Path, root: Path) -> Figure:
    """Four rows: the trace on paper, its tokens, the sequence that the model reads with its answer, and the attention."""
    workdir = Workdir(run)
    settings = Settings.of(stored_config(workdir.config))
    trained = open_trained(settings, workdir, "last")
    recording = read_recording(str(root / _RECORD), settings.signal, settings.signal.segment_length)
    signal, rate = recording.segments[_SEGMENT], recording.clean_rate
    ids, offsets = trained.ecg_tokenizer.encode(signal, return_offsets=True)

    (text,) = trained.form.prompts([Dialogue(1, ((_QUESTION, ""),))])
    prompt = render_prompt(trained.ids, text, [ids], trained.max_length)
    with jax.set_mesh(trained.mesh):
        rows = jnp.asarray(prompt)[None]
        how = {"stop_ids": trained.form.stops, "pad_id": trained.ids.pad, "return_log_probs": True}
        tokens, log_probs = generate(trained.model, rows, jnp.ones_like(rows), settings.eval.max_new_tokens, **how)
    (answer,) = read_answers(np.asarray(tokens), np.asarray(log_probs), trained.form.stops, trained.text_tokenizer)
    view = look(trained, [ids], ((_QUESTION, ""),), np.array(answer.tokens, np.int32), settings.attend)

    figure = Figure(figsize=(10, 6.6), facecolor="white")
    paper, coloured, sequence, attention = figure.subplots(4, 1, height_ratios=[3, 3, 1.8, 3])
    figure.subplots_adjust(left=0.03, right=0.97, top=0.95, bottom=0.03, hspace=0.42)
    seconds, lead = np.arange(signal.shape[1]) / rate, signal[_LEAD]
    low, high = lead.min() - 0.15, lead.max() + 0.2

    for axes, title in (
        (paper, f"1  an ECG on paper: twelve leads, here lead {LEADS[_LEAD]}, 2 s"),
        (coloured, f"2  its tokens: {len(ids)} for {signal.size} samples, each of another colour"),
        (attention, "4  where the model looked for its answer: the attention, back on the trace"),
    ):
        axes.set_title(title, loc="left", fontsize=11, color=_INK)
        axes.set(xlim=(0, seconds[-1]), ylim=(low, high), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    original = read_record(root / _RECORD)
    start, stop = (round(place * signal.shape[1] / rate * original.sample_rate) for place in (_SEGMENT, _SEGMENT + 1))
    samples = original.signal[_LEAD, start:stop]
    paper.set_ylim(samples.min() - 0.15, samples.max() + 0.2)
    _rule(paper, seconds[-1], *paper.get_ylim())
    paper.plot(np.arange(len(samples)) / original.sample_rate, samples, color=_INK, linewidth=1.1, zorder=3)

    ends = np.append(offsets, signal.size) - _LEAD * signal.shape[1]
    for token, (start, end) in enumerate(pairwise(ends)):
        part = slice(max(start, 0), min(end + 1, signal.shape[1]))
        if start < signal.shape[1] and end > 0:
            coloured.plot(seconds[part], lead[part], color=_colour(int(ids[token])), linewidth=2.4, solid_capstyle="butt")

    _write(sequence, ids, answer.text)
    weights = view.ecgs[0].samples["attention"][_LEAD]
    colours = {"cmap": "YlOrRd", "aspect": "auto", "alpha": 0.85, "interpolation": "nearest"}
    top = np.percentile(view.ecgs[0].samples["attention"], 99)
    attention.imshow(weights[None], extent=(0, seconds[-1], low, high), vmin=0, vmax=top, **colours)
    attention.plot(seconds, lead, color=_INK, linewidth=1.1)
    return figure


def _rule(axes: Axes, width: float, low: float, high: float) -> None:
    """ECG paper: a line every 0.04 s and 0.1 mV, every fifth bold."""
    for number in range(int(width / 0.04) + 1):
        axes.axvline(number * 0.04, color=_BOLD if number % 5 == 0 else _GRID, linewidth=0.6, zorder=1)
    for number in range(int(low / 0.1) - 1, int(high / 0.1) + 2):
        axes.axhline(number * 0.1, color=_BOLD if number % 5 == 0 else _GRID, linewidth=0.6, zorder=1)


def _write(axes: Axes, ids: np.ndarray, answer: str) -> None:
    """The sequence: markers, the first ECG tokens as squares, the question, and the answer in bold."""
    axes.set_title("3  the sequence that a language model reads, and goes on with", loc="left", fontsize=11, color=_INK)
    axes.set(xlim=(0, 100), ylim=(0, 10))
    axes.set_axis_off()
    place = {"va": "center", "fontsize": 10, "family": "monospace"}
    axes.text(0, 7.5, "<sig_start>", color=_GREY, **place)
    for number, id in enumerate(ids[:_SHOWN]):
        axes.add_patch(Rectangle((12.3 + number * 0.95, 5.5), 0.85, 4, color=_colour(int(id)), linewidth=0))
    axes.text(13 + _SHOWN * 0.95, 7.5, "… <sig_end>", color=_GREY, **place)
    axes.text(0, 1.5, _QUESTION, color=_INK, **place)
    axes.text(100, 1.5, answer or "(empty)", color="#b34700", weight="bold", ha="right", **place)


def _colour(id: int) -> tuple[float, float, float]:
    return colorsys.hls_to_rgb(id * _GOLDEN % 1.0, 0.42, 0.85)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("--run", "--root", "--out"):
        parser.add_argument(flag, type=Path, required=True)
    given = parser.parse_args()
    draw(given.run, given.root).savefig(given.out, dpi=110)
