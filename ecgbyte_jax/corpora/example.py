"""What every corpus yields."""

from dataclasses import dataclass
from pathlib import Path

from ecgbyte_jax.errors import ExampleError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Example:
    """One question about one recording, and its answer.

    id: unique in the corpus; patient: whose recording it is; split: one of SPLITS; record: the WFDB record's path
    without extension. Raises ExampleError where a text is empty or the split unknown.
    """

    id: str
    patient: str
    split: str
    record: Path
    question: str
    answer: str

    def __post_init__(self):
        for field in ("question", "answer"):
            if not getattr(self, field).strip():
                raise ExampleError(f"the {field} is empty")
        if self.split not in SPLITS:
            raise ExampleError(f"split {self.split!r} found, one of {SPLITS} wanted")


@dataclass(frozen=True)
class Rejected:
    """An example that cannot be used: its id, the file at fault, and the reason."""

    id: str
    file: str
    reason: str
