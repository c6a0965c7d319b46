"""Writing cleaned segments as they were before they became symbols, in tasks, for the encoders of two-stage baselines.

The files number the segments as the shards of ECG tokens do. A sample is a float16 in mV, which keeps all but 4e-8 of the
variance. Symbols keep 95% of it on 60 recordings of PTB-XL (3% of a lead's in the median), and 97% of their segments have
clipped samples, mostly R peaks: an encoder that is to be compared with the tokens must not read the ECG through these. Axes: S
segments per recording, T samples per segment.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.errors import CorpusError
from ecgbyte_jax.inputs.shards import Written, signal_to_bytes, write_shard
from ecgbyte_jax.prepare.cleaning import Cleaning
from ecgbyte_jax.prepare.quantize import Signals
from ecgbyte_jax.prepare.tasks import Target, collect, in_chunks, make_targets, run_once
from ecgbyte_jax.prepare.workers import Run

SUMMARIES = "summaries"  # the folder, beside the files, of what each task has written so far
_SEGMENTS = 5_000  # per file, at most, unless one recording has more


@dataclass(frozen=True)
class SignalTask:
    """Recordings whose clean segments become one file; segments: how many each has among the shards of ECG tokens."""

    target: Target
    cleaning: Cleaning
    records: tuple[SignalSource, ...]
    segments: tuple[int, ...]

    def identity(self) -> list:
        """Returns what is read and how."""
        return [self.cleaning.digest(), [record.name for record in self.records], self.segments]


def write_signals(
    folder: Path, tokenizer: Path, cleaning: Cleaning, signals: Signals, records: list[SignalSource], run: Run
) -> list[Written]:
    """Cleans all recordings again and writes their segments, in the order of the shards; raises CorpusError or ShardsError."""
    counts = [signals.place(record).segments for record in records]
    chunks = [*in_chunks([*zip(records, counts)], counts, _SEGMENTS)]
    targets = make_targets(folder, folder / SUMMARIES, tokenizer, "signals", len(chunks))
    tasks = (SignalTask(target, cleaning, *zip(*chunk)) for target, chunk in zip(targets, chunks))
    summaries = collect(run(write_part, tasks), "write signals", [len(chunk) for chunk in chunks])
    return [Written(**summary["written"]) for summary in summaries]


def write_part(task: SignalTask) -> dict:
    """Writes one file of segments; returns its digest."""
    return run_once(task, _write)


def _write(task: SignalTask) -> dict:
    def segments() -> Iterator[bytes]:
        for record, expected in zip(task.records, task.segments):
            signal, _ = task.cleaning.whole(record)
            found = task.cleaning.cut(signal)
            if len(found) != expected:
                raise CorpusError(f"{record}: {len(found)} segments found, {expected} in the shards; run --stage=prepare again")
            yield from map(signal_to_bytes, np.asarray(found))

    return {"lengths": [], "written": asdict(write_shard(task.target.shard, segments()))}
