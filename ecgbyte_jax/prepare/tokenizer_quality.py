"""How well an ECG tokenizer compresses and restores signals, on training and on unseen recordings.

Axes: S segments, L leads (12), T samples per segment.
"""

import csv
from pathlib import Path

import numpy as np

from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.published import published_id
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE, spell
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.prepare.quantize import Signals
from ecgbyte_jax.run.console import progress

_MERGES = (100, 500, 1000, 2000, 3500)  # at which compression is measured
_SEGMENTS = 2000  # per side, drawn at random, on which compression is measured
_SIDES = ("training", "unseen")


def _side(record: SignalSource, train: set[SignalSource]) -> str:
    return "training" if record in train else "unseen"


def restoration_errors(signals: Signals, train: set[SignalSource]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns {side: {lead: {"worst", "mean"}}}: the absolute error of restored signals in mV."""
    sides = {}
    for side in _SIDES:
        rows = [row for record, row in signals.rows.items() if _side(record, train) == side]
        if rows:
            table = signals.cache.table[rows]
            samples = sum(place.segments * place.samples for place in map(signals.cache.place, rows))
            pairs = zip(table["worst"].max(axis=0).tolist(), (table["total"].sum(axis=0) / samples).tolist())
            sides[side] = {lead: {"worst": worst, "mean": mean} for lead, (worst, mean) in zip(LEADS, pairs)}
    return sides


def draw_segments(signals: Signals, train: set[SignalSource], seed: int) -> dict[str, np.ndarray]:
    """Draws segments of each side, flattened, uint8 [S, 12 T]."""
    rng = np.random.default_rng(seed)
    sides = {}
    for side in _SIDES:
        records = [record for record in signals.rows if _side(record, train) == side]
        segments = [(record, number) for record in records for number in range(signals.place(record).segments)]
        if segments:
            drawn = np.sort(rng.choice(len(segments), min(_SEGMENTS, len(segments)), replace=False))
            sides[side] = np.stack([signals.symbols(segments[i][0])[segments[i][1]].ravel() for i in drawn])
    return sides


def compression_by_merges(bpe: BPE, sides: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Returns {number of merges: {side: symbols per token}}."""
    made = bpe.vocab_size - ALPHABET_SIZE
    levels = [made] if bpe.merges is None else [*(merges for merges in _MERGES if merges < made), made]
    by_merges = {}
    with progress("compression", len(levels)) as report:
        for done, merges in enumerate(levels, start=1):
            truncated = bpe if merges == made else BPE.of_merges(bpe.merges[:merges], bpe.counts[:merges])
            by_merges[str(merges)] = {
                side: symbols.size / sum(map(len, truncated.encode_batch(symbols))) for side, symbols in sides.items()
            }
            report(done)
    return by_merges


def write_merges(tokenizer: ECGTokenizer, path: Path) -> None:
    """Writes one CSV line per token, with compact and published id; columns unknown for published tokenizers are empty."""
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
