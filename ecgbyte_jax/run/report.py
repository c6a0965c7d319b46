"""Stage `report`: report.html from what the other stages left, with the attention of its examples.

Only the evaluation must be there; what else is missing is told in the page. Axes: V ECG vocabulary, T samples of a segment.
"""

import hashlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from ecgbyte_jax.corpora.example import Example
from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ConfigError, EcgByteError, ReportError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.inputs.shards import read_ecg, read_manifest
from ecgbyte_jax.report import folder, page, words
from ecgbyte_jax.report.attention import draw_attention
from ecgbyte_jax.report.curves import draw_training
from ecgbyte_jax.report.folder import Chosen
from ecgbyte_jax.report.paper import draw_ecg
from ecgbyte_jax.report.tokens import draw_compression, draw_tokens, draw_usage
from ecgbyte_jax.run import stages
from ecgbyte_jax.run.attend import (
    METHODS,
    EcgView,
    View,
    answered_by,
    check_evaluated,
    find_sequences,
    open_trained,
    rate_of,
    views,
)
from ecgbyte_jax.run.checkpoint import Checkpoints
from ecgbyte_jax.run.corpus import Paths, read_corpus
from ecgbyte_jax.run.logbook import console
from ecgbyte_jax.run.quantize import Cleaning

_VERSION = 2  # of this stage's outputs
_INPUTS = (
    "eval/results.json", "eval/generations.jsonl", "eval/answers.json", "metrics.jsonl", "checkpoints/stage.json",
    "shards/manifest.json", "tokenizer/ecg_tokenizer.json", "prepare/quarantine.jsonl",
)  # fmt: skip
_NOT_TRAINED_WITH = ("eval", "export", "attend")  # parts of a checkpoint's settings
_SEGMENTS = 2_000  # drawn, that token use is counted on
_RECODED = 100  # of them, that compression is measured on
_LEVELS = (0, 100, 500, 1000, 2000, 3500, 5000, 10_000)  # merges
_STRONGEST = 0.6  # opacity of a word's colour; black text stays readable on it


def report(config: ConfigDict, workdir: Path) -> None:
    """Writes report.html where it is not there for these very files; raises ReportError where there is no evaluation."""
    if jax.process_index():
        return
    results, rows = folder.read_evaluation(workdir)
    settings = {"version": _VERSION, "seed": config.seed, "attend": config.attend.to_dict(), "processes": jax.process_count()}
    stage = stages.Stage("report", workdir / "report_stage.json", settings, _digest(workdir))
    target = workdir / "report.html"
    if stage.finished():
        console.print("report: settings and inputs have not changed, nothing to do")
    else:
        stage.begin()
        write_whole(target, [page.render(_make_page(config, workdir, results, rows))])
        stage.finish([target])
    console.print(f"report                   {target}", markup=False)


def _digest(workdir: Path) -> str:
    files = [workdir / name for name in _INPUTS]
    return stages.digest([hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None for file in files])


def _make_page(config: ConfigDict, workdir: Path, results: dict, rows: list[dict]) -> page.Page:
    found = page.Page(
        title=f"ECG-Byte run {workdir.resolve().name}",
        evaluated=words.evaluated(results),
        scores=words.score_tables(results),
        score_notes=words.score_notes(results),
    )
    _add_settings(found, workdir, results)
    _add_examples(found, config, workdir, results, folder.choose_examples(rows, config.seed))
    _add_curves(found, workdir)
    _add_data(found, workdir)
    _add_tokenizer(found, config, workdir)
    return found


def _add_settings(found: page.Page, workdir: Path, results: dict) -> None:
    """Those that the evaluated checkpoint was trained with, as it tells itself, and those of the evaluation."""
    try:
        trained = _trained_with(workdir, results)
        found.settings += words.settings_tables({k: v for k, v in trained.items() if k not in _NOT_TRAINED_WITH})
    except EcgByteError as error:
        found.settings_notes.append(f"Without the settings of the training: {error}")
    evaluated = folder.read_json(workdir / "eval" / "answers.json") or {}
    found.settings += words.settings_tables({"eval": evaluated.get("settings", {}).get("eval", {})})


def _trained_with(workdir: Path, results: dict) -> dict:
    check_evaluated(workdir, results)
    if results["checkpoint_step"] is None:
        raise ReportError(f"the answers are those of the folder '{results['checkpoint']}'")
    with closing(Checkpoints(workdir / "checkpoints", keep=None)) as checkpoints:
        return checkpoints.about(results["checkpoint_step"])["config"]


def _add_examples(found: page.Page, config: ConfigDict, workdir: Path, results: dict, chosen: list[Chosen]) -> None:
    """With attention where the model can be restored, without it where the shards alone are there, else without pictures."""
    rows = [one.row for one in chosen]
    try:
        seen = list(_look(config, workdir, results, rows))
        found.examples_note = (
            "Behind each trace stands the mean attention, over layers and heads, with which the answer's tokens were chosen."
        )
    except EcgByteError as error:
        found.examples_note = f"Without attention: {error}"
        try:
            seen = list(_plain_views(config, workdir, str(results.get("split")), rows))
        except EcgByteError as another:
            found.examples_note = f"Without pictures: {another}"
            seen = [None] * len(rows)
    found.examples = [_example(one, view, rate_of(config)) for one, view in zip(chosen, seen, strict=True)]


def _look(config: ConfigDict, workdir: Path, results: dict, rows: list[dict]) -> Iterable[View]:
    if jax.process_count() > 1:
        raise ConfigError("several processes share the model; --stage=report on one process adds the attention")
    check_evaluated(workdir, results)
    trained = open_trained(config, workdir, answered_by(results))
    for _, view in views(trained, config, workdir, str(results.get("split")), rows):
        yield view


def _plain_views(config: ConfigDict, workdir: Path, split: str, rows: list[dict]) -> Iterable[View]:
    """The ECGs alone."""
    tokenizer = ECGTokenizer.load(Paths.of(config, workdir).ecg_tokenizer)
    sequences = find_sequences(config, workdir, split, rows)
    for row in rows:
        signals = [tokenizer.decode(ids).astype(np.float32) for ids in sequences[row["id"], row["segment"]].ecgs]
        ecgs = tuple(EcgView(signal, np.ones(signal.shape, bool), np.empty(0, np.int32), {}, {}) for signal in signals)
        yield View(ecgs, (), {}, {}, 0.0)


def _example(chosen: Chosen, view: View | None, rate: float) -> page.Example:
    row = chosen.row
    right = row["answer"].strip() == row["reference"].strip()
    sure = f", probability {np.exp(row['log_prob']):.2f}" if isinstance(row.get("log_prob"), int | float) else ""
    others = (("To another's ECG", "answer_to_other_ecg"), ("Commonest answer", "commonest_answer"))
    return page.Example(
        id=f"{row['id']}, segment {row['segment'] + 1}",
        type=chosen.question_type or "all questions",
        why=chosen.why,
        question=row["question"],
        reference=row["reference"],
        answer=row["answer"],
        verdict=f"({'right' if right else 'wrong'}: {chosen.score:.0%} of the words{sure})",
        right=right,
        words=_coloured(view) if view else (),
        others=tuple((name, row[key]) for name, key in others if isinstance(row.get(key), str)),
        pictures=tuple(_pictures(view, rate)) if view else (),
        shares=_shares(view) if view and view.words else (),
    )


def _coloured(view: View) -> tuple[tuple[str, float], ...]:
    if not view.words:
        return ()
    weights = view.word_weights["attention"]
    return tuple((word, round(_STRONGEST * float(w / (weights.max() or 1)), 3)) for word, w in zip(view.words, weights))


def _pictures(view: View, rate: float) -> Iterable[page.Picture]:
    for number, ecg in enumerate(view.ecgs, start=1):
        which = f"ECG {number} of {len(view.ecgs)}" if len(view.ecgs) > 1 else "The ECG"
        seconds = ecg.signal.shape[1] / rate
        low, high = ecg.signal.min(), ecg.signal.max()
        alt = f"{which}: 12 leads, {seconds:g} s on paper of 25 mm/s and 10 mm/mV, from {low:.1f} to {high:.1f} mV."
        caption = f"{which} as its tokens restore it, {seconds:g} s at {rate:g} Hz."
        yield page.picture(draw_ecg(ecg.signal, rate), f"{which} on paper", alt, caption)
        if ecg.samples:
            weights = ecg.samples["attention"]
            share = weights.sum(axis=1) / (weights.sum() or 1)
            most = ", ".join(f"{LEADS[i]} {share[i]:.0%}" for i in np.argsort(-share, kind="stable")[:3])
            cut = "" if ecg.seen.all() else f" The prompt cut off the hatched {1 - ecg.seen.mean():.0%}."
            figure = draw_attention(ecg.signal, weights, rate, seen=ecg.seen, label="attention of the answer, a sample")
            alt = f"{which} with the attention of the answer as colour behind it; most of it on the leads {most}.{cut}"
            caption = f"Attention over the trace; beside each lead its share of what went to this ECG. Most: {most}.{cut}"
            yield page.picture(figure, f"Attention over {which[0].lower() + which[1:]}", alt, caption)


def _shares(view: View) -> tuple[page.Table, ...]:
    """How each method shares the answer out: ECGs, question and the rest, and the question's words."""
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
        page.Table("Share of the whole; the rest lies on the markers around them", ("part", *names), tuple(rows)),
        page.Table("The question's words", ("word", *names), tuple(by_word)),
    )


def _percent(weights: np.ndarray, total: float) -> str:
    return f"{np.abs(weights).sum() / total:.1%}"


def _add_curves(found: page.Page, workdir: Path) -> None:
    lines = [line for line in folder.read_lines(workdir / "metrics.jsonl") if isinstance(line.get("step"), int)]
    losses = [line["loss"] for line in lines if isinstance(line.get("loss"), int | float)]
    if not losses:
        found.curve_notes.append("No metrics.jsonl lies in the run's folder: there are no curves to show.")
        return
    valid = [line["valid_loss"] for line in lines if isinstance(line.get("valid_loss"), int | float)]
    end = f"Training loss from {losses[0]:.3g} to {losses[-1]:.3g} nats a token in {lines[-1]['step']} steps" + (
        f"; validation loss {valid[-1]:.3g} at the end" if valid else "; no validation"
    )
    found.curves.append(page.picture(draw_training(lines), "Training curves", f"Curves. {end}.", f"{end}."))


def _add_data(found: page.Page, workdir: Path) -> None:
    manifest = folder.read_json(workdir / "shards" / "manifest.json")
    if manifest:
        found.data.append(words.split_table(manifest))
    else:
        found.data_notes.append("No shards lie in the run's folder.")
    quarantine = workdir / "prepare" / "quarantine.jsonl"
    if quarantine.is_file():
        reasons = folder.set_aside(quarantine)
        found.data += [words.aside_table(reasons)] if reasons else []
        found.data_notes += [] if reasons else ["Nothing was set aside: every example of the corpus could be used."]
    else:
        found.data_notes.append("What was set aside is not known: prepare/quarantine.jsonl is missing.")


def _add_tokenizer(found: page.Page, config: ConfigDict, workdir: Path) -> None:
    paths = Paths.of(config, workdir)
    try:
        tokenizer = ECGTokenizer.load(paths.ecg_tokenizer)
    except EcgByteError as error:
        found.tokenizer_notes.append(str(error))
        return
    found.tokenizer.append(_tokenizer_table(tokenizer))
    try:
        drawn = _draw_segments(paths, config.seed)
        _add_token_statistics(found, tokenizer, drawn)
    except EcgByteError as error:
        found.tokenizer_notes.append(f"Without statistics of tokens: {error}")
    try:
        name, signal, rate = _first_segment(config, paths)
        figure = draw_tokens(signal, rate, tokenizer, title=name)
        alt = f"The twelve leads of {name} in grey, and over them what the tokens restore, a colour a token."
        caption = f"Tokens over a trace: {name}, its first segment. Ticks mark where a token begins; tokens may cross leads."
        found.tokenizer_pictures.append(page.picture(figure, "Tokens over a trace", alt, caption))
    except EcgByteError as error:
        found.tokenizer_notes.append(f"Without tokens over a trace: {error}")


def _tokenizer_table(tokenizer: ECGTokenizer) -> page.Table:
    low, high = tokenizer.quantizer.low, tokenizer.quantizer.high
    rows = [
        ("merges", f"{tokenizer.bpe.vocab_size - ALPHABET_SIZE:,}"),
        ("range of the 26 letters", f"{low:.2f} to {high:.2f} mV"),
    ]
    if tokenizer.training:
        share = tokenizer.training.clipped / max(tokenizer.training.symbols, 1)
        rows.append(("trained on", f"{tokenizer.training.segments:,} segments, {tokenizer.training.symbols:,} samples"))
        rows.append(("samples outside the range", f"{share:.2%}"))
    return page.Table("The tokenizer", ("property", "value"), tuple(rows))


def _draw_segments(paths: Paths, seed: int) -> list[np.ndarray]:
    """The compact ids of segments of all splits, drawn at random."""
    manifest = read_manifest(paths.shards)
    source = grain.sources.ArrayRecordDataSource([str(paths.shards / file) for file in manifest.ecg])
    if not len(source):
        raise ReportError(f"{paths.shards}: no ECG stands there")
    drawn = np.sort(np.random.default_rng(seed).choice(len(source), min(_SEGMENTS, len(source)), replace=False))
    return [read_ecg(source[int(i)]) for i in drawn]


def _add_token_statistics(found: page.Page, tokenizer: ECGTokenizer, drawn: list[np.ndarray]) -> None:
    bpe = tokenizer.bpe
    lengths = np.array([len(token) for token in bpe.tokens])
    counts = np.bincount(np.concatenate(drawn), minlength=bpe.vocab_size)
    mean = float((counts * lengths).sum() / counts.sum())
    told = f"{int((counts > 0).sum())} of {bpe.vocab_size} tokens occur in {len(drawn)} segments"
    caption = f"How often and how long tokens are: {told}; one stands for {mean:.1f} samples on average."
    found.tokenizer_pictures.append(page.picture(draw_usage(counts, lengths), "Use and length of tokens", caption, caption))
    if bpe.merges is None:
        found.tokenizer_notes.append(
            "A published tokenizer does not tell its merges: compression by their number is not known."
        )
        return
    made = bpe.vocab_size - ALPHABET_SIZE
    symbols = np.stack([bpe.decode(ids) for ids in drawn[:: max(1, len(drawn) // _RECODED)]])
    levels = [*(level for level in _LEVELS if level < made), made]
    rates = {}
    for level in levels:
        shorter = BPE.of_merges(bpe.merges[:level], bpe.counts[:level])
        rates[level] = symbols.size / sum(map(len, shorter.encode_batch(symbols)))
    caption = (
        f"Compression by the number of merges, on {len(symbols)} segments: {rates[made]:.1f} samples a token with all {made}."
    )
    found.tokenizer_pictures.append(page.picture(draw_compression(rates), "Compression by merges", caption, caption))


def _first_segment(config: ConfigDict, paths: Paths) -> tuple[str, np.ndarray, float]:
    """(name, clean mV [12, T], rate in Hz) of the corpus' first usable example; raises CorpusError where it is gone."""
    example = next((found for found in read_corpus(config, paths) if isinstance(found, Example)), None)
    if example is None:
        raise ReportError(f"{paths.root}: no usable example found")
    cleaning = Cleaning.of(config)
    signal, rate = cleaning.whole(str(example.records[0]))
    return example.records[0].name, signal[:, : cleaning.segment_length], rate
