"""Measuring recordings in tasks of a few hundred, whose results are cached: what has been measured is not measured again."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ecgbyte_jax.corpora.example import Example, Rejected
from ecgbyte_jax.corpora.measured import questions
from ecgbyte_jax.corpora.measured.questions import Asked, Segment, ask_segments
from ecgbyte_jax.corpora.measured.read import Measured, Unmeasured, make_examples
from ecgbyte_jax.corpora.measured.spoilt import Spoilt
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.ecg.measure import measure
from ecgbyte_jax.ecg.records import Record
from ecgbyte_jax.ecg.signal import clean
from ecgbyte_jax.errors import ConfigError, CorpusError, RecordError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.prepare.cleaning import Cleaning
from ecgbyte_jax.prepare.symbol_cache import record_key
from ecgbyte_jax.prepare.workers import open_workers
from ecgbyte_jax.run.console import console, progress
from ecgbyte_jax.run.stage import json_digest
from ecgbyte_jax.settings import Settings

_ENDING = ".measured"
_REASONS = 3  # printed of each question


@dataclass(frozen=True)
class Task:
    """A few hundred recordings to measure, with the cache's keys; seed: of the faults that copies of them are given."""

    cleaning: Cleaning
    records: tuple[SignalSource, ...]
    keys: tuple[int, ...]
    seed: int
    folder: Path


def answer(
    items: Iterable[Example | Rejected | Unmeasured], settings: Settings, cache: Path, made_by: str
) -> list[Example | Rejected]:
    """The items, with the questions about every recording that is to be measured in place of the last of them.

    cache: the folder of all caches; made_by: as of `record_key`. Raises ConfigError if NeuroKit2 is not installed, and
    CorpusError if files are temporarily unreadable.
    """
    taken = [*items]
    recordings = [item for item in taken if isinstance(item, Unmeasured)]
    others = [item for item in taken if not isinstance(item, Unmeasured)]
    if not recordings:
        return others
    if find_spec("neurokit2") is None:
        raise ConfigError("data.corpus 'measured' needs NeuroKit2: install the extra, pip install -e '.[measured]'")
    cleaning, keys = Cleaning.of(settings), [record_key(recording.record, made_by) for recording in recordings]
    versions = [measure.VERSION, questions.VERSION, version("neurokit2"), settings.data_seed]
    folder = cache / "measured" / json_digest([cleaning.digest(), versions])[:24]
    found = _read(folder)
    missing = [i for i, key in enumerate(keys) if key not in found]
    size = settings.prepare.task_records
    tasks = [
        Task(
            cleaning,
            tuple(recordings[i].record for i in missing[first : first + size]),
            tuple(keys[i] for i in missing[first : first + size]),
            settings.data_seed,
            folder,
        )
        for first in range(0, len(missing), size)
    ]
    if tasks:
        _measure(tasks, len(missing), settings)
        found |= _read(folder)
    measured = [_restore(recording, found[key]) for recording, key in zip(recordings, keys)]
    _count_missing(measured)
    return [*others, *make_examples(measured)]


def _measure(tasks: list[Task], records: int, settings: Settings) -> None:
    done, unread = 0, {}
    with open_workers(settings.prepare) as run, progress("measure", records) as report:
        for number, unread[number] in run(measure_part, tasks):
            report(done := done + len(tasks[number].records))
    reasons = [reason for number in sorted(unread) for reason in unread[number]]
    if reasons:
        raise CorpusError(f"{len(reasons)} of {records} recordings cannot be read now; the first: {reasons[0]}")


def measure_part(task: Task) -> list[str]:
    """Measures a few hundred recordings and writes what is asked about them as one file of the cache.

    Returns the errors of temporarily unreadable ones, which are not cached.
    """
    lines, unread = [], []

    def seen(record: Record) -> tuple[np.ndarray, float]:
        return clean(record, task.cleaning.signal), task.cleaning.signal.target_rate or record.sample_rate

    for key, source in zip(task.keys, task.records):
        try:
            record = task.cleaning.read(source)
            length, most = task.cleaning.signal.segment_length, task.cleaning.max_segments
            segments = ask_segments(source, record, seen, length, most, task.seed)
            lines.append([key, [asdict(segment) | {"asked": list(map(_stored, segment.asked))} for segment in segments]])
        except RecordError as error:
            lines.append([key, str(error)])
        except CorpusError as error:
            unread.append(str(error))
    content = json.dumps(lines).encode()
    name = hashlib.sha256(np.array(task.keys, np.uint64).tobytes()).hexdigest()[:24] + _ENDING
    write_whole(task.folder / name, [hashlib.sha256(content).digest(), content])
    return unread


def _stored(asked: Asked) -> list:
    spoilt = asked.spoilt
    copy = spoilt and [spoilt.fault, spoilt.lead, spoilt.start, spoilt.stop, spoilt.seed]
    return [asked.name, asked.question_type, asked.attribute, asked.question, asked.answer, asked.unit, copy]


def _restore(recording: Unmeasured, stored: str | list[dict]) -> Measured:
    if isinstance(stored, str):
        return Measured(recording, stored)
    segments = []
    for segment in stored:
        asked = (Asked(*texts, Spoilt(recording.record, *copy) if copy else None) for *texts, copy in segment["asked"])
        segments.append(Segment(tuple(asked), segment["rate"], segment["missing"]))
    return Measured(recording, segments)


def _read(folder: Path) -> dict[int, str | list[dict]]:
    """What is in the cache by key; damaged files are ignored."""
    found: dict[int, str | list[dict]] = {}
    for path in sorted(folder.glob("*" + _ENDING)):
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            found |= dict(json.loads(content[32:]))
    return found


def _count_missing(measured: list[Measured]) -> None:
    """Prints what is not asked about how many segments, with the commonest reasons."""
    reasons: dict[str, Counter[str]] = {}
    segments = [segment for one in measured if not isinstance(one.segments, str) for segment in one.segments]
    for segment in segments:
        for name, reason in segment.missing.items():
            reasons.setdefault(name, Counter())[reason] += 1
    for name, counts in sorted(reasons.items()):
        shown = "; ".join(f"{reason} ({count})" for reason, count in counts.most_common(_REASONS))
        console.print(f"measured: no question on {name} in {counts.total()} of {len(segments)} segments: {shown}")
