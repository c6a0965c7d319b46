"""From recordings to symbols and the ECG tokenizer, as the stages `tokenizer` and `prepare` both begin.

Axes: S segments of a recording, L leads (12), T samples of a segment. Everything of the corpus that is held at once is symbols,
one byte a sample; millivolts are held for one recording at a time.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ecgbyte_jax.corpora.example import Rejected
from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.records import read_record
from ecgbyte_jax.ecg.signal import CleanConfig, clean, segment
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer, Training
from ecgbyte_jax.errors import RecordError
from ecgbyte_jax.run.corpus import Corpus
from ecgbyte_jax.run.logbook import progress

_VERSION = 2  # of what is made here


def settings(config: ConfigDict) -> dict:
    """What the symbols and the tokenizer depend on, beside the files that are read."""
    indifferent = ("root", "ecgqa_root", "max_bad_fraction", "sequences_per_file")  # the files' content counts, not their place
    data = {k: v for k, v in config.data.to_dict().items() if k not in indifferent}
    tokenizer = {k: v for k, v in config.tokenizer.to_dict().items() if k != "merges_csv"}
    return {"version": _VERSION, "seed": config.seed, "data": data, "signal": config.signal.to_dict(), "tokenizer": tokenizer}


@dataclass
class Signals:
    """The recordings of a corpus as symbols uint8 [S, 12, T], and how many samples of each the quantizer clipped."""

    quantizer: Quantizer
    symbols: dict[Path, np.ndarray] = field(default_factory=dict)
    clipped: dict[Path, int] = field(default_factory=dict)

    def clipped_samples(self) -> str:
        """Of all recordings, for people."""
        samples, clipped = sum(symbols.size for symbols in self.symbols.values()), sum(self.clipped.values())
        low, high = self.quantizer.low, self.quantizer.high
        return f"{clipped} of {samples} ({clipped / samples:.2%}), outside {low:.2f} to {high:.2f} mV"


def fit_quantizer(config: ConfigDict, corpus: Corpus) -> Quantizer:
    """From training recordings alone, so that the test set stays unseen."""
    records = corpus.records("train")
    wanted = min(config.tokenizer.percentile_records, len(records))
    drawn = np.sort(np.random.default_rng(config.seed).choice(len(records), wanted, replace=False))
    cleaned = _clean(config, corpus, [records[i] for i in drawn], "percentiles of the signal")
    return Quantizer.fit((segments for _, segments in cleaned), seed=config.seed)


def quantize(
    config: ConfigDict,
    corpus: Corpus,
    quantizer: Quantizer,
    watch: Callable[[Path, np.ndarray, np.ndarray], None] | None = None,
) -> Signals:
    """Cleans and quantizes every recording; the examples of those that cannot be used are set aside.

    `watch` is called with each recording, its clean segments float64 [S, 12, T] in mV, and their symbols.
    """
    signals = Signals(quantizer)
    for record, segments in _clean(config, corpus, corpus.records(), "clean and quantize"):
        signals.symbols[record] = quantizer.encode(segments)
        signals.clipped[record] = quantizer.count_clipped(segments)
        if watch:
            watch(record, segments, signals.symbols[record])
    return signals


def train_tokenizer(config: ConfigDict, corpus: Corpus, signals: Signals) -> ECGTokenizer:
    """BPE on the training recordings, segment by segment."""
    records = corpus.records("train")
    digest = hashlib.sha256()
    for record in records:
        digest.update(signals.symbols[record])
    training = Training(
        num_merges=config.tokenizer.num_merges,
        boundary=config.tokenizer.boundary,
        segments=sum(len(signals.symbols[record]) for record in records),
        symbols=sum(signals.symbols[record].size for record in records),
        clipped=sum(signals.clipped[record] for record in records),
        corpus_sha256=digest.hexdigest(),
    )
    segments = (segment for record in records for segment in signals.symbols[record])
    with progress(f"BPE on {training.symbols / 1e6:.1f} M symbols, %", 100) as report, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stages say themselves when fewer merges were made
        bpe = BPE.train(
            segments,
            training.num_merges,
            boundary=training.boundary or None,
            progress=lambda made, share: report(int(100 * share), f"{made} merges"),
        )
    return ECGTokenizer(signals.quantizer, bpe, training)


def merges_made(tokenizer: ECGTokenizer) -> str:
    """How many merges, and why they are fewer where they are."""
    made, wanted = len(tokenizer.bpe.merges), tokenizer.training.num_merges
    return f"{made}" + (f" (of {wanted} asked for: the corpus has no more pairs)" if made < wanted else "")


def _clean(config: ConfigDict, corpus: Corpus, records: list[Path], what: str) -> Iterator[tuple[Path, np.ndarray]]:
    """(recording, clean segments float64 [S, 12, T] in mV); the examples of unusable recordings are set aside at the end."""
    fields = config.signal.to_dict()
    length = fields.pop("segment_length")
    cleaning = CleanConfig(**fields)
    reasons: dict[Path, str] = {}
    with progress(what, len(records)) as report:
        for done, record in enumerate(records, start=1):
            try:
                segments = segment(clean(read_record(record), cleaning), length)
                yield record, segments[: config.data.max_segments or None]
            except RecordError as error:
                reasons[record] = str(error)
            report(done)
    corpus.set_aside([Rejected(e.id, str(e.record), reasons[e.record]) for e in corpus.examples if e.record in reasons])
