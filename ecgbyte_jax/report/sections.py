"""The sections of the report: what each says and draws, from data or from files that the caller names.

Axes: T samples of a segment, V ECG vocabulary, n tokens of a segment.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE, Quantizer
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.explain.views import METHODS, EcgView, View
from ecgbyte_jax.report import words
from ecgbyte_jax.report.attention import draw_layer, lay_out_whole
from ecgbyte_jax.report.calibration import draw_calibration
from ecgbyte_jax.report.comparison import draw_comparison
from ecgbyte_jax.report.curves import draw_training
from ecgbyte_jax.report.folder import Chosen, read_json, read_lines, set_aside
from ecgbyte_jax.report.page import Example, Page, Picture, Table, picture
from ecgbyte_jax.report.paper import COARSE, draw_on, lay_out
from ecgbyte_jax.report.tokens import draw_compression, draw_tokens, draw_usage

_NOT_OF_TRAINING = ("eval", "export", "attend")  # parts of the settings that a checkpoint was saved with
_SHORT = 10  # words of a reference
_RECODED = 100  # segments that compression is measured on
_LEVELS = (0, 100, 500, 1000, 2000, 3500, 5000, 10_000)  # merges


def make_page(name: str, results: dict, data: dict, reads: str = "tokens") -> Page:
    """The page of the run `name` with its top and its scores; data: as in `words.title`, of the evaluation.

    reads: what the model reads of an ECG, by the name in the settings (`ecg_input.kind`).
    """
    sentences, note = words.verdict(results)
    page = Page(
        title=words.title(name, data),
        introduction=words.introduction(data, "tokens" if reads == "tokens" else "vectors of their signals"),
        scores=words.score_tables(results),
        facts=[("Data", words.data_fact(data)), ("Evaluated", words.evaluated(results))],
        verdict=sentences,
        verdict_note=note,
        evidence=words.evidence(results),
        score_notes=words.score_notes(results),
    )
    if reads != "tokens":
        page.tokenizer_notes.append("The model reads vectors of the signals (ecg_input.kind), and none of these tokens.")
    metric, scores, intervals, counted = words.compared(results)
    if scores:
        figure = draw_comparison(scores, intervals, f"{metric} in %")
        how = ", with 95% intervals" if intervals else ""
        values = "; ".join(f"{system} {100 * score:.1f}%" for system, score in scores.items())
        caption = f"The model and what it is compared with: {metric}{how}. {counted}."
        page.chart.append(picture(figure, "The model compared", f"{metric.capitalize()}: {values}.", caption))
    bins, caption = words.calibration(results)
    if bins:
        points = "; ".join(f"{row['right']:.0%} right at {row['probability']:.0%}" for row in bins)
        page.score_pictures.append(picture(draw_calibration(bins), "Calibration", f"{points}.", caption))
    return page


def add_origin(page: Page, trained: dict, parameters: int, saved: str, version: str, command: str) -> None:
    """The model, by the settings of its training ({} where unknown) and its parameters (0), when its checkpoint was saved ("").

    version: of ecgbyte-jax; command: that makes the page again.
    """
    page.facts.insert(1, ("Model", words.model_fact(trained, parameters)))
    if saved:
        page.facts.append(("Trained", f"the evaluated checkpoint was saved on {saved}"))
    page.facts.append(("Report", f"ecgbyte-jax {version}"))
    page.command = command


def add_settings(page: Page, trained: dict, evaluated: dict, unknown: str = "") -> None:
    """Those that the checkpoint was trained with, or {} and why they are unknown, and those of the evaluation."""
    if unknown:
        page.settings_notes.append(f"Without the settings of the training: {unknown}")
    page.settings += words.settings_tables({name: part for name, part in trained.items() if name not in _NOT_OF_TRAINING})
    page.settings += words.settings_tables({"eval": evaluated})


def make_example(
    chosen: Chosen,
    view: View | None,
    rate: float,
    quantizer: Quantizer | None = None,
    originals: Sequence[np.ndarray] | None = None,
) -> Example:
    """An example with what its view holds: its ECGs, and attention where there is any; a rate in Hz.

    quantizer: of the ECGs' tokenizer, whose ends the page names where an ECG reaches them; originals: of each ECG the clean
    signal [12, T] in mV that became its tokens, where it is known.
    """
    row = chosen.row
    name = f"{row['id']}, segment {row['segment'] + 1}"
    # In a short answer one wrong word may turn it into its opposite.
    partly = not chosen.right and len(row["reference"].split()) > _SHORT
    shared = f"{chosen.score:.0%} of the words are right" if partly else ""
    likely = f"probability {np.exp(row['log_prob']):.2f}" if isinstance(row.get("log_prob"), int | float) else ""
    others = (("To another's ECG", "answer_to_other_ecg"), ("Commonest answer", "commonest_answer"))
    return Example(
        id=name,
        type=chosen.question_type or "all questions",
        question=row["question"],
        reference=row["reference"],
        answer=row["answer"],
        verdict=", ".join(filter(None, (shared, likely))),
        right=chosen.right,
        others=tuple((name, row[key]) for name, key in others if isinstance(row.get(key), str)),
        pictures=tuple(_ecg_pictures(view, rate, quantizer, originals, name)) if view else (),
        shares=_shares(view) if view and view.words else (),
    )


def _ecg_pictures(
    view: View, rate: float, quantizer: Quantizer | None, originals: Sequence[np.ndarray] | None, name: str
) -> Iterable[Picture]:
    for number, ecg in enumerate(view.ecgs):
        which = f"ECG {number + 1} of {len(view.ecgs)}" if len(view.ecgs) > 1 else "The ECG"
        title = f"{name}, {which}" if len(view.ecgs) > 1 else name
        yield _ecg_picture(ecg, which, rate, quantizer, originals[number] if originals else None, title)


def trace_json(ecg: EcgView, rate: float, name: str, original: np.ndarray | None = None) -> str:
    """An ECG as trace.js draws it, with the attention on it and the `original` [12, T] in mV beneath, where there are any.

    signal and original: base64 of little-endian int16 [12, T] in uV; attention: (samples, weight relative to the largest)
    of each run of equal weights, flat; seen: the samples of each lead that the prompt kept.
    """
    content: dict[str, object] = {"name": name, "rate": rate, "leads": LEADS, "signal": _microvolts(ecg.signal)}
    if original is not None:
        content["original"] = _microvolts(original)
    if ecg.samples:
        weights = ecg.samples["attention"].ravel()
        starts = np.flatnonzero(np.diff(weights, prepend=np.nan))
        lengths = np.diff(starts, append=weights.size).tolist()
        relative = (weights[starts] / (weights.max() or 1)).round(5).tolist()
        content["attention"] = list(chain.from_iterable(zip(lengths, relative)))
    if not ecg.seen.all():
        content["seen"] = [int(row.argmin()) if not row.all() else row.size for row in ecg.seen]
    return json.dumps(content, separators=(",", ":"))


def _microvolts(signal: np.ndarray) -> str:
    return base64.b64encode((signal * 1000).round().clip(-32768, 32767).astype("<i2").tobytes()).decode()


def _ecg_picture(
    ecg: EcgView, which: str, rate: float, quantizer: Quantizer | None, original: np.ndarray | None, title: str
) -> Picture:
    seconds = ecg.signal.shape[1] / rate
    low, high = ecg.signal.min(), ecg.signal.max()
    alt = f"{which}: 12 leads, {seconds:g} s on paper of 25 mm/s and 10 mm/mV, from {low:.1f} to {high:.1f} mV."
    of = "as vectors were made of it" if ecg.about else "as its tokens restore it"
    caption = f"{which} {of}, {seconds:g} s at {rate:g} Hz{_blunt(rate)}. {ecg.about}".rstrip()
    cut = leads_cut(ecg.signal, quantizer, original) if quantizer else []
    if quantizer and cut:
        grey = "" if original is None else "; in grey, the cleaned original"
        caption += f" The tokenizer cuts at {quantizer.low:.2f} and {quantizer.high:.2f} mV, here in {', '.join(cut)}{grey}."
    original = original if cut else None
    sheet = lay_out_whole(ecg.signal, rate, original) if ecg.samples else lay_out(ecg.signal, rate, original=original)
    paper, trace = draw_on(sheet, ecg.signal, original=original), trace_json(ecg, rate, title, original)
    if not ecg.samples:
        return picture(paper, f"{which} on paper", alt, caption, trace=trace)
    weights = ecg.samples["attention"]
    share = weights.sum(axis=1) / (weights.sum() or 1)
    most = ", ".join(f"{LEADS[i]} {share[i]:.0%}" for i in np.argsort(-share, kind="stable")[:3])
    unseen = "" if ecg.seen.all() else f" The prompt cut off the hatched {1 - ecg.seen.mean():.0%}."
    caption += (
        f" Colour: the attention with which the answer was chosen; beside each lead its share, the most on {most}.{unseen}"
    )
    layer_alt = f"The attention of the answer as colour beneath the ECG, most of it on the leads {most}.{unseen}"
    return picture(paper, f"{which} on paper", alt, caption, draw_layer(sheet, weights, ecg.seen), layer_alt, trace)


def _blunt(rate: float) -> str:
    return "" if rate >= COARSE else ", a low rate that blunts its peaks"


def leads_cut(signal: np.ndarray, quantizer: Quantizer, original: np.ndarray | None = None) -> list[str]:
    """The leads of signal [12, T] with samples at an end of the quantizer's range, or with an original beyond it if known."""
    if original is None:
        symbols = quantizer.encode(signal)
        beyond = (symbols == 0) | (symbols == ALPHABET_SIZE - 1)
    else:
        beyond = (original < quantizer.low) | (original > quantizer.high)
    return [lead for lead, row in zip(LEADS, beyond) if row.any()]


def _shares(view: View) -> tuple[Table, ...]:
    """The shares of the answer by each method: of ECGs, question and the rest, and of the question's words."""
    names = [name.replace("_", " x ") for name in METHODS]
    totals = {name: float(np.abs(view.prompt[name]).sum()) or 1.0 for name in METHODS}
    rows = [
        (f"ECG {number}" if len(view.ecgs) > 1 else "ECG", *(_percent(ecg.tokens[name], totals[name]) for name in METHODS))
        for number, ecg in enumerate(view.ecgs, start=1)
    ]
    rows.append(("question", *(_percent(view.word_weights[name], totals[name]) for name in METHODS)))
    by_word = [
        (word, *(f"{view.word_weights[name][i] / totals[name]:+.1%}" for name in METHODS)) for i, word in enumerate(view.words)
    ]
    return (
        Table("Share of the whole; the rest is on the markers around them", ("part", *names), tuple(rows)),
        Table("The question's words", ("word", *names), tuple(by_word)),
    )


def _percent(weights: np.ndarray, total: float) -> str:
    return f"{np.abs(weights).sum() / total:.1%}"


def add_curves(page: Page, metrics: Path) -> None:
    """The training's curves, from its log."""
    lines = [line for line in read_lines(metrics) if isinstance(line.get("step"), int)]
    losses = [line["loss"] for line in lines if isinstance(line.get("loss"), int | float)]
    if not losses:
        page.curve_notes.append(f"No {metrics.name} in the run's folder: there are no curves to show.")
        return
    valid = [line["valid_loss"] for line in lines if isinstance(line.get("valid_loss"), int | float)]
    end = f"Training loss from {losses[0]:.3g} to {losses[-1]:.3g} nats a token in {lines[-1]['step']} steps" + (
        f"; validation loss {valid[-1]:.3g} at the end" if valid else "; no validation"
    )
    page.curves.append(picture(draw_training(lines), "Training curves", f"Curves. {end}.", f"{end}."))


def add_data(page: Page, manifest: Path, quarantine: Path) -> None:
    """What was prepared, from the shards' manifest, and what was set aside."""
    content = read_json(manifest)
    if content:
        page.data.append(words.split_table(content))
    else:
        page.data_notes.append("No shards in the run's folder.")
    if not quarantine.is_file():
        page.data_notes.append(f"What was set aside is unknown: {quarantine.parent.name}/{quarantine.name} is missing.")
    elif reasons := set_aside(quarantine):
        page.data.append(words.aside_table(reasons))
    else:
        page.data_notes.append("Nothing was set aside: every example of the corpus could be used.")


def add_tokenizer(page: Page, tokenizer: ECGTokenizer) -> None:
    """The table of the tokenizer's properties."""
    low, high = tokenizer.quantizer.low, tokenizer.quantizer.high
    rows = [
        ("merges", f"{tokenizer.bpe.vocab_size - ALPHABET_SIZE:,}"),
        ("range of the 26 letters", f"{low:.2f} to {high:.2f} mV"),
    ]
    if tokenizer.training:
        share = tokenizer.training.clipped / max(tokenizer.training.symbols, 1)
        rows.append(("trained on", f"{tokenizer.training.segments:,} segments, {tokenizer.training.symbols:,} samples"))
        rows.append(("samples outside the range", f"{share:.2%}"))
    page.tokenizer.append(Table("The tokenizer", ("property", "value"), tuple(rows)))


def add_token_statistics(page: Page, bpe: BPE, segments: list[np.ndarray]) -> None:
    """How tokens are used in segments (compact ids [n] each), and how well these are compressed by the number of merges."""
    lengths = np.array([len(token) for token in bpe.tokens])
    counts = np.bincount(np.concatenate(segments), minlength=bpe.vocab_size)
    mean = float((counts * lengths).sum() / counts.sum())
    occur = f"{int((counts > 0).sum())} of {bpe.vocab_size} tokens occur in {len(segments)} segments"
    caption = f"Frequencies and lengths of tokens: {occur}; a token has {mean:.1f} samples on average."
    page.tokenizer_pictures.append(picture(draw_usage(counts, lengths), "Use and length of tokens", caption, caption))
    if bpe.merges is None:
        page.tokenizer_notes.append(
            "A published tokenizer does not contain its merges: compression by their number is unknown."
        )
        return
    made = bpe.vocab_size - ALPHABET_SIZE
    symbols = np.stack([bpe.decode(ids) for ids in segments[:: max(1, len(segments) // _RECODED)]])
    rates = {}
    for level in [*(level for level in _LEVELS if level < made), made]:
        shorter = BPE.of_merges(bpe.merges[:level], bpe.counts[:level])
        rates[level] = symbols.size / sum(map(len, shorter.encode_batch(symbols)))
    caption = (
        f"Compression by the number of merges, on {len(symbols)} segments: {rates[made]:.1f} samples a token with all {made}."
    )
    page.tokenizer_pictures.append(picture(draw_compression(rates), "Compression by merges", caption, caption))


def add_token_trace(page: Page, tokenizer: ECGTokenizer, name: str, signal: np.ndarray, rate: float) -> None:
    """The tokens over the segment `signal` [12, T] in mV at `rate` Hz of a recording."""
    figure = draw_tokens(signal, rate, tokenizer, title=name)
    alt = f"The twelve leads of {name} in grey, and over them what the tokens restore, a colour a token."
    caption = f"Tokens over a trace: {name}, its first segment. Ticks mark where a token begins; tokens may cross leads."
    page.tokenizer_pictures.append(picture(figure, "Tokens over a trace", alt, caption))
