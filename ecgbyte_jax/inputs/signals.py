"""Batches of clean segments, for the encoders of two-stage baselines.

Axes: B rows per batch, T samples per segment.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import grain
import numpy as np

from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.inputs.shards import Manifest, read_question, read_signal


def open_signals(folder: Path) -> grain.MapDataset:
    """Opens the segments float32 [12, T] in mV of all recordings, numbered as in the shards; raises ShardsError."""
    files = sorted(folder.glob("signals-*.array_record"))
    try:
        records = grain.sources.ArrayRecordDataSource([str(file) for file in files])
    except RuntimeError as error:
        raise ShardsError(f"{folder}: a file is damaged ({str(error).splitlines()[0]}); remove the folder") from error

    def read(number: int) -> np.ndarray:
        try:
            return read_signal(records[number])
        except (RuntimeError, ValueError) as error:
            raise ShardsError(f"{folder}: segment {number} is damaged ({error}); remove the folder") from error

    return grain.MapDataset.range(len(records)).map(read)


def read_questions(shards: Path, manifest: Manifest, split: str) -> Iterator[tuple[list[int], str, str]]:
    """Yields (segment numbers, question, answer) of every sequence of a split."""
    files = [str(shards / file) for file in manifest.splits[split].files]
    records = grain.sources.ArrayRecordDataSource(files) if files else []
    for number in range(len(records)):
        yield read_question(records[number])


def segments_of(shards: Path, manifest: Manifest, split: str) -> np.ndarray:
    """The numbers int64 [n], ascending, of the segments that a split asks about, however many questions each has."""
    asked = {number for numbers, _, _ in read_questions(shards, manifest, split) for number in numbers}
    return np.array(sorted(asked), np.int64)


@dataclass(frozen=True)
class SegmentPlan:
    """Which of `count` segments are in which step of a training over shuffled epochs; nothing but the seed decides."""

    count: int
    batch_size: int
    epochs: float
    seed: int

    def __len__(self) -> int:
        return int(self.count * self.epochs) // self.batch_size

    def rows(self, step: int) -> np.ndarray:
        """The places int64 [B] of the segments of step `step` + 1."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.array([_order(self.seed, int(epoch), self.count)[place] for epoch, place in zip(*divmod(places, self.count))])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 3]).permutation(count)


def signal_batches(
    signals: grain.MapDataset, numbers: np.ndarray, plan: SegmentPlan, rows: np.ndarray | None = None
) -> grain.MapDataset:
    """The batches {signals: float32 [b, 12, T]} of a training: item n is step n + 1's.

    rows: the numbers int [b] of the rows to make; None: all.
    """

    def to_batch(step: int) -> dict[str, np.ndarray]:
        chosen = numbers[plan.rows(step)]
        return {"signals": np.stack([signals[int(number)] for number in (chosen if rows is None else chosen[rows])])}

    return grain.MapDataset.range(len(plan)).map(to_batch)
