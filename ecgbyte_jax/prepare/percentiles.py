"""The percentiles that define the range of the 26 letters, from samples of clean training recordings."""

import json

import numpy as np

from ecgbyte_jax.ecg.symbols import Drawn, Quantizer
from ecgbyte_jax.errors import RecordError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.prepare.cleaning import KEPT_RECORDS, Task, TaskMaker, keep_clean
from ecgbyte_jax.prepare.corpus import Corpus
from ecgbyte_jax.prepare.quantize import quantize
from ecgbyte_jax.prepare.workers import Run
from ecgbyte_jax.run.console import progress
from ecgbyte_jax.run.stage import json_digest
from ecgbyte_jax.settings import TokenizerSettings

_DRAWN_AT_ONCE = 1 << 18  # samples


def fit_quantizer(maker: TaskMaker, corpus: Corpus, tokenizer: TokenizerSettings, run: Run) -> Quantizer:
    """Fits the quantizer to at most `percentile_records` training recordings, so that the test set stays unseen; cached.

    Raises CorpusError if all of them are unusable.
    """
    records = corpus.records("train")
    count = min(tokenizer.percentile_records, len(records))
    chances = corpus.chances(records) if tokenizer.by_weight else None
    drawn = np.sort(np.random.default_rng(maker.seed).choice(len(records), count, replace=False, p=chances))
    records = [records[i] for i in drawn]
    keys = corpus.keys(records)
    digest = json_digest([maker.cleaning.digest(), maker.seed, keys.tolist()])
    file = corpus.folders.cache / "percentiles" / f"{digest[:24]}.json"
    if file.is_file():
        return Quantizer(*json.loads(file.read_text()))
    samples = _draw_all(maker.tasks(records, keys), len(records), run)
    if not samples.samples.size:  # all of them are unusable; cleaning them raises the reason
        quantize(maker, corpus, Quantizer(-1.0, 1.0), run)
    quantizer = Quantizer.of_samples(samples)
    write_whole(file, [json.dumps([quantizer.percentile_1, quantizer.percentile_99]).encode()])
    return quantizer


def _draw_all(tasks: list[Task], records: int, run: Run) -> Drawn:
    """The samples of all tasks, added in task order, so that the number of workers does not matter."""
    parts: dict[int, Drawn] = {}
    with progress("percentiles of the signal", records) as report:
        for number, part in run(draw_samples, tasks):
            parts[number] = part
            report(sum(len(tasks[done].records) for done in parts))
    total = Drawn.none()
    for number in sorted(parts):
        total = total.add(parts[number].samples, parts[number].keys)
    return total


def draw_samples(task: Task) -> Drawn:
    """Draws random samples in mV of clean recordings; unusable ones are skipped, as quantising reports them."""
    drawn, waiting = Drawn.none(), []
    for number, (key, record) in enumerate(zip(task.keys, task.records), start=task.first):
        try:
            signal, rate = task.cleaning.whole(record)
            segments = task.cleaning.cut(signal)
        except RecordError:
            continue
        if number < KEPT_RECORDS:
            keep_clean(task.clean, key, signal, rate)
        waiting.append((segments.ravel(), np.random.default_rng([task.seed, number]).random(segments.size)))
        if sum(len(signal) for signal, _ in waiting) >= _DRAWN_AT_ONCE:
            drawn, waiting = drawn.add(*map(np.concatenate, zip(*waiting))), []
    return drawn.add(*map(np.concatenate, zip(*waiting))) if waiting else drawn
