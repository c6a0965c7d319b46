"""Token shards: ArrayRecord files of ECG tokens and of texts, and the manifest that describes them.

ECG tokens have their own files (`ecg-*.array_record`, one record per segment), and each sequence of texts (`train-*`, ...)
refers to its segments by number, so that several questions about one recording share its tokens.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from ecgbyte_jax.corpora.example import PART, SPLITS
from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.files import file_digest, write_whole
from ecgbyte_jax.inputs.prompt import Text

SCHEMA = 4
MANIFEST = "manifest.json"
_PARTS = "{}-parts.i4"
_PLAIN_FIELDS = ("id", "patient", "segment", "question", "answer", "meta", "history", "previous")


@dataclass(frozen=True, eq=False)
class Sequence:
    """One segment of a recording (or of two being compared) with its question and answer.

    ecgs: compact ids int32 [n] of each ECG; history: the earlier questions and answers of its conversation, as far as the text
    has them; previous: the id of the sequence with the last of them; meta: the corpus' other fields.
    """

    id: str
    patient: str
    segment: int
    question: str
    answer: str
    meta: dict
    ecgs: tuple[np.ndarray, ...]
    text: Text
    history: tuple[tuple[str, str], ...] = ()
    previous: str = ""

    @property
    def part(self) -> str:
        """The corpus of a mixture that it is from; "" without one."""
        return self.meta.get(PART, "")

    @property
    def source(self) -> str:
        """The set that its recordings are of, with which the names of a mixture's patients begin; "" without one."""
        return self.patient.partition(" ")[0] if self.part else ""

    @property
    def prompt(self) -> np.ndarray:
        """The ids int32 [n] of its text before the answer."""
        return self.text.ids[: self.text.prompt]

    def to_bytes(self, places: Iterable[int]) -> bytes:
        """Serialises the sequence, with segment numbers instead of the ECGs' tokens; text ids are little-endian int32."""
        text = [self.text.ids.astype("<i4").tobytes(), np.packbits(self.text.answers).tobytes(), self.text.prompt]
        fields = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        return msgpack.packb({"schema": SCHEMA, **fields, "text": text, "ecgs": [int(place) for place in places]})

    @classmethod
    def from_bytes(cls, data: bytes, read_segment: Callable[[int], np.ndarray]) -> "Sequence":
        """Reads what `to_bytes` wrote; `read_segment` returns a segment's tokens. Raises ShardsError for another schema."""
        fields = msgpack.unpackb(data)
        if fields.pop("schema", None) != SCHEMA:
            raise ShardsError(f"a record of another schema than {SCHEMA}; run --stage=prepare again")
        data, answers, prompt = fields.pop("text")
        ids = np.frombuffer(data, "<i4")
        text = Text(ids, np.unpackbits(np.frombuffer(answers, np.uint8), count=len(ids)).astype(bool), prompt)
        history = tuple((question, answer) for question, answer in fields.pop("history"))
        ecgs = tuple(read_segment(place) for place in fields.pop("ecgs"))
        return cls(**fields, ecgs=ecgs, text=text, history=history)


def ecg_to_bytes(ids: np.ndarray) -> bytes:
    """Serialises one segment's compact ids [n] as little-endian uint16."""
    return ids.astype("<u2").tobytes()


def read_ecg(data: bytes) -> np.ndarray:
    """Reads what `ecg_to_bytes` wrote, int32 [n]."""
    return np.frombuffer(data, "<u2").astype(np.int32)


def signal_to_bytes(segment: np.ndarray) -> bytes:
    """Serialises one clean segment [12, T] in mV as little-endian float16."""
    return segment.astype("<f2").tobytes()


def read_signal(data: bytes) -> np.ndarray:
    """Reads what `signal_to_bytes` wrote, float32 [12, T]."""
    return np.frombuffer(data, "<f2").astype(np.float32).reshape(12, -1)


@dataclass(frozen=True)
class Written:
    """A written file: its records, bytes and SHA-256."""

    records: int
    bytes: int
    sha256: str


def write_shard(path: Path, records: Iterable[bytes]) -> Written:
    """Writes an ArrayRecord file atomically: temporary name, flushed, counted, renamed.

    Raises ShardsError if it cannot be written or records are missing on disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    count = 0
    try:
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for record in records:
            writer.write(record)
            count += 1
        writer.close()
        written = _measure(partial, count)
        os.replace(partial, path)
    except RuntimeError as error:  # array_record's own, with the system's reason in it
        raise ShardsError(f"{path}: cannot be written: {error}; the same command continues from the complete files") from error
    finally:
        partial.unlink(missing_ok=True)
    return written


def _measure(path: Path, count: int) -> Written:
    """Flushes the file to disk and checks that it holds all records."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    reader = ArrayRecordReader(str(path))
    written = reader.num_records()
    reader.close()
    if written != count:
        raise ShardsError(f"{path}: {written} of {count} records reached the disk; is it full?")
    return Written(count, path.stat().st_size, file_digest(path))


@dataclass
class SplitSummary:
    """The content of one split; answers include their end, tokens excludes padding.

    turns_left_out: earlier turns of conversations for which there was no room; lengths: the file with every sequence's (tokens,
    tokens of answers that the loss is taken on), int32 [sequences, 2].
    """

    files: list[str] = field(default_factory=list)
    lengths: str = ""
    examples: int = 0
    sequences: int = 0
    ecg_cut: int = 0
    turns_left_out: int = 0
    tokens: int = 0
    longest_sequence: int = 0
    longest_answer: int = 0

    def add(self, other: "SplitSummary") -> None:
        """Adds another part of the same split."""
        self.files += other.files
        for name in ("examples", "sequences", "ecg_cut", "turns_left_out", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("longest_sequence", "longest_answer"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))


@dataclass(frozen=True)
class Manifest:
    """The content of a finished folder of shards.

    splits by name; ecg: the files of ECG tokens, in the order of segment numbers; written: every file's records, bytes
    and SHA-256; digests: of the ECG tokenizer, the text tokenizer and the settings; commonest: question -> its most frequent
    answer in training, of questions that the corpus repeats; "" -> that of any question; format, system: of the prompts;
    pretrained_tokens: of the pretrained text tokenizer, before others were added, 0 without one.
    """

    splits: dict[str, SplitSummary]
    ecg: list[str]
    written: dict[str, Written]
    digests: dict[str, str]
    commonest: dict[str, str]
    format: str
    system: str
    pretrained_tokens: int


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Completes the folder; all files must exist already. Raises OSError."""
    text = json.dumps({"schema": SCHEMA, **asdict(manifest)}, indent=1, ensure_ascii=False)
    write_whole(folder / MANIFEST, [text.encode()])


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a finished folder; raises ShardsError if it or a file is missing, damaged or of another size."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ShardsError(f"{path}: no such file; run --stage=prepare first")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        schema = fields.pop("schema")
        if schema != SCHEMA:
            raise ShardsError(f"{path}: schema {schema} found, {SCHEMA} expected; run --stage=prepare again")
        fields["splits"] = {split: SplitSummary(**fields["splits"][split]) for split in SPLITS}
        fields["written"] = {file: Written(**written) for file, written in fields["written"].items()}
        manifest = Manifest(**fields)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ShardsError(f"{path}: damaged ({error!r}); run --stage=prepare again") from error
    sizes = {file: (folder / file).stat().st_size if (folder / file).is_file() else None for file in manifest.written}
    changed = [file for file, size in sizes.items() if size != manifest.written[file].bytes]
    if changed:
        raise ShardsError(f"{folder}: the files {changed} are missing or of another size; run --stage=prepare again")
    return manifest


def write_lengths(path: Path, lengths: np.ndarray) -> Written:
    """Writes lengths int32 [sequences, 2] (tokens, answer tokens), from which epochs are planned without reading sequences."""
    return _write_numbers(path, lengths)


def _write_numbers(path: Path, numbers: np.ndarray) -> Written:
    data = numbers.astype("<i4").tobytes()
    write_whole(path, [data])
    return Written(len(numbers), len(data), hashlib.sha256(data).hexdigest())


def read_lengths(folder: Path, manifest: Manifest, split: str) -> np.ndarray:
    """Reads int32 [sequences, 2]: the tokens of every sequence, and on how many of them the loss is taken."""
    return np.fromfile(folder / manifest.splits[split].lengths, "<i4").reshape(-1, 2)


def write_parts(folder: Path, split: str, parts: np.ndarray) -> dict[str, Written]:
    """Writes which corpus of a mixture every sequence of a split is from: places int [sequences] in their sorted names."""
    name = _PARTS.format(split)
    return {name: _write_numbers(folder / name, parts)}


def read_parts(folder: Path, split: str) -> np.ndarray:
    """Reads what `write_parts` wrote, int32 [sequences]."""
    return np.fromfile(folder / _PARTS.format(split), "<i4")


def verify(folder: Path, manifest: Manifest) -> None:
    """Reads every file; raises ShardsError that names those whose checksum differs from the manifest's."""
    bad = [name for name, written in manifest.written.items() if file_digest(folder / name) != written.sha256]
    if bad:
        raise ShardsError(f"{folder}: the files {bad} are damaged (checksum); delete them and run --stage=prepare again")
