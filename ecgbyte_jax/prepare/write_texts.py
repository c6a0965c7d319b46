"""Writing the shards of texts, in tasks: each sequence is a text, and the numbers of its ECGs' segments."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.corpora.example import PART, SPLITS, Example, Rejected
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.errors import ExampleError
from ecgbyte_jax.inputs.form import Form, fit, open_form
from ecgbyte_jax.inputs.prompt import Dialogue, PromptIds, share_room
from ecgbyte_jax.inputs.shards import Manifest, Sequence, SplitSummary, Written, write_lengths, write_parts, write_shard
from ecgbyte_jax.prepare.corpus import Corpus
from ecgbyte_jax.prepare.tasks import Target, collect, in_chunks, make_targets, run_once
from ecgbyte_jax.prepare.workers import Run
from ecgbyte_jax.prepare.write_ecg import EcgShards


@dataclass(frozen=True)
class Unit:
    """The examples of one text and its turns: a question with its history, a conversation, or questions put together."""

    examples: tuple[Example, ...]
    turns: tuple[tuple[str, str], ...]

    @property
    def joined(self) -> bool:
        """Whether its questions were put together, each of which could be a text of its own."""
        return len(self.turns) > 1 and len(self.last.turns) == 1

    @property
    def last(self) -> Example:
        """The example whose answer is at the end."""
        return self.examples[-1]


@dataclass(frozen=True)
class TextForm:
    """How the texts are made: settings of the prompt, and the ids that a plain one needs beside its texts'.

    every_answer: a conversation in training is one text, with the loss on every answer; together: as many training questions
    about the same ECGs, in an order drawn by `seed`, are made a conversation where their ECGs fit beside them;
    pretrained_tokens: as in Manifest; files: the digest of the text tokenizer's files, with the chat template and the special
    tokens that it writes; counted: the split whose commonest answers are a control, "test" where nothing is trained.
    """

    format: str
    system: str
    max_length: int
    every_answer: bool
    together: int
    seed: int
    ids: PromptIds
    files: str
    pretrained_tokens: int
    counted: str = "train"

    def identity(self) -> list:
        """Returns what the texts depend on beside the tokenizer's own file."""
        special = self.ids.bos, self.ids.eos, self.ids.sig_start, self.ids.sig_end
        # Beside together and seed, which are in the units.
        parts = [self.format, self.system, self.max_length, self.every_answer, self.files, *special]
        return parts if self.counted == "train" else [*parts, self.counted]


@dataclass(frozen=True)
class TextTask:
    """Units of one split that become one file, with (number, tokens) of their recordings' segments."""

    target: Target
    units: tuple[Unit, ...]
    segments: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]  # [unit][segment][ECG] -> (number, tokens)
    how: TextForm

    def identity(self) -> list:
        """Returns the texts, the segments that they refer to, and how they become ids."""
        texts = [[e.id, e.patient, e.split, e.turns, e.previous, e.meta] for unit in self.units for e in unit.examples]
        return [texts, [unit.turns for unit in self.units], self.segments, self.how.identity()]


@dataclass
class Texts:
    """The written texts: a summary of each split, the files, the commonest answers, and the rejected examples."""

    splits: dict[str, SplitSummary]
    written: dict[str, Written]
    commonest: dict[str, str]
    rejected: list[Rejected]


def write_texts(
    shards: Path, summaries: Path, tokenizer: Path, corpus: Corpus, ecg: EcgShards, per_file: int, how: TextForm, run: Run
) -> Texts:
    """Writes one sequence per unit and segment, in example order; rejects examples without room for an ECG.

    per_file: sequences in a file.
    """
    parts: list[tuple[Target, list[Unit]]] = []
    for split in SPLITS:
        examples = [example for example in corpus.examples if example.split == split]
        units = in_units(examples, how) if split == "train" else [Unit((e,), e.turns) for e in examples]
        counts = [len(ecg.of(unit.last)) for unit in units]
        chunks = [*in_chunks(units, counts, per_file)]
        parts += zip(make_targets(shards, summaries, tokenizer, split, len(chunks)), chunks)
    tasks = (TextTask(target, tuple(chunk), tuple(ecg.of(unit.last) for unit in chunk), how) for target, chunk in parts)
    summaries = collect(run(write_part, tasks), "write shards", [len(chunk) for _, chunk in parts])
    asked = Counter(example.question for example in corpus.examples)
    return _gather(summaries, [chunk[0].last.split for _, chunk in parts], shards, asked)


def in_units(examples: list[Example], how: TextForm) -> list[Unit]:
    """The training examples one by one, or with `every_answer` a conversation's together, and up to `together` lone ones."""
    if not how.every_answer:
        return [Unit((example,), example.turns) for example in examples]
    conversations: list[list[Example]] = []
    for example in examples:
        if conversations and example.previous and example.previous == conversations[-1][-1].id:
            conversations[-1].append(example)
        else:
            conversations.append([example])
    units: list[Unit] = []
    lone: dict[tuple[str, tuple[SignalSource, ...], int], list[Example]] = {}
    for asked in conversations:
        if how.together > 1 and len(asked[-1].turns) == 1:
            about = asked[0].meta.get(PART, ""), asked[0].records, asked[0].segment
            lone.setdefault(about, []).extend(asked)
        else:
            units.append(Unit(tuple(asked), asked[-1].turns))
    for number, asked in enumerate(lone.values()):
        order = np.random.default_rng([how.seed, number]).permutation(len(asked))
        for first in range(0, len(order), how.together):
            chosen = tuple(asked[place] for place in order[first : first + how.together])
            units.append(Unit(chosen, tuple((example.question, example.answer) for example in chosen)))
    return units


def _gather(summaries: list[dict], splits: list[str], shards: Path, asked: Counter[str]) -> Texts:
    texts = Texts({split: SplitSummary() for split in SPLITS}, {}, {}, [])
    answers: dict[str, Counter[str]] = {}
    lengths = {split: [np.empty((0, 2), np.int32)] for split in SPLITS}
    parts_of: dict[str, list[str]] = {split: [] for split in SPLITS}
    for summary, split in zip(summaries, splits):
        part = SplitSummary(**summary["split"])
        texts.splits[split].add(part)
        lengths[split].append(summary["lengths"].reshape(-1, 2))
        parts_of[split] += summary.get("parts", [])
        texts.rejected += [Rejected(**rejected) for rejected in summary["rejected"]]
        if part.files:
            texts.written[part.files[0]] = Written(**summary["written"])
        for question, counts in summary["answers"].items():
            if not question or asked[question] > 1:
                answers.setdefault(question, Counter()).update(counts)
    for split, parts in lengths.items():
        texts.splits[split].lengths = f"{split}-lengths.i4"
        texts.written[f"{split}-lengths.i4"] = write_lengths(shards / f"{split}-lengths.i4", np.concatenate(parts))
    places = {name: place for place, name in enumerate(sorted({name for names in parts_of.values() for name in names}))}
    for split, names in parts_of.items() if places else ():
        texts.written |= write_parts(shards, split, np.array([places[name] for name in names], np.int32))
    # Ties go to the first answer in the alphabet, so that the order of reading does not matter.
    texts.commonest = {q: min(counts, key=lambda a: (-counts[a], a)) for q, counts in sorted(answers.items())}
    return texts


def write_part(task: TextTask) -> dict:
    """Writes one file of sequences; returns counts, the answers of the split that is counted, and the rejected examples."""
    return run_once(task, _write_texts)


def _write_texts(task: TextTask) -> dict:
    how, target = task.how, task.target
    form = open_form(how.format, how.system, target.tokenizer.parent, how.ids, how.files)
    summary, rejected, answers = SplitSummary(), [], {"": Counter()}
    lengths: list[list[int]] = []
    names: list[str] = []  # of a mixture's corpora
    every = how.every_answer and task.units[0].last.split == "train"
    parts = [
        (unit, segments)
        for whole, segments in zip(task.units, task.segments)
        for unit in _split(whole, segments, form, how.max_length)
    ]
    dialogues = [Dialogue(len(unit.last.records), unit.turns) for unit, _ in parts]
    texts = fit(lambda left: form.texts(left, every), dialogues, how.max_length)

    def records() -> Iterator[bytes]:
        for (unit, segments), (text, left_out) in zip(parts, texts):
            if isinstance(text, ExampleError):
                rejected.extend(asdict(Rejected(example.id, str(example.records[0]), str(text))) for example in unit.examples)
                continue
            example, room = unit.last, how.max_length - len(text)
            if example.segment >= 0 and any(sum(length for _, length in ecgs) > room for ecgs in segments):
                reason = "its ECG must be cut to fit into prompt.max_length, and its answer is measured in all of it"
                rejected.extend(asdict(Rejected(one.id, str(one.records[0]), reason)) for one in unit.examples)
                continue
            summary.examples += len(unit.examples)
            summary.turns_left_out += left_out
            supervised = int(text.answers.sum())
            summary.longest_answer = max(summary.longest_answer, supervised)
            for number, ecgs in enumerate(segments, max(example.segment, 0)):
                length = _count(summary, how.max_length, room, [length for _, length in ecgs])
                lengths.append([length, supervised])
                names.extend([example.meta[PART]] if PART in example.meta else [])
                about = (example.id, example.patient, number, example.question, example.answer, example.meta)
                sequence = Sequence(*about, (), text, unit.turns[left_out:-1], example.previous)
                yield sequence.to_bytes(place for place, _ in ecgs)
                for answered in unit.examples if example.split == how.counted else ():
                    answers.setdefault(answered.question, Counter())[answered.answer] += 1
                    answers[""][answered.answer] += 1

    written = write_shard(task.target.shard, records())
    if summary.sequences:
        summary.files = [task.target.shard.name]
    else:
        task.target.shard.unlink()
    return {
        "split": asdict(summary),
        "lengths": lengths,
        **({"parts": names} if names else {}),
        "written": asdict(written),
        "rejected": rejected,
        "answers": {question: dict(counts) for question, counts in answers.items() if counts},
    }


def _split(unit: Unit, segments: tuple[tuple[tuple[int, int], ...], ...], form: Form, max_length: int) -> list[Unit]:
    """Halves of questions that were put together, and halves of those, until their longest ECGs fit beside them."""
    if not unit.joined:
        return [unit]
    longest = max(sum(length for _, length in ecgs) for ecgs in segments)
    (text,) = form.texts([Dialogue(len(unit.last.records), unit.turns)], True)
    if isinstance(text, ExampleError) or len(text) + longest <= max_length:
        return [unit]
    middle = len(unit.turns) // 2
    halves = Unit(unit.examples[:middle], unit.turns[:middle]), Unit(unit.examples[middle:], unit.turns[middle:])
    return [part for half in halves for part in _split(half, segments, form, max_length)]


def _count(summary: SplitSummary, max_length: int, room: int, lengths: list[int]) -> int:
    """Adds one sequence to the summary; returns its number of tokens."""
    length = max_length - room + sum(share_room(room, lengths))
    summary.sequences += 1
    summary.ecg_cut += sum(lengths) > room
    summary.tokens += length
    summary.longest_sequence = max(summary.longest_sequence, length)
    return length


def make_manifest(ecg: EcgShards, texts: Texts, digests: dict[str, str], how: TextForm) -> Manifest:
    """Assembles the manifest that completes the shards."""
    written, prompts = ecg.written | texts.written, (how.format, how.system, how.pretrained_tokens)
    return Manifest(texts.splits, list(ecg.written), written, digests, texts.commonest, *prompts)
