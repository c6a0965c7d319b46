"""From recordings to symbols and the ECG tokenizer, as the stages `tokenizer` and `prepare` both begin.

Recordings are cleaned in tasks of a few hundred, wherever `workers` runs them; each leaves its symbols in the cache, and what
stands there is not cleaned again. Axes: S segments of a recording, L leads (12), T samples of a segment.
"""

import errno
import hashlib
import json
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ecgbyte_jax.corpora.example import Rejected
from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.records import read_record
from ecgbyte_jax.ecg.signal import CleanConfig, clean, segment
from ecgbyte_jax.ecg.symbols import Drawn, Quantizer
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer, Training
from ecgbyte_jax.errors import CorpusError, RecordError, TokenizerError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run import stages
from ecgbyte_jax.run.corpus import Corpus, Paths
from ecgbyte_jax.run.logbook import progress
from ecgbyte_jax.run.symbol_cache import Place, SymbolCache, write_part
from ecgbyte_jax.run.workers import Run

_VERSION = 4  # of what is made here
_KEPT_RECORDS = 1000  # whose clean signals, of 1 MB at most each, wait on disk between the percentiles and the symbols
_KEPT_BYTES = 1 << 20
_DRAWN_AT_ONCE = 1 << 18  # samples
# What the system answers about a file that is not there or is no file; whatever else it answers may pass.
_LASTING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, None)


def settings(config: ConfigDict) -> dict:
    """What the symbols and the tokenizer depend on, beside the files that are read."""
    # Of files the content counts, not their place; batches are made later.
    indifferent = ("root", "ecgqa_root", "table", "conversations", "translations", "max_bad_fraction", "sequences_per_file")
    indifferent += ("packing", "length_buckets")
    data = {k: v for k, v in config.data.to_dict().items() if k not in indifferent}
    tokenizer = {k: v for k, v in config.tokenizer.to_dict().items() if k not in ("merges_csv", "file")}
    return {"version": _VERSION, "seed": config.seed, "data": data, "signal": config.signal.to_dict(), "tokenizer": tokenizer}


@dataclass(frozen=True)
class Cleaning:
    """How recordings become segments."""

    config: CleanConfig
    segment_length: int
    max_segments: int

    @classmethod
    def of(cls, config: ConfigDict) -> "Cleaning":
        fields = config.signal.to_dict()
        return cls(
            segment_length=fields.pop("segment_length"), config=CleanConfig(**fields), max_segments=config.data.max_segments
        )

    def segments(self, record: str) -> np.ndarray:
        """Clean segments float64 [S, 12, T] in mV of one recording; raises as `whole`."""
        return segment(self.whole(record)[0], self.segment_length)[: self.max_segments or None]

    def whole(self, record: str) -> tuple[np.ndarray, float]:
        """The clean signal float64 [12, N] in mV of one recording, and its rate in Hz.

        Raises RecordError where it cannot be used, and CorpusError where the system does not give its files now.
        """
        try:
            found = read_record(record)
        except RecordError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno not in _LASTING:
                raise CorpusError(f"{error}; mend that, or move the file away, and the same command goes on") from error
            raise
        return clean(found, self.config), self.config.target_rate or found.sample_rate


@dataclass(frozen=True)
class Task:
    """A few hundred recordings to be cleaned; `keys` are the cache's, `first` the number of the first one."""

    cleaning: Cleaning
    records: tuple[str, ...]
    keys: tuple[int, ...]
    first: int
    seed: int
    clean: Path
    quantizer: Quantizer | None = None
    cache: str = ""


@dataclass
class Signals:
    """The recordings of a corpus as symbols in the cache: the row of its table for each usable one."""

    quantizer: Quantizer
    cache: SymbolCache
    rows: dict[Path, int]

    def place(self, record: Path) -> Place:
        """Where a recording's symbols stand."""
        return self.cache.place(self.rows[record])

    def symbols(self, record: Path) -> np.ndarray:
        """Symbols uint8 [S, 12, T] of one recording."""
        return self.place(record).read()

    def count(self, records: list[Path], field: str) -> int:
        """The sum of a field of the cache's table over recordings."""
        return int(self.cache.table[field][[self.rows[record] for record in records]].sum())

    def clipped_samples(self) -> str:
        """Of all recordings, for people."""
        places = [self.place(record) for record in self.rows]
        samples, clipped = sum(p.segments * 12 * p.samples for p in places), self.count(list(self.rows), "clipped")
        low, high = self.quantizer.low, self.quantizer.high
        return f"{clipped} of {samples} ({clipped / samples:.2%}), outside {low:.2f} to {high:.2f} mV"


def given_tokenizer(config: ConfigDict) -> str:
    """SHA-256 of the file `tokenizer.file`; "" where none is given. Raises TokenizerError where it is not there."""
    if not config.tokenizer.file:
        return ""
    try:
        return hashlib.sha256(Path(config.tokenizer.file).read_bytes()).hexdigest()
    except OSError as error:
        raise TokenizerError(f"tokenizer.file: {config.tokenizer.file}: {error.strerror}") from error


def fit_quantizer(config: ConfigDict, paths: Paths, corpus: Corpus, run: Run) -> Quantizer:
    """From training recordings alone, so that the test set stays unseen; kept in the cache beside the symbols."""
    records = corpus.records("train")
    wanted = min(config.tokenizer.percentile_records, len(records))
    drawn = np.sort(np.random.default_rng(config.seed).choice(len(records), wanted, replace=False))
    records = [records[i] for i in drawn]
    cleaning, record_keys = Cleaning.of(config), corpus.keys(records, paths.root)
    digest = stages.digest([_VERSION, repr(cleaning), config.seed, record_keys.tolist()])
    file = paths.cache / "percentiles" / f"{digest[:24]}.json"
    if file.is_file():
        return Quantizer(*json.loads(file.read_text()))
    tasks = make_tasks(config, paths, records, record_keys)
    parts: dict[int, Drawn] = {}
    with progress("percentiles of the signal", len(records)) as report:
        for number, found in run(draw_samples, tasks):
            parts[number] = found
            report(sum(len(tasks[done].records) for done in parts))
    all_of_them = Drawn.none()
    for number in sorted(parts):
        all_of_them = all_of_them.add(parts[number].samples, parts[number].keys)
    if not all_of_them.samples.size:  # then all of them are unusable, and cleaning them says why
        quantize(config, paths, corpus, Quantizer(-1.0, 1.0), run)
    quantizer = Quantizer.of_samples(all_of_them)
    write_whole(file, [json.dumps([quantizer.percentile_1, quantizer.percentile_99]).encode()])
    return quantizer


def draw_samples(task: Task) -> Drawn:
    """Samples of clean recordings in mV, drawn at random; unusable recordings count when they are quantized."""
    drawn, waiting = Drawn.none(), []
    for number, (key, record) in enumerate(zip(task.keys, task.records), start=task.first):
        try:
            segments = task.cleaning.segments(record)
        except RecordError:
            continue
        if number < _KEPT_RECORDS:
            _keep(task.clean, key, segments)
        waiting.append((segments.ravel(), np.random.default_rng([task.seed, number]).random(segments.size)))
        if sum(len(signal) for signal, _ in waiting) >= _DRAWN_AT_ONCE:
            drawn, waiting = drawn.add(*map(np.concatenate, zip(*waiting))), []
    return drawn.add(*map(np.concatenate, zip(*waiting))) if waiting else drawn


def _keep(folder: Path, key: int, segments: np.ndarray) -> None:
    """Leaves clean segments for `_kept`, as a zip file, whose checksum tells whether it is whole."""
    if segments.nbytes <= _KEPT_BYTES:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{key:016x}.npz", segments=segments)


def _kept(folder: Path, key: int) -> np.ndarray | None:
    """The clean segments that `_keep` left, and None where it did not, or not whole: then they are made again."""
    try:
        with np.load(folder / f"{key:016x}.npz") as found:
            return found["segments"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def quantize(config: ConfigDict, paths: Paths, corpus: Corpus, quantizer: Quantizer, run: Run) -> Signals:
    """Cleans and quantizes every recording that is not in the cache; the examples of unusable ones are set aside."""
    cleaning, records = Cleaning.of(config), corpus.records()
    record_keys = corpus.keys(records, paths.root)
    digest = stages.digest([_VERSION, repr(cleaning), repr(quantizer)])
    folder = paths.cache / "symbols" / digest[:24]
    missing = np.flatnonzero(SymbolCache(folder).find(record_keys) < 0)
    _clean_missing(config, paths, folder, quantizer, [records[i] for i in missing], record_keys[missing], run)
    shutil.rmtree(_clean_folder(paths, cleaning), ignore_errors=True)
    cache = SymbolCache(folder)
    rows = dict(zip(records, cache.find(record_keys).tolist()))
    bad = {
        record: cache.reasons[int(cache.table["key"][row])] for record, row in rows.items() if not cache.table["segments"][row]
    }
    found = ((e, next((record for record in e.records if record in bad), None)) for e in corpus.examples)
    corpus.set_aside([Rejected(e.id, str(record), bad[record]) for e, record in found if record])
    return Signals(quantizer, cache, {record: row for record, row in rows.items() if record not in bad})


def _clean_folder(paths: Paths, cleaning: Cleaning) -> Path:
    """The run's own, for it is removed at the end, and several runs may share a cache."""
    return paths.cache / "clean" / stages.digest([_VERSION, repr(cleaning), str(paths.marker.resolve())])[:24]


def _clean_missing(
    config: ConfigDict,
    paths: Paths,
    folder: Path,
    quantizer: Quantizer,
    records: list[Path],
    record_keys: np.ndarray,
    run: Run,
) -> None:
    if not records:
        return
    tasks = make_tasks(config, paths, records, record_keys, quantizer, str(folder))
    done = bad = 0
    unread: dict[int, list[str]] = {}
    with progress("clean and quantize", len(records)) as report:
        for number, (unusable, unread[number]) in run(clean_part, tasks):
            done, bad = done + len(tasks[number].records), bad + unusable
            report(done, f"{bad} unusable" if bad else "")
    reasons = [reason for number in sorted(unread) for reason in unread[number]]
    if reasons:
        raise CorpusError(f"{len(reasons)} of {len(records)} recordings cannot be read now; the first: {reasons[0]}")


def clean_part(task: Task) -> tuple[int, list[str]]:
    """Cleans and quantizes a few hundred recordings and writes them as one part of the cache.

    Returns how many are unusable, and what the system said of those that it did not give: the cache knows nothing of them.
    """
    unusable, unread = 0, []

    def rows() -> Iterator[tuple[int, np.ndarray | RecordError, dict]]:
        nonlocal unusable
        for key, record in zip(task.keys, task.records):
            try:
                kept = _kept(task.clean, key)
                segments = task.cleaning.segments(record) if kept is None else kept
            except RecordError as error:
                unusable += 1
                yield key, error, {}
                continue
            except CorpusError as error:
                unread.append(str(error))
                continue
            symbols = task.quantizer.encode(segments)
            error = np.abs(task.quantizer.decode(symbols) - segments)
            measured = {"worst": error.max(axis=(0, 2)), "total": error.sum(axis=(0, 2))}
            yield key, symbols, measured | {"clipped": task.quantizer.count_clipped(segments)}

    write_part(Path(task.cache), task.cleaning.segment_length, rows())
    return unusable, unread


def make_tasks(
    config: ConfigDict,
    paths: Paths,
    records: list[Path],
    record_keys: np.ndarray,
    quantizer: Quantizer | None = None,
    cache: str = "",
) -> list[Task]:
    """The recordings in tasks of `prepare.task_records`."""
    cleaning, size = Cleaning.of(config), config.prepare.task_records
    return [
        Task(
            cleaning,
            tuple(map(str, records[first : first + size])),
            tuple(record_keys[first : first + size].tolist()),
            first,
            config.seed,
            _clean_folder(paths, cleaning),
            quantizer,
            cache,
        )
        for first in range(0, len(records), size)
    ]


def train_tokenizer(config: ConfigDict, signals: Signals, records: list[Path]) -> ECGTokenizer:
    """BPE on the recordings, segment by segment."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(signals.symbols(record))
    segments = signals.count(records, "segments")
    training = Training(
        num_merges=config.tokenizer.num_merges,
        boundary=config.tokenizer.boundary,
        segments=segments,
        symbols=segments * 12 * config.signal.segment_length,
        clipped=signals.count(records, "clipped"),
        corpus_sha256=digest.hexdigest(),
    )
    found = (segment for record in records for segment in signals.symbols(record))
    with progress(f"BPE on {training.symbols / 1e6:.1f} M symbols, %", 100) as report, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stages say themselves when fewer merges were made
        bpe = BPE.train(
            found,
            training.num_merges,
            boundary=training.boundary or None,
            progress=lambda made, share: report(int(100 * share), f"{made} merges"),
        )
    return ECGTokenizer(signals.quantizer, bpe, training)


def merges_made(tokenizer: ECGTokenizer) -> str:
    """How many merges, and why they are fewer where they are."""
    if tokenizer.training is None:
        return f"{tokenizer.bpe.vocab_size - 26}, as published"
    made, wanted = len(tokenizer.bpe.merges), tokenizer.training.num_merges
    return f"{made}" + (f" (of {wanted} asked for: the corpus has no more pairs)" if made < wanted else "")
