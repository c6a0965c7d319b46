"""The run's ECG tokenizer, and stage `tokenizer`: makes it alone, and reports on its quality.

Axes: S segments of a recording, L leads (12), T samples of a segment.
"""

import json
import time

from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.prepare import sampling
from ecgbyte_jax.prepare.cleaning import TaskMaker
from ecgbyte_jax.prepare.corpus import Corpus, open_corpus
from ecgbyte_jax.prepare.percentiles import fit_quantizer
from ecgbyte_jax.prepare.quantize import Signals, quantize
from ecgbyte_jax.prepare.tokenizer_quality import compression_by_merges, draw_segments, restoration_errors, write_merges
from ecgbyte_jax.prepare.train_tokenizer import merges_made, train_tokenizer
from ecgbyte_jax.prepare.workers import Run, open_workers
from ecgbyte_jax.run.console import banner, console, number_table, peak_memory
from ecgbyte_jax.run.cost import counted
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage


def make_tokenizer(settings: Settings, workdir: Workdir, corpus: Corpus, run: Run) -> tuple[ECGTokenizer, Signals]:
    """The ECG tokenizer of the corpus as it was read, and the symbols of its quantizer.

    It is the file `tokenizer.file`, or what an earlier run with the same settings and inputs left, or it is trained now. A
    marker of its own says which settings made the file here, whichever stage asked for it.
    """
    stage = lineage.tokenizer(settings, workdir, corpus.digest())
    finished = stage.finished()
    file = workdir.ecg_tokenizer if finished else settings.tokenizer.file
    tokenizer = ECGTokenizer.load(file) if file else None
    maker = TaskMaker.of(settings, corpus.folders, workdir)
    quantizer = tokenizer.quantizer if tokenizer else fit_quantizer(maker, corpus, settings.tokenizer, run)
    candidates = [] if tokenizer else sampling.candidates(settings.tokenizer, corpus, settings.data_seed)
    signals = quantize(maker, corpus, quantizer, run, candidates)
    if not finished:
        stage.begin()
        if tokenizer is None:
            with counted(workdir, "tokenizer", stage):
                records = sampling.choose(settings.tokenizer, maker, corpus, candidates, run)
                tokenizer = train_tokenizer(settings.tokenizer, settings.signal.segment_length, signals, records)
        tokenizer.save(workdir.ecg_tokenizer)
        stage.finish([workdir.ecg_tokenizer])
    return tokenizer, signals


def tokenizer(settings: Settings, workdir: Workdir) -> None:
    """Runs the stage where it is not done, and prints its report either way.

    Writes tokenizer/ecg_tokenizer.json, tokenizer/report.json and, with `tokenizer.merges_csv`, tokenizer/merges.csv.
    """
    corpus = open_corpus(settings, workdir, lineage.synthetic(settings, workdir))
    stage = lineage.tokenizer_report(settings, workdir, corpus.digest())
    if stage.finished():
        console.print("tokenizer: settings and inputs have not changed, nothing to do")
    else:
        stage.begin()
        _run(settings, workdir, corpus)
        tables = [workdir.merges] if settings.tokenizer.merges_csv else []
        lineage.keep_settings(settings, workdir, stage.name)
        stage.finish([workdir.ecg_tokenizer, workdir.tokenizer_report, *tables])
    _show(json.loads(workdir.tokenizer_report.read_text(encoding="utf-8")), workdir)


def _run(settings: Settings, workdir: Workdir, corpus: Corpus) -> None:
    corpus.set_aside([])  # writes and checks what was set aside in reading
    start = time.perf_counter()
    with open_workers(settings.prepare) as run:
        trained, signals = make_tokenizer(settings, workdir, corpus, run)
    seconds = time.perf_counter() - start
    train = set(corpus.records("train"))
    report = {
        "samples clipped": signals.clipped_samples(),
        "merges": merges_made(trained),
        "symbols a token": compression_by_merges(trained.bpe, draw_segments(signals, train, settings.data_seed)),
        "error in mV": restoration_errors(signals, train),
    }
    write_whole(workdir.tokenizer_report, [json.dumps(report, indent=1).encode()])
    if settings.tokenizer.merges_csv:
        write_merges(trained, workdir.merges)
    # In the terminal alone: the same command twice gives the same files.
    banner("took", {"signals and BPE": f"{seconds:.1f} s", "peak memory": f"{peak_memory() / 1e9:.2f} GB"})


def _show(report: dict, workdir: Workdir) -> None:
    banner("tokenizer", {name: report[name] for name in ("merges", "samples clipped")} | {"file": workdir.ecg_tokenizer})
    number_table("symbols a token", "merges", report["symbols a token"], ".2f")
    errors = report["error in mV"]
    rows = {
        lead: {f"{side}, {kind}": errors[side][lead][kind] for side in errors for kind in ("mean", "worst")} for lead in LEADS
    }
    number_table("error of the restored signal in mV", "lead", rows, ".3f")
