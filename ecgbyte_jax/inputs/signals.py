"""Batches of clean segments, for the encoders of two-stage baselines.

Axes: B rows per batch, T samples per segment, F features, or tokens, of a report.
"""

from pathlib import Path
from typing import Protocol

import grain
import numpy as np

from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.inputs.plan import Layout, Plan
from ecgbyte_jax.inputs.shards import Sequence, read_signal


class Reports(Protocol):
    """The reports of segments, as features float32 [F] or tokens int32 [F]."""

    def row(self, number: int, batch: int) -> np.ndarray:
        """That of a segment by its number; in another batch, it may be put in other words."""
        ...


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


def segments_of(outlines: list[Sequence]) -> np.ndarray:
    """The numbers int64 [n], ascending, of the segments that sequences ask about; outlines: see `batches.outlines_of`."""
    return np.array(sorted({int(place) for outline in outlines for place in outline.ecgs}), np.int64)


def plan_segments(count: int, batch_size: int, epochs: float, seed: int) -> Plan:
    """Which of `count` segments are in which step; raises ShardsError where they do not fill a batch."""
    return Plan(np.ones((count, 2), np.int32), Layout(1), batch_size, epochs, seed)


def signal_batches(
    signals: grain.MapDataset,
    numbers: np.ndarray,
    plan: Plan,
    rows: np.ndarray | None = None,
    reports: Reports | None = None,
) -> grain.MapDataset:
    """The batches {signals: float32 [b, 12, T]} of a training, with {reports: [b, F]}: item n is step n + 1's.

    rows: the numbers int [b] of the rows to make; None: all. reports: those of the segments; None: none.
    """

    def to_batch(step: int) -> dict[str, np.ndarray]:
        chosen = numbers[np.concatenate(plan[step].rows)]
        chosen = [int(number) for number in (chosen if rows is None else chosen[rows])]
        batch = {"signals": np.stack([signals[number] for number in chosen])}
        return batch if reports is None else batch | {"reports": np.stack([reports.row(number, step) for number in chosen])}

    return grain.MapDataset.range(len(plan)).map(to_batch)
