"""A copy of a recording with a fault in one lead, from its own source: faults are rarer in data sets than at the bedside."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.ecg.perturb import blackout, noise, wander
from ecgbyte_jax.ecg.records import Record

FAULTS = {"noise": noise, "baseline wander": wander, "a flat line": blackout}


@dataclass(frozen=True, slots=True)
class Spoilt:
    """A recording with a fault, one of FAULTS, in a lead from `start` to `stop` s; the same wherever its name is the same."""

    source: SignalSource
    fault: str
    lead: str
    start: float
    stop: float
    seed: int

    @property
    def root(self) -> Path:
        """That of the recording."""
        return self.source.root

    @property
    def name(self) -> str:
        """The recording's name with what was done to it."""
        return f"{self.source.name}+{self.fault} in {self.lead} from {self.start:g} to {self.stop:g} s, {self.seed}"

    def __str__(self) -> str:
        return f"{self.source} with {self.fault} in {self.lead}"

    def read(self) -> Record:
        """Reads the recording and spoils it; raises RecordError as its source does."""
        return self.spoil(self.source.read())

    def spoil(self, record: Record) -> Record:
        """Spoils a recording that was read from its source; the lead is there once."""
        rate, signal = record.sample_rate, record.signal.copy()
        row, part = record.leads.index(self.lead), slice(round(self.start * rate), round(self.stop * rate))
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big"))
        signal[row : row + 1, part] = FAULTS[self.fault](signal[row : row + 1, part], rate, rng)
        return replace(record, signal=signal)

    def fingerprint(self, times: bool) -> list[object]:
        """Of its source: the rest is in the name."""
        return self.source.fingerprint(times)
