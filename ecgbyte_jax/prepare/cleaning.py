"""Cleaning recordings in tasks of a few hundred, and the clean signals kept on disk until they are quantised.

Axes: S segments per recording, L leads (12), N samples per recording, T samples per segment.
"""

import errno
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.ecg.records import Record
from ecgbyte_jax.ecg.signal import clean, segment
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.errors import CorpusError, RecordError
from ecgbyte_jax.files import read_arrays, write_arrays
from ecgbyte_jax.run.stage import json_digest
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings, SignalSettings

if TYPE_CHECKING:
    from ecgbyte_jax.prepare.corpus import Folders  # which measures, and so cleans

KEPT_RECORDS = 1000  # whose clean signals are kept on disk from the percentiles to the symbols
_KEPT_BYTES = 1 << 20  # at most, per recording
_VERSION = 5  # of clean signals, features and symbols
# System errors of missing files and of paths that are not files; all others may be temporary.
_PERMANENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, None)


@dataclass(frozen=True)
class Cleaning:
    """How recordings become segments; max_segments 0 keeps all."""

    signal: SignalSettings
    max_segments: int

    @classmethod
    def of(cls, settings: Settings) -> "Cleaning":
        """Selects the settings of cleaning."""
        return cls(settings.signal, settings.data.max_segments)

    def cut(self, signal: np.ndarray) -> np.ndarray:
        """Cuts a clean signal [12, N] into segments float64 [S, 12, T]; raises RecordError if it is shorter than one."""
        return segment(signal, self.signal.segment_length)[: self.max_segments or None]

    def whole(self, record: SignalSource) -> tuple[np.ndarray, float]:
        """Reads and cleans one recording: float64 [12, N] in mV, and its rate in Hz.

        Raises RecordError if it is unusable, and CorpusError if its files are temporarily unreadable.
        """
        recording = self.read(record)
        return clean(recording, self.signal), self.signal.target_rate or recording.sample_rate

    def read(self, record: SignalSource) -> Record:
        """Reads one recording; raises RecordError and CorpusError as `whole` does."""
        try:
            return record.read()
        except RecordError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno not in _PERMANENT:
                raise CorpusError(f"{error}; fix that, or move the file away, then run the same command again") from error
            raise

    def digest(self) -> str:
        """SHA-256 of everything that clean segments depend on, except the recordings."""
        return json_digest([_VERSION, asdict(self)])

    def kept_in(self, folders: "Folders", workdir: Workdir) -> Path:
        """The run's own folder of clean signals: it is removed at the end, while several runs may share a cache."""
        return folders.cache / "clean" / json_digest([self.digest(), str(workdir.root.resolve())])[:24]

    def features_in(self, folders: "Folders") -> Path:
        """Where `feature_cache` keeps the recordings' features."""
        return folders.cache / "features" / self.digest()[:24]


@dataclass(frozen=True)
class Task:
    """A few hundred recordings to clean; `keys` are the cache's, `first` the number of the first recording.

    clean: the folder of clean signals; cache: of symbols; features: of the features of recordings with keys in `measured`.
    """

    cleaning: Cleaning
    records: tuple[SignalSource, ...]
    keys: tuple[int, ...]
    first: int
    seed: int
    clean: Path
    features: Path
    quantizer: Quantizer | None = None
    cache: Path = Path()
    measured: frozenset[int] = frozenset()


@dataclass(frozen=True)
class TaskMaker:
    """Makes tasks from what all tasks of a run share."""

    cleaning: Cleaning
    size: int
    seed: int
    clean: Path
    features: Path

    @classmethod
    def of(cls, settings: Settings, folders: "Folders", workdir: Workdir) -> "TaskMaker":
        """Selects the settings of cleaning tasks."""
        cleaning = Cleaning.of(settings)
        folder = cleaning.kept_in(folders, workdir)
        return cls(cleaning, settings.prepare.task_records, settings.data_seed, folder, cleaning.features_in(folders))

    def tasks(
        self, records: list[SignalSource], keys: np.ndarray, quantizer: Quantizer | None = None, cache: Path = Path()
    ) -> list[Task]:
        """Splits recordings, with their keys uint64 [R], into tasks of `prepare.task_records`."""
        return [
            Task(
                self.cleaning,
                tuple(records[first : first + self.size]),
                tuple(keys[first : first + self.size].tolist()),
                first,
                self.seed,
                self.clean,
                self.features,
                quantizer,
                cache,
            )
            for first in range(0, len(records), self.size)
        ]


def keep_clean(folder: Path, key: int, signal: np.ndarray, rate: float) -> None:
    """Keeps a clean signal and its rate for `read_clean`, unless it is too large."""
    if signal.nbytes <= _KEPT_BYTES:
        write_arrays(folder / f"{key:016x}.npz", signal=signal, rate=np.array(rate))


def read_clean(folder: Path, key: int) -> tuple[np.ndarray, float] | None:
    """Reads what `keep_clean` kept; None if it is missing or damaged."""
    arrays = read_arrays(folder / f"{key:016x}.npz")
    return arrays and (arrays["signal"], float(arrays["rate"]))
