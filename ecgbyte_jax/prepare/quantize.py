"""From recordings to symbols in the cache.

Recordings are cleaned in tasks of a few hundred, run by `workers`, which write their symbols to the cache; recordings in the
cache are not cleaned again. Axes: S segments per recording, L leads (12), T samples per segment.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ecgbyte_jax.corpora.example import Rejected
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.ecg.features import features
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.errors import CorpusError, RecordError
from ecgbyte_jax.prepare.cleaning import Task, TaskMaker, read_clean
from ecgbyte_jax.prepare.corpus import Corpus
from ecgbyte_jax.prepare.feature_cache import write_features
from ecgbyte_jax.prepare.symbol_cache import Place, SymbolCache, write_part
from ecgbyte_jax.prepare.workers import Run
from ecgbyte_jax.run.console import progress
from ecgbyte_jax.run.stage import json_digest


@dataclass
class Signals:
    """The usable recordings of a corpus as symbols in the cache, by row of its table."""

    quantizer: Quantizer
    cache: SymbolCache
    rows: dict[SignalSource, int]

    def place(self, record: SignalSource) -> Place:
        """Returns where a recording's symbols are."""
        return self.cache.place(self.rows[record])

    def symbols(self, record: SignalSource) -> np.ndarray:
        """Reads the symbols uint8 [S, 12, T] of one recording."""
        return self.place(record).read()

    def count(self, records: list[SignalSource], field: str) -> int:
        """Sums a field of the cache's table over recordings."""
        return int(self.cache.table[field][[self.rows[record] for record in records]].sum())

    def clipped_samples(self) -> str:
        """Describes how many samples of all recordings are out of range."""
        places = [self.place(record) for record in self.rows]
        samples, clipped = sum(p.segments * 12 * p.samples for p in places), self.count(list(self.rows), "clipped")
        low, high = self.quantizer.low, self.quantizer.high
        return f"{clipped} of {samples} ({clipped / samples:.2%}), outside {low:.2f} to {high:.2f} mV"


def quantize(
    maker: TaskMaker, corpus: Corpus, quantizer: Quantizer, run: Run, measured: Iterable[SignalSource] = ()
) -> Signals:
    """Cleans and quantises every recording that is not in the cache; rejects the examples of unusable ones.

    Recordings in `measured` also have their features written when they are cleaned. Raises CorpusError if too many examples
    are unusable, or files are temporarily unreadable.
    """
    records = corpus.records()
    keys = corpus.keys(records)
    digest = json_digest([maker.cleaning.digest(), quantizer.percentile_1, quantizer.percentile_99])
    folder = corpus.folders.cache / "symbols" / digest[:24]
    missing = np.flatnonzero(SymbolCache(folder).find(keys) < 0)
    tasks = maker.tasks([records[i] for i in missing], keys[missing], quantizer, folder)
    to_measure = frozenset(corpus.keys(list(measured)).tolist())
    _clean_missing([replace(task, measured=to_measure.intersection(task.keys)) for task in tasks], len(missing), run)
    shutil.rmtree(maker.clean, ignore_errors=True)
    cache = SymbolCache(folder)
    rows = dict(zip(records, cache.find(keys).tolist()))
    bad = {
        record: cache.reasons[int(cache.table["key"][row])] for record, row in rows.items() if not cache.table["segments"][row]
    }
    unusable = ((e, next((record for record in e.records if record in bad), None)) for e in corpus.examples)
    corpus.set_aside([Rejected(e.id, str(record), bad[record]) for e, record in unusable if record])
    return Signals(quantizer, cache, {record: row for record, row in rows.items() if record not in bad})


def _clean_missing(tasks: list[Task], records: int, run: Run) -> None:
    if not tasks:
        return
    done = bad = 0
    unread: dict[int, list[str]] = {}
    with progress("clean and quantize", records) as report:
        for number, (unusable, unread[number]) in run(clean_part, tasks):
            done, bad = done + len(tasks[number].records), bad + unusable
            report(done, f"{bad} unusable" if bad else "")
    reasons = [reason for number in sorted(unread) for reason in unread[number]]
    if reasons:
        raise CorpusError(f"{len(reasons)} of {records} recordings cannot be read now; the first: {reasons[0]}")


def clean_part(task: Task) -> tuple[int, list[str]]:
    """Cleans and quantises a few hundred recordings and writes them as one part of the cache, after their features.

    Returns the number of unusable ones, and the errors of temporarily unreadable ones, which are not cached.
    """
    unusable, unread, measured = 0, [], {}

    def rows() -> Iterator[tuple[int, np.ndarray | RecordError, dict]]:
        nonlocal unusable
        for key, record in zip(task.keys, task.records):
            try:
                signal, rate = read_clean(task.clean, key) or task.cleaning.whole(record)
                segments = task.cleaning.cut(signal)
            except RecordError as error:
                unusable += 1
                yield key, error, {}
                continue
            except CorpusError as error:
                unread.append(str(error))
                continue
            if key in task.measured:
                measured[key] = features(signal, rate)
            symbols = task.quantizer.encode(segments)
            error = np.abs(task.quantizer.decode(symbols) - segments)
            errors = {"worst": error.max(axis=(0, 2)), "total": error.sum(axis=(0, 2))}
            yield key, symbols, errors | {"clipped": task.quantizer.count_clipped(segments)}

    cleaned = [*rows()]
    if measured:
        write_features(task.features, measured)
    write_part(task.cache, task.cleaning.signal.segment_length, cleaned)
    return unusable, unread
