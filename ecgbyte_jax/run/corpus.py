"""The examples of a run: where its files lie, which examples are usable, and which were set aside with the reason."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ecgbyte_jax.corpora import mimic, ptbxl
from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.corpora.ecg_chat import CONVERSATIONS, read_conversations
from ecgbyte_jax.corpora.ecg_qa import read_published_questions, read_questions
from ecgbyte_jax.corpora.example import Example, Rejected, published_splits
from ecgbyte_jax.corpora.own import read_table
from ecgbyte_jax.errors import ConfigError, CorpusError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run import stages
from ecgbyte_jax.run.logbook import console, progress
from ecgbyte_jax.run.symbol_cache import record_key

CORPORA = ("ptbxl", "mimic", "ecg_qa", "ecg_qa_mimic", "ecg_chat", "own")
_DEMO_VERSION = 1  # of the synthetic data


@dataclass(frozen=True)
class Paths:
    """Where preparation reads and writes."""

    synthetic: Path
    root: Path
    ecgqa_root: Path
    ecg_tokenizer: Path
    text_tokenizer: Path
    shards: Path
    summaries: Path
    cache: Path
    quarantine: Path
    marker: Path

    @classmethod
    def of(cls, config: ConfigDict, workdir: Path) -> "Paths":
        synthetic = workdir / "synthetic"
        root, ecgqa_root = synthetic / "ptbxl", synthetic / "ecgqa"
        if not config.data.synthetic_records:
            root = Path(config.data.root)
            ecgqa_root = Path(config.data.ecgqa_root or Path(os.path.abspath(root)).parent / "ecgqa")
        return cls(
            synthetic=synthetic,
            root=root,
            ecgqa_root=ecgqa_root,
            ecg_tokenizer=workdir / "tokenizer" / "ecg_tokenizer.json",
            text_tokenizer=workdir / "tokenizer" / "text",
            shards=workdir / "shards",
            summaries=workdir / "prepare" / "shards",
            cache=Path(config.prepare.cache or workdir / "cache"),
            quarantine=workdir / "prepare" / "quarantine.jsonl",
            marker=workdir / "prepare" / "stage.json",
        )


@dataclass
class Corpus:
    """The usable examples, and those set aside with the reason; `read` counts both and never changes."""

    read: int
    examples: list[Example]
    rejected: list[Rejected]
    quarantine: Path
    max_bad_fraction: float
    _keys: dict[Path, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, found: Iterable[Example | Rejected], quarantine: Path, max_bad_fraction: float, published_split: bool = False
    ) -> "Corpus":
        """Of examples with the same id the first is kept and the others are rejected.

        Raises CorpusError where a patient or a recording is in two splits, which `published_split` only warns of, and where a
        recording is of two patients.
        """
        examples: dict[str, Example] = {}
        rejected: list[Rejected] = []
        for item in found:
            if isinstance(item, Rejected):
                rejected.append(item)
            elif item.id in examples:
                rejected.append(Rejected(item.id, str(item.records[0]), "another example before it has the same id"))
            else:
                examples[item.id] = item
        corpus = cls(len(examples) + len(rejected), list(examples.values()), rejected, quarantine, max_bad_fraction)
        corpus.check_patients(published_split)
        corpus.check_recordings(published_split)
        return corpus

    def check_patients(self, published_split: bool) -> None:
        """Raises CorpusError, or warns with the count, where patients stand in more than one split."""
        splits: dict[str, str] = {}
        shared: dict[str, set[str]] = {}
        for example in self.examples:
            for patient in example.patients:
                if splits.setdefault(patient, example.split) != example.split:
                    shared.setdefault(patient, {splits[patient]}).add(example.split)
        if not shared:
            return
        first = min(shared)
        told = f"{len(shared)} of {len(splits)} patients stand in more than one split, say {first!r} in {sorted(shared[first])}"
        if not published_split:
            raise CorpusError(f"{told}; a score on them would be of recordings that training has seen. Split by patient")
        console.print(f"warning: {told} (data.published_split): scores are not those of unseen patients", markup=False)

    def check_recordings(self, published_split: bool) -> None:
        """Raises CorpusError, naming two examples, where a recording is of two patients or (not as published) in two splits."""
        first: dict[Path, Example] = {}
        for example in self.examples:
            for record in example.records:
                before = first.setdefault(record, example)
                owners = before.owner(record), example.owner(record)
                if owners[0] != owners[1] or (before.split != example.split and not published_split):
                    raise CorpusError(
                        f"recording '{record}': example {before.id!r} of patient {owners[0]!r} is in split {before.split!r}, "
                        f"{example.id!r} of patient {owners[1]!r} in split {example.split!r}; one patient and one split "
                        "expected: correct them, or name both patients of a comparison in the field patients"
                    )

    def records(self, split: str | None = None) -> list[Path]:
        """The distinct recordings (of one split), in the order in which they are first asked about."""
        return list(dict.fromkeys(record for e in self.examples if split in (None, e.split) for record in e.records))

    def keys(self, records: list[Path], root: Path) -> np.ndarray:
        """The cache's keys of recordings below `root`, uint64 [R]; their files are looked at once, as networks are slow."""
        for record in records:
            if record not in self._keys:
                self._keys[record] = record_key(record, root)
        return np.array([self._keys[record] for record in records], np.uint64)

    def set_aside(self, bad: list[Rejected]) -> None:
        """Moves examples to the rejected ones and writes all of those to the quarantine file.

        Raises CorpusError where they are too many, or no example is left to train on.
        """
        ids = {rejected.id for rejected in bad}
        self.examples = [example for example in self.examples if example.id not in ids]
        self.rejected += bad
        lines = (json.dumps(asdict(rejected), ensure_ascii=False, default=str) + "\n" for rejected in self.rejected)
        # A path that is not UTF-8 is written with JSON's own escapes.
        write_whole(self.quarantine, (line.encode(errors="backslashreplace") for line in lines))
        if len(self.rejected) > self.max_bad_fraction * self.read:
            first = self.rejected[0]
            raise CorpusError(
                f"{len(self.rejected)} of {self.read} examples cannot be used, more than data.max_bad_fraction "
                f"{self.max_bad_fraction}; the first: {first.file}: {first.reason}; all of them: {self.quarantine}"
            )
        if not any(example.split == "train" for example in self.examples):
            raise CorpusError(f"{self.read} examples read, none of them usable for training; set aside: {self.quarantine}")


def open_corpus(config: ConfigDict, paths: Paths) -> Corpus:
    """The examples that the config names; makes the synthetic recordings first where it asks for them."""
    _make_demo_data(config, paths)
    found, published = read_corpus(config, paths), config.data.published_split
    if published and config.data.corpus in ("mimic", "ecg_chat"):
        found = _published_split(found)
    return Corpus.of(found, paths.quarantine, config.data.max_bad_fraction, published)


def digest(corpus: Corpus, root: Path) -> str:
    """Of the examples themselves and of the recordings' files below `root`."""
    found = hashlib.sha256()
    for e in corpus.examples:
        names = [os.path.relpath(record, root) for record in e.records]
        row = [e.id, e.patient, e.split, names, e.question, e.answer, e.meta]
        found.update(json.dumps(row).encode() + b"\n")
    for r in corpus.rejected:
        found.update(json.dumps([r.id, r.reason]).encode() + b"\n")
    found.update(corpus.keys(corpus.records(), root).tobytes())
    return found.hexdigest()


def _make_demo_data(config: ConfigDict, paths: Paths) -> None:
    records = config.data.synthetic_records
    folder = paths.synthetic
    settings = {"version": _DEMO_VERSION, "records": records, "seed": config.seed}
    stage = stages.Stage("synthetic data", folder / "stage.json", settings, "")
    if not records or stage.finished():
        return
    if folder.exists() and not stage.marker.exists():
        raise CorpusError(
            f"{folder}: this folder is not this project's; the synthetic recordings need its place, so move it away"
        )
    stage.begin()
    for old in (paths.root, paths.ecgqa_root):
        if old.exists():
            shutil.rmtree(old)
    with progress("make synthetic recordings", records) as report:
        write_demo(paths.root, paths.ecgqa_root, records, config.seed, progress=report)
    stage.finish([paths.root, paths.ecgqa_root])


def _published_split(found: Iterable[Example | Rejected]) -> Iterator[Example | Rejected]:
    """The same examples with ECG-Byte's own split, drawn over recordings or conversations, usable or not."""
    groups = [list(items) for _, items in groupby(found, _conversation)]
    for split, items in zip(published_splits(len(groups)), groups):
        yield from (replace(item, split=split) if isinstance(item, Example) else item for item in items)


def _conversation(item: Example | Rejected) -> str:
    """What the turns of a conversation share, and the id where there are no turns."""
    return item.meta.get("conversation", item.id) if isinstance(item, Example) else item.id


def read_corpus(config: ConfigDict, paths: Paths) -> Iterator[Example | Rejected]:
    """Every example of the corpus that the config names, or what is wrong with it, one by one where its reader can."""
    data, root = config.data, paths.root
    match data.corpus:
        case "ptbxl":
            translations = Path(data.translations) if data.translations else None
            return ptbxl.read_reports(root, data.sample_rate, data.question, translations, data.published_split)
        case "mimic":
            return mimic.read_reports(root, data.question)
        case "ecg_qa":
            recordings = ptbxl.read_database(root, data.sample_rate)
            return _read_questions(config, paths.ecgqa_root / "ptbxl", recordings)
        case "ecg_qa_mimic":
            return _read_questions(config, paths.ecgqa_root / "mimic-iv-ecg", mimic.read_record_list(root))
        case "ecg_chat":
            return read_conversations(Path(data.conversations or root / CONVERSATIONS), root, data.published_split)
        case "own":
            return read_table(Path(data.table), root)
        case other:
            raise ConfigError(f"data.corpus: {other!r} found, one of {CORPORA} wanted")


def _read_questions(config: ConfigDict, folder: Path, recordings: Iterable) -> Iterator[Example | Rejected]:
    data = config.data
    if data.published_split:
        return read_published_questions(folder, recordings, tuple(data.question_types))
    return read_questions(folder, recordings, data.wording, tuple(data.question_types), data.split)
