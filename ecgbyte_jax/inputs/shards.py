"""Token shards: ArrayRecord files of ECG tokens and of texts, and the manifest that says what stands in them.

The ECG tokens stand apart (`ecg-*.array_record`, one record a segment), and each sequence of texts (`train-*`, ...) names its
segments by their number: several questions about one recording share its tokens.
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

from ecgbyte_jax.corpora.example import SPLITS
from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.files import write_whole

SCHEMA = 3
MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False)
class Sequence:
    """One segment of a recording (or of two that are compared) with its question and answer.

    ecgs: compact ids int32 [n] of each ECG; question_ids, answer_ids: text tokens int32; meta: what the corpus told beside.
    """

    id: str
    patient: str
    segment: int
    question: str
    answer: str
    meta: dict
    ecgs: tuple[np.ndarray, ...]
    question_ids: np.ndarray
    answer_ids: np.ndarray

    def to_bytes(self, places: Iterable[int]) -> bytes:
        """All but the ECGs' tokens, of which only the numbers of their segments are written; text ids little-endian int32."""
        arrays = {name: getattr(self, name).astype("<i4").tobytes() for name in ("question_ids", "answer_ids")}
        texts = {name: getattr(self, name) for name in ("id", "patient", "segment", "question", "answer", "meta")}
        return msgpack.packb({"schema": SCHEMA, **texts, **arrays, "ecgs": [int(place) for place in places]})

    @classmethod
    def from_bytes(cls, data: bytes, read_segment: Callable[[int], np.ndarray]) -> "Sequence":
        """What `to_bytes` wrote; `read_segment` gives a segment's tokens. Raises ShardsError for another schema."""
        found = msgpack.unpackb(data)
        if found.pop("schema", None) != SCHEMA:
            raise ShardsError(f"a record of another schema than {SCHEMA}; run --stage=prepare again")
        question, answer = (np.frombuffer(found.pop(name), "<i4") for name in ("question_ids", "answer_ids"))
        ecgs = tuple(read_segment(place) for place in found.pop("ecgs"))
        return cls(**found, ecgs=ecgs, question_ids=question, answer_ids=answer)


def ecg_to_bytes(ids: np.ndarray) -> bytes:
    """One segment's compact ids [n] as little-endian uint16."""
    return ids.astype("<u2").tobytes()


def read_ecg(data: bytes) -> np.ndarray:
    """What `ecg_to_bytes` wrote, int32 [n]."""
    return np.frombuffer(data, "<u2").astype(np.int32)


@dataclass(frozen=True)
class Written:
    """A file as it was written: its records, bytes and SHA-256."""

    records: int
    bytes: int
    sha256: str


def write_shard(path: Path, records: Iterable[bytes]) -> Written:
    """Writes an ArrayRecord file that is either whole or not there: another name, flushed, counted, renamed.

    Raises ShardsError where the disk took less than was written.
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
    except RuntimeError as error:  # array_record's own, with the reason of the system in it
        raise ShardsError(f"{path}: cannot be written: {error}; the same command goes on from what is whole") from error
    finally:
        partial.unlink(missing_ok=True)
    return written


def _measure(path: Path, count: int) -> Written:
    """Flushes the file to the disk and looks whether all of it came there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    reader = ArrayRecordReader(str(path))
    found = reader.num_records()
    reader.close()
    if found != count:
        raise ShardsError(f"{path}: {found} of {count} records came to the disk; is it full?")
    return Written(count, path.stat().st_size, digest)


@dataclass
class SplitSummary:
    """What one split holds; longest_answer counts its tokens with the eos, tokens all but padding.

    lengths: the file of every sequence's (tokens, answer tokens with the eos), int32 [sequences, 2].
    """

    files: list[str] = field(default_factory=list)
    lengths: str = ""
    examples: int = 0
    sequences: int = 0
    ecg_cut: int = 0
    tokens: int = 0
    longest_sequence: int = 0
    longest_answer: int = 0

    def add(self, other: "SplitSummary") -> None:
        """Counts what another part of the same split holds."""
        self.files += other.files
        for name in ("examples", "sequences", "ecg_cut", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("longest_sequence", "longest_answer"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))


@dataclass(frozen=True)
class Manifest:
    """What a finished folder of shards holds.

    splits by name; ecg: the files of ECG tokens, in the order of the segments' numbers; written: every file's records, bytes
    and SHA-256; digests: of the ECG tokenizer, the text tokenizer and the settings; commonest: of questions that
    the corpus asks more than once, question -> the answer most often given to it in training; "" -> to any question.
    """

    splits: dict[str, SplitSummary]
    ecg: list[str]
    written: dict[str, Written]
    digests: dict[str, str]
    commonest: dict[str, str]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Makes the folder complete; the files must be there already."""
    text = json.dumps({"schema": SCHEMA, **asdict(manifest)}, indent=1, ensure_ascii=False)
    write_whole(folder / MANIFEST, [text.encode()])


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished folder; raises ShardsError where it or one of its files is missing or of another size."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ShardsError(f"{path}: no such file; run --stage=prepare first")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        schema = found.pop("schema")
        if schema != SCHEMA:
            raise ShardsError(f"{path}: schema {schema} found, {SCHEMA} wanted; run --stage=prepare again")
        found["splits"] = {split: SplitSummary(**found["splits"][split]) for split in SPLITS}
        found["written"] = {file: Written(**written) for file, written in found["written"].items()}
        manifest = Manifest(**found)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ShardsError(f"{path}: damaged ({error!r}); run --stage=prepare again") from error
    sizes = {file: (folder / file).stat().st_size if (folder / file).is_file() else None for file in manifest.written}
    gone = [file for file, size in sizes.items() if size != manifest.written[file].bytes]
    if gone:
        raise ShardsError(f"{folder}: the files {gone} are missing or of another size; run --stage=prepare again")
    return manifest


def write_lengths(path: Path, lengths: np.ndarray) -> Written:
    """int32 [sequences, 2], tokens and answer tokens: an epoch is planned from them, without reading the sequences."""
    data = lengths.astype("<i4").tobytes()
    write_whole(path, [data])
    return Written(len(lengths), len(data), hashlib.sha256(data).hexdigest())


def read_lengths(folder: Path, manifest: Manifest, split: str) -> np.ndarray:
    """int32 [sequences, 2]: the tokens of every sequence, and how many of them are the answer's and the eos."""
    return np.fromfile(folder / manifest.splits[split].lengths, "<i4").reshape(-1, 2)


def verify(folder: Path, manifest: Manifest) -> None:
    """Reads every file; raises ShardsError that names those whose checksum is not the manifest's."""
    bad = []
    for name, written in manifest.written.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != written.sha256:
                bad.append(name)
    if bad:
        raise ShardsError(f"{folder}: the files {bad} are damaged (checksum); delete them and run --stage=prepare again")
