"""Writing token shards in tasks: ECG tokens from the cached symbols, then the texts that refer to them.

Each task writes one file and, beside it, a summary of what stands there; a task whose summary and file are there already does
nothing, so that a run that was killed goes on where it was. Axes: S segments, L leads (12), T samples of a segment.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ecgbyte_jax.corpora.example import SPLITS, Example, Rejected
from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ExampleError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.inputs.prompt import ecg_room, share_room
from ecgbyte_jax.inputs.shards import Manifest, Sequence, SplitSummary, Written, ecg_to_bytes, write_lengths, write_shard
from ecgbyte_jax.inputs.text import encode_texts, load_encoder
from ecgbyte_jax.run.corpus import Corpus
from ecgbyte_jax.run.logbook import progress
from ecgbyte_jax.run.quantize import Signals
from ecgbyte_jax.run.symbol_cache import Place
from ecgbyte_jax.run.workers import Run

_SEGMENTS_AT_ONCE = 1024
_ECG_SEGMENTS = 5_000  # of an ECG shard, at most, where a recording is not longer


@dataclass(frozen=True)
class Target:
    """Where a task writes, and the digests of the tokenizers that it writes with."""

    shard: Path
    summary: Path
    tokenizer: Path
    tokenizer_sha256: str


@dataclass(frozen=True)
class EcgTask:
    """Recordings whose segments become one file of ECG tokens."""

    target: Target
    places: tuple[Place, ...]


@dataclass(frozen=True)
class TextTask:
    """Examples of one split that become one file: with each, the (number, tokens) of its recordings' segments."""

    target: Target
    examples: tuple[Example, ...]
    segments: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]  # [example][segment][ECG] -> (number, tokens)
    max_length: int


def write_ecg(shards: Path, summaries: Path, tokenizer: Path, signals: Signals, records: list[Path], run: Run) -> "EcgShards":
    """Encodes and writes all segments of the recordings, in their order."""
    counts = [signals.place(record).segments for record in records]
    chunks = [*_chunks(records, counts, _ECG_SEGMENTS)]
    targets = _targets(shards, summaries, tokenizer, "ecg", len(chunks))
    tasks = (EcgTask(target, tuple(map(signals.place, chunk))) for target, chunk in zip(targets, chunks))
    found = _collect(run(encode_part, tasks), "encode", [len(chunk) for chunk in chunks])
    first = np.cumsum([0, *counts])[:-1].tolist()
    written = {target.shard.name: Written(**summary["written"]) for target, summary in zip(targets, found)}
    lengths = np.concatenate([summary["lengths"] for summary in found])
    return EcgShards(written, lengths, dict(zip(records, zip(first, counts))))


def _collect(results: Iterator[tuple[int, dict]], what: str, sizes: list[int]) -> list[dict]:
    """The summaries of all tasks in the tasks' order, their lengths as int32. Tasks are made when they are sent and not kept,
    so that memory does not grow with them; `sizes` are what they add to the bar.
    """
    found: dict[int, dict] = {}
    with progress(what, sum(sizes)) as report:
        for number, summary in results:
            found[number] = summary | {"lengths": np.array(summary["lengths"], np.int32)}
            report(sum(sizes[done] for done in found))
    return [found[number] for number in range(len(sizes))]


@dataclass(frozen=True)
class EcgShards:
    """What was written of the ECGs: the files, tokens of each segment int32 [S], and (first segment, segments) by recording."""

    written: dict[str, Written]
    lengths: np.ndarray
    segments: dict[Path, tuple[int, int]]

    def of(self, example: Example) -> tuple[tuple[tuple[int, int], ...], ...]:
        """(number, tokens) of each ECG in each of the example's segments; of two recordings the shorter one counts."""
        starts = [self.segments[record] for record in example.records]
        count = min(segments for _, segments in starts)
        return tuple(tuple((first + s, int(self.lengths[first + s])) for first, _ in starts) for s in range(count))


@dataclass
class Texts:
    """What was written of the texts."""

    splits: dict[str, SplitSummary]
    written: dict[str, Written]
    commonest: dict[str, str]
    rejected: list[Rejected]


def write_texts(
    shards: Path, summaries: Path, tokenizer: Path, corpus: Corpus, ecg: EcgShards, per_file: int, max_length: int, run: Run
) -> Texts:
    """One sequence an example and segment, in the order of the examples; those whose texts leave no room are told."""
    parts: list[tuple[Target, list[Example]]] = []
    for split in SPLITS:
        examples = [example for example in corpus.examples if example.split == split]
        counts = [min(ecg.segments[record][1] for record in example.records) for example in examples]
        chunks = [*_chunks(examples, counts, per_file)]
        parts += zip(_targets(shards, summaries, tokenizer, split, len(chunks)), chunks)
    tasks = (TextTask(target, tuple(chunk), tuple(map(ecg.of, chunk)), max_length) for target, chunk in parts)
    found = _collect(run(write_part, tasks), "write shards", [len(chunk) for _, chunk in parts])
    asked = Counter(example.question for example in corpus.examples)
    return _gather(found, [chunk[0].split for _, chunk in parts], shards, asked)


def _gather(summaries: list[dict], splits: list[str], shards: Path, asked: Counter[str]) -> Texts:
    texts = Texts({split: SplitSummary() for split in SPLITS}, {}, {}, [])
    answers: dict[str, Counter[str]] = {}
    lengths = {split: [np.empty((0, 2), np.int32)] for split in SPLITS}
    for summary, split in zip(summaries, splits):
        part = SplitSummary(**summary["split"])
        texts.splits[split].add(part)
        lengths[split].append(summary["lengths"].reshape(-1, 2))
        texts.rejected += [Rejected(**rejected) for rejected in summary["rejected"]]
        if part.files:
            texts.written[part.files[0]] = Written(**summary["written"])
        for question, counts in summary["answers"].items():
            if not question or asked[question] > 1:
                answers.setdefault(question, Counter()).update(counts)
    for split, found in lengths.items():
        texts.splits[split].lengths = f"{split}-lengths.i4"
        texts.written[f"{split}-lengths.i4"] = write_lengths(shards / f"{split}-lengths.i4", np.concatenate(found))
    # Of answers that are equally common the first in the alphabet, so that the order of reading does not matter.
    texts.commonest = {q: min(counts, key=lambda a: (-counts[a], a)) for q, counts in sorted(answers.items())}
    return texts


def _targets(shards: Path, summaries: Path, tokenizer: Path, name: str, count: int) -> list[Target]:
    """ecg-00000, ecg-00001, ..."""
    digest, files = hashlib.sha256(tokenizer.read_bytes()).hexdigest(), [f"{name}-{number:05d}" for number in range(count)]
    return [Target(shards / f"{file}.array_record", summaries / f"{file}.json", tokenizer, digest) for file in files]


def _chunks(items: list, sizes: list[int], limit: int) -> Iterator[list]:
    """Consecutive items whose sizes add up to `limit` at most; a larger item stands alone."""
    chunk, total = [], 0
    for item, size in zip(items, sizes):
        if chunk and total + size > limit:
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += size
    if chunk:
        yield chunk


def encode_part(task: EcgTask) -> dict:
    """Writes one file of ECG tokens; returns the tokens of each segment and what was written."""
    return _once(task, task.target, _encode)


def _encode(task: EcgTask) -> dict:
    bpe, lengths = _bpe(task.target.tokenizer, task.target.tokenizer_sha256), []

    def records() -> Iterator[bytes]:
        for symbols in _batches(task.places):
            for ids in bpe.encode_batch(symbols.reshape(len(symbols), -1)):
                lengths.append(len(ids))
                yield ecg_to_bytes(ids)

    written = write_shard(task.target.shard, records())
    return {"lengths": lengths, "written": asdict(written)}


def _batches(places: tuple[Place, ...]) -> Iterator[np.ndarray]:
    """Symbols uint8 [S, 12, T], many segments at a time."""
    waiting: list[np.ndarray] = []
    for place in places:
        waiting.append(place.read())
        if sum(map(len, waiting)) >= _SEGMENTS_AT_ONCE:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def write_part(task: TextTask) -> dict:
    """Writes one file of sequences; returns counts, the answers given in training, and what was set aside."""
    return _once(task, task.target, _write_texts)


def _write_texts(task: TextTask) -> dict:
    encoder = _text_encoder(task.target.tokenizer, task.target.tokenizer_sha256)
    summary, rejected, answers = SplitSummary(), [], {"": Counter()}
    lengths: list[list[int]] = []
    ids = encode_texts(encoder, [text for e in task.examples for text in (e.question, e.answer)])

    def records() -> Iterator[bytes]:
        for example, segments, question, answer in zip(task.examples, task.segments, ids[::2], ids[1::2]):
            try:
                room = ecg_room(question, answer, task.max_length, len(example.records))
            except ExampleError as error:
                rejected.append(asdict(Rejected(example.id, str(example.records[0]), str(error))))
                continue
            summary.examples += 1
            summary.longest_answer = max(summary.longest_answer, len(answer) + 1)
            for number, ecgs in enumerate(segments):
                length = _count(summary, task.max_length, room, [length for _, length in ecgs])
                lengths.append([length, len(answer) + 1])
                texts = (example.id, example.patient, number, example.question, example.answer, example.meta)
                yield Sequence(*texts, (), question, answer).to_bytes(place for place, _ in ecgs)
                if example.split == "train":
                    answers.setdefault(example.question, Counter())[example.answer] += 1
                    answers[""][example.answer] += 1

    written = write_shard(task.target.shard, records())
    if summary.sequences:
        summary.files = [task.target.shard.name]
    else:
        task.target.shard.unlink()
    return {
        "split": asdict(summary),
        "lengths": lengths,
        "written": asdict(written),
        "rejected": rejected,
        "answers": {question: dict(counts) for question, counts in answers.items() if counts},
    }


def _count(summary: SplitSummary, max_length: int, room: int, lengths: list[int]) -> int:
    """Counts one sequence; returns its tokens."""
    length = max_length - room + sum(share_room(room, lengths))
    summary.sequences += 1
    summary.ecg_cut += sum(lengths) > room
    summary.tokens += length
    summary.longest_sequence = max(summary.longest_sequence, length)
    return length


def _once(task: EcgTask | TextTask, target: Target, work: Callable) -> dict:
    """The summary of an earlier run of the same task, where its file is whole; otherwise of this one."""
    digest = hashlib.sha256(repr(task).encode()).hexdigest()
    try:
        found = json.loads(target.summary.read_text(encoding="utf-8"))
        files = 0 if "split" in found and not found["split"]["files"] else 1
        whole = found["task"] == digest and (not files or target.shard.stat().st_size == found["written"]["bytes"])
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        whole = False
    if whole:
        return found
    found = work(task) | {"task": digest}
    write_whole(target.summary, [json.dumps(found).encode()])
    return found


@lru_cache(maxsize=1)
def _bpe(path: Path, sha256: str) -> BPE:
    return ECGTokenizer.load(path).bpe


@lru_cache(maxsize=1)
def _text_encoder(file: Path, sha256: str) -> Tokenizer:
    return load_encoder(file)


def make_manifest(ecg: EcgShards, texts: Texts, digests: dict[str, str]) -> Manifest:
    """What `inputs.shards.write_manifest` writes at the end."""
    return Manifest(texts.splits, list(ecg.written), ecg.written | texts.written, digests, texts.commonest)
