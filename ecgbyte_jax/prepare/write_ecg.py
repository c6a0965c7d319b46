"""Writing the shards of ECG tokens, in tasks, from the cached symbols.

Axes: S segments, L leads (12), T samples per segment.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ecgbyte_jax.corpora.example import Example
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.inputs.shards import Written, ecg_to_bytes, write_shard
from ecgbyte_jax.prepare.quantize import Signals
from ecgbyte_jax.prepare.symbol_cache import Place
from ecgbyte_jax.prepare.tasks import Target, collect, in_chunks, make_targets, run_once
from ecgbyte_jax.prepare.workers import Run

_SEGMENTS_AT_ONCE = 1024  # encoded as one batch
_ECG_SEGMENTS = 5_000  # per ECG shard, at most, unless one recording has more


@dataclass(frozen=True)
class EcgTask:
    """Recordings whose segments become one file of ECG tokens."""

    target: Target
    places: tuple[Place, ...]

    def identity(self) -> list:
        """Returns where the symbols are, and their checksums."""
        return [[Path(p.part).name, p.offset, p.segments, p.samples, p.crc] for p in self.places]


def write_ecg(
    shards: Path, summaries: Path, tokenizer: Path, signals: Signals, records: list[SignalSource], run: Run
) -> "EcgShards":
    """Encodes and writes all segments of the recordings, in order. Raises ShardsError, TokenizerError or OSError."""
    counts = [signals.place(record).segments for record in records]
    chunks = [*in_chunks(records, counts, _ECG_SEGMENTS)]
    targets = make_targets(shards, summaries, tokenizer, "ecg", len(chunks))
    tasks = (EcgTask(target, tuple(map(signals.place, chunk))) for target, chunk in zip(targets, chunks))
    summaries = collect(run(encode_part, tasks), "encode", [len(chunk) for chunk in chunks])
    first = np.cumsum([0, *counts])[:-1].tolist()
    written = {target.shard.name: Written(**summary["written"]) for target, summary in zip(targets, summaries)}
    lengths = np.concatenate([summary["lengths"] for summary in summaries])
    return EcgShards(written, lengths, dict(zip(records, zip(first, counts))))


@dataclass(frozen=True)
class EcgShards:
    """The files of ECG tokens, the token count of each segment int32 [S], and (first segment, segments) by recording."""

    written: dict[str, Written]
    lengths: np.ndarray
    segments: dict[SignalSource, tuple[int, int]]

    def of(self, example: Example) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Returns (segment number, tokens) of each ECG in each segment of the example, as many as its shorter recording has.

        One, or none where no recording has it, if the example is about that segment alone.
        """
        starts = [self.segments[record] for record in example.records]
        count = min(segments for _, segments in starts)
        return tuple(
            tuple((first + s, int(self.lengths[first + s])) for first, _ in starts)
            for s in range(count)
            if example.segment in (-1, s)
        )


def encode_part(task: EcgTask) -> dict:
    """Writes one file of ECG tokens; returns the token count of each segment and the file's digest."""
    return run_once(task, _encode)


def _encode(task: EcgTask) -> dict:
    bpe, lengths = _bpe(task.target.tokenizer, task.target.tokenizer_sha256), []

    def records() -> Iterator[bytes]:
        for symbols in _batches(task.places):
            for ids in bpe.encode_batch(symbols.reshape(len(symbols), -1)):
                lengths.append(len(ids))
                yield ecg_to_bytes(ids)

    written = write_shard(task.target.shard, records())
    return {"lengths": lengths, "written": asdict(written)}


def _batches(places: tuple[Place, ...]) -> Iterator[np.ndarray]:
    """Symbols uint8 [S, 12, T], in batches of many segments."""
    waiting: list[np.ndarray] = []
    for place in places:
        waiting.append(place.read())
        if sum(map(len, waiting)) >= _SEGMENTS_AT_ONCE:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


@lru_cache(maxsize=1)
def _bpe(path: Path, sha256: str) -> BPE:
    return ECGTokenizer.load(path).bpe
