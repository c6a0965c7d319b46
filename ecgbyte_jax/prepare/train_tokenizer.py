"""Training the ECG tokenizer on the symbols of recordings."""

import hashlib
import warnings

from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer, Training
from ecgbyte_jax.prepare.quantize import Signals
from ecgbyte_jax.run.console import progress
from ecgbyte_jax.settings import TokenizerSettings


def train_tokenizer(
    tokenizer: TokenizerSettings, segment_length: int, signals: Signals, records: list[SignalSource]
) -> ECGTokenizer:
    """Trains BPE on the recordings' segments of `segment_length` samples."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(signals.symbols(record))
    segments = signals.count(records, "segments")
    training = Training(
        num_merges=tokenizer.num_merges,
        boundary=tokenizer.boundary,
        segments=segments,
        symbols=segments * 12 * segment_length,
        clipped=signals.count(records, "clipped"),
        corpus_sha256=digest.hexdigest(),
    )
    symbols = (segment for record in records for segment in signals.symbols(record))
    with progress(f"BPE on {training.symbols / 1e6:.1f} M symbols, %", 100) as report, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stages report it if fewer merges were made
        bpe = BPE.train(
            symbols,
            training.num_merges,
            boundary=training.boundary or None,
            progress=lambda made, share: report(int(100 * share), f"{made} merges"),
        )
    return ECGTokenizer(signals.quantizer, bpe, training)


def merges_made(tokenizer: ECGTokenizer) -> str:
    """Describes how many merges were made, and why if they are fewer than requested."""
    if tokenizer.training is None:
        return f"{tokenizer.bpe.vocab_size - 26}, as published"
    made, requested = len(tokenizer.bpe.merges), tokenizer.training.num_merges
    return f"{made}" + (f" (of {requested} requested: the corpus has no more pairs)" if made < requested else "")
