"""Token shards: ArrayRecord files of tokenised sequences, and the manifest that says what stands in them."""

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from ecgbyte_jax.corpora.example import SPLITS
from ecgbyte_jax.errors import ShardsError

SCHEMA = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False)
class Sequence:
    """One segment of a recording with its question and answer. ecg: compact ids; the other ids: text tokens."""

    id: str
    patient: str
    segment: int
    question: str
    answer: str
    ecg: np.ndarray
    question_ids: np.ndarray
    answer_ids: np.ndarray

    def to_bytes(self) -> bytes:
        """Compact: ECG ids as uint16, text ids as int32, both little-endian, in a msgpack map with its schema."""
        arrays = {
            "ecg": self.ecg.astype("<u2").tobytes(),
            "question_ids": self.question_ids.astype("<i4").tobytes(),
            "answer_ids": self.answer_ids.astype("<i4").tobytes(),
        }
        texts = {name: getattr(self, name) for name in ("id", "patient", "segment", "question", "answer")}
        return msgpack.packb({"schema": SCHEMA, **texts, **arrays})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Sequence":
        """What `to_bytes` wrote; raises ShardsError for another schema."""
        found = msgpack.unpackb(data)
        if found.pop("schema", None) != SCHEMA:
            raise ShardsError(f"a record of another schema than {SCHEMA}; run --stage=prepare again")
        ecg = np.frombuffer(found.pop("ecg"), "<u2").astype(np.int32)
        question, answer = (np.frombuffer(found.pop(name), "<i4") for name in ("question_ids", "answer_ids"))
        return cls(**found, ecg=ecg, question_ids=question, answer_ids=answer)


@dataclass
class SplitSummary:
    """What one split holds; longest_answer counts its tokens with the eos, tokens all but padding."""

    files: list[str] = field(default_factory=list)
    examples: int = 0
    sequences: int = 0
    ecg_cut: int = 0
    tokens: int = 0
    longest_sequence: int = 0
    longest_answer: int = 0


@dataclass(frozen=True)
class Manifest:
    """splits by name; commonest: question -> the answer most often given to it in training, "" -> to any question."""

    splits: dict[str, SplitSummary]
    commonest: dict[str, str]


class ShardWriter:
    """Writes the sequences of all splits below one folder; use it as a context and call `finish` at the end."""

    def __init__(self, folder: Path, sequences_per_file: int):
        self.folder, self.limit = folder, sequences_per_file
        self.splits = {split: SplitSummary() for split in SPLITS}
        self.answers: dict[str, Counter[str]] = defaultdict(Counter)
        self._open: dict[str, ArrayRecordWriter] = {}

    def __enter__(self) -> "ShardWriter":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._open.values():
            writer.close()
        self._open.clear()

    def write(self, split: str, sequence: Sequence, length: int, cut: bool) -> None:
        """Adds one sequence of `length` tokens as rendered; `cut` tells whether its ECG had to be cut."""
        summary = self.splits[split]
        if summary.sequences % self.limit == 0:
            self._next_file(split)
        self._open[split].write(sequence.to_bytes())
        summary.sequences += 1
        summary.examples += sequence.segment == 0
        summary.ecg_cut += cut
        summary.tokens += length
        summary.longest_sequence = max(summary.longest_sequence, length)
        summary.longest_answer = max(summary.longest_answer, len(sequence.answer_ids) + 1)
        if split == "train":
            self.answers[sequence.question][sequence.answer] += 1
            self.answers[""][sequence.answer] += 1

    def _next_file(self, split: str) -> None:
        if split in self._open:
            self._open.pop(split).close()
        name = f"{split}-{len(self.splits[split].files):05d}.array_record"
        self.splits[split].files.append(name)
        self._open[split] = ArrayRecordWriter(str(self.folder / name), "group_size:1")

    def finish(self) -> Manifest:
        """Closes the files and writes the manifest, which makes the folder complete."""
        self.__exit__()
        # Of answers that are equally common the first in the alphabet, so that the order of reading does not matter.
        commonest = {q: min(counts, key=lambda a: (-counts[a], a)) for q, counts in self.answers.items()}
        manifest = Manifest(self.splits, commonest)
        text = json.dumps({"schema": SCHEMA, **asdict(manifest)}, indent=1, ensure_ascii=False)
        (self.folder / MANIFEST).write_text(text, encoding="utf-8")
        return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished folder; raises ShardsError where it or one of its files is missing."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ShardsError(f"{path}: no such file; run --stage=prepare first")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        schema, commonest = found["schema"], found["commonest"]
        splits = {split: SplitSummary(**found["splits"][split]) for split in SPLITS}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ShardsError(f"{path}: damaged ({error!r}); run --stage=prepare again") from error
    if schema != SCHEMA:
        raise ShardsError(f"{path}: schema {schema} found, {SCHEMA} wanted; run --stage=prepare again")
    gone = [file for summary in splits.values() for file in summary.files if not (folder / file).is_file()]
    if gone:
        raise ShardsError(f"{folder}: the files {gone} are missing; run --stage=prepare again")
    return Manifest(splits, commonest)
