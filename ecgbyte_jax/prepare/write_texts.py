"""Writing the shards of texts, in tasks: each sequence is a question, an answer and the numbers of its ECGs' segments."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ecgbyte_jax.corpora.example import SPLITS, Example, Rejected
from ecgbyte_jax.errors import ExampleError
from ecgbyte_jax.inputs.prompt import ecg_room, share_room
from ecgbyte_jax.inputs.shards import Manifest, Sequence, SplitSummary, Written, write_lengths, write_shard
from ecgbyte_jax.inputs.text import encode_texts, load_encoder
from ecgbyte_jax.prepare.corpus import Corpus
from ecgbyte_jax.prepare.tasks import Target, collect, in_chunks, make_targets, run_once
from ecgbyte_jax.prepare.workers import Run
from ecgbyte_jax.prepare.write_ecg import EcgShards


@dataclass(frozen=True)
class TextTask:
    """Examples of one split that become one file, with (number, tokens) of their recordings' segments."""

    target: Target
    examples: tuple[Example, ...]
    segments: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]  # [example][segment][ECG] -> (number, tokens)
    max_length: int
    ends: int  # as in PromptIds

    def identity(self) -> list:
        """Returns the texts, the segments that they refer to, and the prompt's length and ends."""
        texts = [[e.id, e.patient, e.split, e.question, e.answer, e.meta] for e in self.examples]
        return [texts, self.segments, self.max_length, self.ends]


@dataclass
class Texts:
    """The written texts: a summary of each split, the files, the commonest answers, and the rejected examples."""

    splits: dict[str, SplitSummary]
    written: dict[str, Written]
    commonest: dict[str, str]
    rejected: list[Rejected]


def write_texts(
    shards: Path,
    summaries: Path,
    tokenizer: Path,
    corpus: Corpus,
    ecg: EcgShards,
    per_file: int,
    max_length: int,
    ends: int,
    run: Run,
) -> Texts:
    """Writes one sequence per example and segment, in example order; rejects examples without room for an ECG.

    per_file: sequences in a file; max_length: tokens of a sequence; ends: as in `PromptIds`.
    """
    parts: list[tuple[Target, list[Example]]] = []
    for split in SPLITS:
        examples = [example for example in corpus.examples if example.split == split]
        counts = [min(ecg.segments[record][1] for record in example.records) for example in examples]
        chunks = [*in_chunks(examples, counts, per_file)]
        parts += zip(make_targets(shards, summaries, tokenizer, split, len(chunks)), chunks)
    tasks = (TextTask(target, tuple(chunk), tuple(map(ecg.of, chunk)), max_length, ends) for target, chunk in parts)
    summaries = collect(run(write_part, tasks), "write shards", [len(chunk) for _, chunk in parts])
    asked = Counter(example.question for example in corpus.examples)
    return _gather(summaries, [chunk[0].split for _, chunk in parts], shards, asked)


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
    for split, parts in lengths.items():
        texts.splits[split].lengths = f"{split}-lengths.i4"
        texts.written[f"{split}-lengths.i4"] = write_lengths(shards / f"{split}-lengths.i4", np.concatenate(parts))
    # Ties go to the first answer in the alphabet, so that the order of reading does not matter.
    texts.commonest = {q: min(counts, key=lambda a: (-counts[a], a)) for q, counts in sorted(answers.items())}
    return texts


def write_part(task: TextTask) -> dict:
    """Writes one file of sequences; returns counts, the answers in training, and the rejected examples."""
    return run_once(task, _write_texts)


def _write_texts(task: TextTask) -> dict:
    encoder = _text_encoder(task.target.tokenizer, task.target.tokenizer_sha256)
    summary, rejected, answers = SplitSummary(), [], {"": Counter()}
    lengths: list[list[int]] = []
    ids = encode_texts(encoder, [text for e in task.examples for text in (e.question, e.answer)])

    def records() -> Iterator[bytes]:
        for example, segments, question, answer in zip(task.examples, task.segments, ids[::2], ids[1::2]):
            try:
                room = ecg_room(question, answer, task.max_length, task.ends, len(example.records))
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
    """Adds one sequence to the summary; returns its number of tokens."""
    length = max_length - room + sum(share_room(room, lengths))
    summary.sequences += 1
    summary.ecg_cut += sum(lengths) > room
    summary.tokens += length
    summary.longest_sequence = max(summary.longest_sequence, length)
    return length


@lru_cache(maxsize=1)
def _text_encoder(file: Path, sha256: str) -> Tokenizer:
    return load_encoder(file)


def make_manifest(ecg: EcgShards, texts: Texts, digests: dict[str, str]) -> Manifest:
    """Assembles the manifest that completes the shards."""
    return Manifest(texts.splits, list(ecg.written), ecg.written | texts.written, digests, texts.commonest)
