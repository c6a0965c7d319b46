"""The run's ECG tokenizer, and stage `tokenizer`: makes it alone and tells how well it compresses and how exactly it restores.

Axes: S segments of a recording, L leads (12), T samples of a segment.
"""

import csv
import json
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.published import published_id
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE, spell
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run import quantize, sampling, stages
from ecgbyte_jax.run.corpus import Corpus, Paths, digest, open_corpus
from ecgbyte_jax.run.logbook import banner, console, number_table, peak_memory, progress
from ecgbyte_jax.run.workers import Run, open_workers

_VERSION = 1  # of this stage's outputs
_MERGES = (100, 500, 1000, 2000, 3500)
_SEGMENTS = 2000  # of each side, drawn at random, that compression is measured on
_SIDES = ("training", "unseen")


def make_tokenizer(config: ConfigDict, paths: Paths, corpus: Corpus, run: Run) -> tuple[ECGTokenizer, quantize.Signals]:
    """The ECG tokenizer of the corpus as it was read, and the symbols of its quantizer.

    It is the file `tokenizer.file`, or what an earlier run with the same settings and inputs left, or it is trained now. A
    marker of its own says which settings made the file here, whichever stage asked for it.
    """
    inputs = stages.digest([digest(corpus, paths.root), quantize.given_tokenizer(config)])
    marker = paths.ecg_tokenizer.with_name("stage.json")
    stage = stages.Stage("tokenizer", marker, quantize.settings(config), inputs)
    there = stage.finished()
    found = (
        ECGTokenizer.load(paths.ecg_tokenizer if there else config.tokenizer.file) if there or config.tokenizer.file else None
    )
    quantizer = found.quantizer if found else quantize.fit_quantizer(config, paths, corpus, run)
    signals = quantize.quantize(config, paths, corpus, quantizer, run)
    if not there:
        stage.begin()
        found = found or quantize.train_tokenizer(config, signals, sampling.choose(config, paths, corpus, run))
        found.save(paths.ecg_tokenizer)
        stage.finish([paths.ecg_tokenizer])
    return found, signals


def tokenizer(config: ConfigDict, workdir: Path) -> None:
    """Runs the stage where it is not done, and prints its report either way.

    Writes tokenizer/ecg_tokenizer.json, tokenizer/report.json and, with `tokenizer.merges_csv`, tokenizer/merges.csv.
    """
    paths = Paths.of(config, workdir)
    corpus = open_corpus(config, paths)
    inputs = stages.digest([digest(corpus, paths.root), quantize.given_tokenizer(config)])
    settings = quantize.settings(config) | {"report_version": _VERSION, "merges_csv": config.tokenizer.merges_csv}
    report = paths.ecg_tokenizer.with_name("report.json")
    stage = stages.Stage("tokenizer report", report.with_name("report_stage.json"), settings, inputs)
    if stage.finished():
        console.print("tokenizer: settings and inputs have not changed, nothing to do")
    else:
        stage.begin()
        _run(config, paths, corpus, report)
        csvs = [report.with_name("merges.csv")] if config.tokenizer.merges_csv else []
        stages.keep_settings(config, workdir, "tokenizer")
        stage.finish([paths.ecg_tokenizer, report, *csvs])
    _show(json.loads(report.read_text(encoding="utf-8")), paths)


def _run(config: ConfigDict, paths: Paths, corpus: Corpus, report: Path) -> None:
    corpus.set_aside([])  # writes and checks what was set aside in reading
    start = time.perf_counter()
    with open_workers(config) as run:
        trained, signals = make_tokenizer(config, paths, corpus, run)
    took = time.perf_counter() - start
    train = set(corpus.records("train"))
    found = {
        "samples clipped": signals.clipped_samples(),
        "merges": quantize.merges_made(trained),
        "symbols a token": _compression(trained.bpe, _draw(signals, train, config.seed)),
        "error in mV": _errors(signals, train),
    }
    write_whole(report, [json.dumps(found, indent=1).encode()])
    if config.tokenizer.merges_csv:
        _write_merges(trained, report.with_name("merges.csv"))
    # In the terminal alone: the same command twice gives the same files.
    banner("took", {"signals and BPE": f"{took:.1f} s", "peak memory": f"{peak_memory() / 1e9:.2f} GB"})


def _side(record: Path, train: set[Path]) -> str:
    return "training" if record in train else "unseen"


def _errors(signals: quantize.Signals, train: set[Path]) -> dict[str, dict[str, dict[str, float]]]:
    """{side: {lead: {"worst", "mean"}}}: the absolute error of restored signals in mV."""
    found = {}
    for side in _SIDES:
        rows = [row for record, row in signals.rows.items() if _side(record, train) == side]
        if rows:
            table = signals.cache.table[rows]
            samples = sum(place.segments * place.samples for place in map(signals.cache.place, rows))
            pairs = zip(table["worst"].max(axis=0).tolist(), (table["total"].sum(axis=0) / samples).tolist())
            found[side] = {lead: {"worst": worst, "mean": mean} for lead, (worst, mean) in zip(LEADS, pairs)}
    return found


def _draw(signals: quantize.Signals, train: set[Path], seed: int) -> dict[str, np.ndarray]:
    """Segments of each side, flattened, uint8 [S, 12 T]."""
    rng = np.random.default_rng(seed)
    sides = {}
    for side in _SIDES:
        found = [record for record in signals.rows if _side(record, train) == side]
        segments = [(record, number) for record in found for number in range(signals.place(record).segments)]
        if segments:
            drawn = np.sort(rng.choice(len(segments), min(_SEGMENTS, len(segments)), replace=False))
            sides[side] = np.stack([signals.symbols(segments[i][0])[segments[i][1]].ravel() for i in drawn])
    return sides


def _compression(bpe: BPE, sides: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """{number of merges: {side: symbols a token}}."""
    made = bpe.vocab_size - ALPHABET_SIZE
    levels = [made] if bpe.merges is None else [*(merges for merges in _MERGES if merges < made), made]
    found = {}
    with progress("compression", len(levels)) as report:
        for done, merges in enumerate(levels, start=1):
            shorter = bpe if merges == made else BPE.of_merges(bpe.merges[:merges], bpe.counts[:merges])
            found[str(merges)] = {
                side: symbols.size / sum(map(len, shorter.encode_batch(symbols))) for side, symbols in sides.items()
            }
            report(done)
    return found


def _write_merges(tokenizer: ECGTokenizer, path: Path) -> None:
    """One line a token, with this project's id and the published one; what a published tokenizer does not say is empty."""
    bpe = tokenizer.bpe
    rows = [("", "", "")] * (bpe.vocab_size - ALPHABET_SIZE)
    if bpe.merges is not None:
        rows = [(*pair, count) for pair, count in zip(bpe.merges.tolist(), bpe.counts.tolist())]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "published_id", "left", "right", "count", "length", "symbols"])
        for id, row in enumerate(rows, start=ALPHABET_SIZE):
            token = bpe.token(id)
            writer.writerow([id, published_id(np.array(id)), *row, len(token), spell(token)])


def _show(found: dict, paths: Paths) -> None:
    banner("tokenizer", {name: found[name] for name in ("merges", "samples clipped")} | {"file": paths.ecg_tokenizer})
    number_table("symbols a token", "merges", found["symbols a token"], ".2f")
    errors = found["error in mV"]
    rows = {
        lead: {f"{side}, {kind}": errors[side][lead][kind] for side in errors for kind in ("mean", "worst")} for lead in LEADS
    }
    number_table("error of the restored signal in mV", "lead", rows, ".3f")
