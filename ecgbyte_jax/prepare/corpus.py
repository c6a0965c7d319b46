"""The examples of a run: where its recordings are, which examples are usable, and which are rejected and why."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from ecgbyte_jax.corpora.benchmarks.ecg_bench import OWN_SPLIT, pictures_in
from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.corpora.example import MISSING, PART, Example, Rejected, published_splits
from ecgbyte_jax.corpora.folds import in_folds, make_folds
from ecgbyte_jax.corpora.measured.read import Unmeasured
from ecgbyte_jax.corpora.mixture import Part, mix, rename
from ecgbyte_jax.corpora.read import TESTS, read_corpus, recordings_of
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.errors import ConfigError, CorpusError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.prepare.measuring import answer
from ecgbyte_jax.prepare.symbol_cache import record_key
from ecgbyte_jax.run.console import console, progress
from ecgbyte_jax.run.stage import Stage
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import DataSettings, Settings


@dataclass(frozen=True)
class Folders:
    """The folders of preparation: recordings, ECG-QA's questions, and the cache.

    made_by: the digest of the settings by which this project made the recordings; "" for recordings from elsewhere.
    """

    root: Path
    ecgqa_root: Path
    cache: Path
    made_by: str = ""

    @classmethod
    def of(cls, settings: Settings, workdir: Workdir, part: str = "") -> "Folders":
        """Finds the folders that the settings name, or those of a corpus of the mixture do."""
        data, cache = settings.data.part(part) if part else settings.data, Path(settings.prepare.cache or workdir.cache)
        if data.synthetic_records:
            return cls(workdir.synthetic / "ptbxl", workdir.synthetic / "ecgqa", cache)
        root = Path(data.root)
        return cls(root, Path(data.ecgqa_root or Path(os.path.abspath(root)).parent / "ecgqa"), cache)


@dataclass
class Corpus:
    """The usable examples, and the rejected ones with the reason; `read` counts both and never changes.

    needed: the split that must not be empty, "test" of a benchmark, where nothing is trained.
    shares: of a mixture, `DataSettings.shares`.
    """

    read: int
    examples: list[Example]
    rejected: list[Rejected]
    folders: Folders
    quarantine: Path
    max_bad_fraction: float
    needed: str = "train"
    shares: dict[str, float] = field(default_factory=dict)
    _keys: dict[SignalSource, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        items: Iterable[Example | Rejected],
        folders: Folders,
        quarantine: Path,
        max_bad_fraction: float,
        published_split: bool = False,
    ) -> "Corpus":
        """Collects the examples; of those with the same id all but the first are rejected, with what follows them.

        Raises CorpusError if a patient or recording is in two splits (`published_split`: a warning), or a recording belongs to
        two patients.
        """
        examples: dict[str, Example] = {}
        rejected: list[Rejected] = []
        doubled: set[str] = set()
        for item in items:
            if isinstance(item, Rejected):
                rejected.append(item)
            elif item.id in examples:
                doubled.add(item.id)
                rejected.append(Rejected(item.id, str(item.records[0]), "an earlier example has the same id"))
            elif item.previous in doubled:  # else it would go on with the conversation of that earlier example
                doubled.add(item.id)
                reason = f"it follows {item.previous!r}, and an earlier example has the same id"
                rejected.append(Rejected(item.id, str(item.records[0]), reason))
            else:
                examples[item.id] = item
        corpus = cls(len(examples) + len(rejected), list(examples.values()), rejected, folders, quarantine, max_bad_fraction)
        corpus.check_patients(published_split)
        corpus.check_recordings(published_split)
        return corpus

    def check_patients(self, published_split: bool) -> None:
        """Raises CorpusError, or with `published_split` warns, if patients are in more than one split."""
        splits: dict[str, str] = {}
        shared: dict[str, set[str]] = {}
        for example in self.examples:
            for patient in example.patients:
                if splits.setdefault(patient, example.split) != example.split:
                    shared.setdefault(patient, {splits[patient]}).add(example.split)
        if not shared:
            return
        first = min(shared)
        problem = f"{len(shared)} of {len(splits)} patients are in more than one split, for example {first!r} in"
        problem += f" {sorted(shared[first])}"
        if not published_split:
            raise CorpusError(f"{problem}; their scores would be on patients seen in training. Split by patient")
        console.print(f"warning: {problem} (data.published_split): scores are not those of unseen patients")

    def check_recordings(self, published_split: bool) -> None:
        """Raises CorpusError, naming two examples, if a recording has two patients or, unless as published, two splits."""
        first: dict[SignalSource, Example] = {}
        for example in self.examples:
            for record in example.records:
                earlier = first.setdefault(record, example)
                owners = earlier.owner(record), example.owner(record)
                if owners[0] != owners[1] or (earlier.split != example.split and not published_split):
                    raise CorpusError(
                        f"recording '{record}': example {earlier.id!r} of patient {owners[0]!r} is in split {earlier.split!r}, "
                        f"{example.id!r} of patient {owners[1]!r} in split {example.split!r}; one patient and one split "
                        "expected: correct them, or name both patients of a comparison in the field patients"
                    )

    def records(self, split: str | None = None) -> list[SignalSource]:
        """Returns the distinct recordings (of one split), in order of first use."""
        return list(dict.fromkeys(record for e in self.examples if split in (None, e.split) for record in e.records))

    def chances(self, records: list[SignalSource]) -> np.ndarray:
        """How often training shows each of its recordings, by the weights of the mixture, float64 [R], in sum 1."""
        examples = [example for example in self.examples if example.split == "train"]
        counts = Counter(example.meta[PART] for example in examples)
        shown: Counter[SignalSource] = Counter()
        for example in examples:
            for record in example.records:
                shown[record] += self.shares[example.meta[PART]] / counts[example.meta[PART]]
        chances = np.array([shown[record] for record in records])
        return chances / chances.sum()

    def keys(self, records: list[SignalSource]) -> np.ndarray:
        """Returns the cache's keys of recordings, uint64 [R]; each is examined only once, as networks are slow."""
        for record in records:
            if record not in self._keys:
                self._keys[record] = record_key(record, self.folders.made_by)
        return np.array([self._keys[record] for record in records], np.uint64)

    def set_aside(self, bad: list[Rejected]) -> None:
        """Rejects examples and writes all rejected ones to the quarantine file.

        Raises CorpusError if they are too many, also of one corpus of a mixture, or no example of the split that is needed is
        left.
        """
        ids = {rejected.id for rejected in bad}
        self.examples = [example for example in self.examples if example.id not in ids]
        self.rejected += bad
        lines = (json.dumps(asdict(rejected), ensure_ascii=False, default=str) + "\n" for rejected in self.rejected)
        # Paths that are not UTF-8 are written with JSON escapes.
        write_whole(self.quarantine, (line.encode(errors="backslashreplace") for line in lines))
        for start in [f"{name}:" for name in self.shares] or [""]:
            rejected = [rejected for rejected in self.rejected if rejected.id.startswith(start)]
            left = [example for example in self.examples if example.id.startswith(start)]
            read, of = len(rejected) + len(left), start and f" of {start[:-1]!r}"
            if len(rejected) > self.max_bad_fraction * read:
                first = rejected[0]
                raise CorpusError(
                    f"{len(rejected)} of {read} examples{of} cannot be used, more than data.max_bad_fraction "
                    f"{self.max_bad_fraction}; the first: {first.file}: {first.reason}; all of them: {self.quarantine}"
                )
            if not any(example.split == self.needed for example in left):
                use = {"train": "for training", "test": "as a test"}[self.needed]
                raise CorpusError(f"{read} examples{of} read, none of them usable {use}; rejected: {self.quarantine}")

    def digest(self) -> str:
        """SHA-256 of the examples and of their recordings' keys."""
        total = hashlib.sha256()
        for example in self.examples:
            names = [record.name for record in example.records]
            row = [example.id, example.patient, example.split, names, example.question, example.answer, example.meta]
            row += [example.history, example.previous] if example.history else []
            row += [example.segment] if example.segment >= 0 else []
            total.update(json.dumps(row).encode() + b"\n")
        for rejected in self.rejected:
            total.update(json.dumps(rejected.id).encode() + b"\n")
        total.update(self.keys(self.records()).tobytes())
        return total.hexdigest()


def open_corpus(settings: Settings, workdir: Workdir, synthetic: Stage) -> Corpus:
    """Reads the corpus that the settings name; first makes synthetic recordings, as stage `synthetic`, if requested.

    Raises CorpusError, SettingsError for an unknown corpus, or ConfigError for a benchmark without a trained tokenizer.
    """
    data, folders = settings.data, _open_folders(settings, workdir, synthetic)
    corpus = _open_mixture(settings, workdir, folders) if data.mixture else _open(settings, data, folders, workdir)
    _count_unnamed(corpus)
    _count_missing(corpus)
    return corpus


def read_examples(settings: Settings, workdir: Workdir) -> Iterator[Example | Rejected | Unmeasured]:
    """Yields the examples of the corpus, or of the mixture, by their ids there; raises CorpusError as `read_corpus` does."""
    for name in [*settings.data.shares] or [""]:
        folders = Folders.of(settings, workdir, name)
        data = settings.data.part(name) if name else settings.data
        items = read_corpus(data, folders.root, folders.ecgqa_root)
        yield from (rename(item, name) for item in items) if name else items


def _open_folders(settings: Settings, workdir: Workdir, synthetic: Stage) -> Folders:
    """Finds the folders, and makes synthetic recordings in them where these are asked for; raises ConfigError."""
    data, folders = settings.data, Folders.of(settings, workdir)
    if data.corpus in TESTS and not (settings.tokenizer.file and settings.model.pretrained):
        raise ConfigError(
            f"data.corpus: {data.corpus!r} has only test questions, so it needs a trained model's tokenizers: give "
            "--config=experiments/ecgbench.py:RUN, or ecg_reasoning.py:RUN, with a run that --stage=export has exported, or "
            "tokenizer.file and model.pretrained"
        )
    if folders.cache.exists() and not folders.cache.is_dir():
        raise ConfigError(f"prepare.cache: '{folders.cache}' is a file, a folder expected")
    if data.synthetic_records:
        folders = replace(folders, made_by=synthetic.digest())
        _make_demo_data(data, folders, settings.data_seed, synthetic)
    return folders


def _open(settings: Settings, data: DataSettings, folders: Folders, workdir: Workdir) -> Corpus:
    items = read_corpus(data, folders.root, folders.ecgqa_root)
    if data.published_split and data.corpus in ("mimic", "ecg_chat"):
        items = _published_split(items)
    if data.folds:  # before recordings of one split are compared
        items = _in_folds([*items], data)
    items = answer(items, settings, folders.cache, folders.made_by)
    corpus = Corpus.of(items, folders, workdir.quarantine, data.max_bad_fraction, data.published_split)
    if data.corpus in TESTS:
        corpus.needed = "test"
        _tell_tests(corpus, Path(data.conversations or folders.root))
    return corpus


def _open_mixture(settings: Settings, workdir: Workdir, folders: Folders) -> Corpus:
    """All corpora of the mixture as one; prints what they have in common, and what moves to another split for that."""
    parts: dict[str, Part] = {}
    # Measuring takes long: what is wrong with the others is said before it.
    for name in sorted(settings.data.shares, key=lambda name: settings.data.part(name).corpus == "measured"):
        data, own = settings.data.part(name), replace(Folders.of(settings, workdir, name), made_by=folders.made_by)
        try:
            corpus = _open(settings, data, own, workdir)
        except CorpusError as error:
            raise CorpusError(f"data.parts.{name}: {error}") from error
        parts[name] = Part(name, recordings_of(data), own.root, corpus.examples, corpus.rejected)
    mixed = mix([parts[name] for name in settings.data.shares])
    read = len(mixed.examples) + len(mixed.rejected)
    if mixed.shared:
        console.print(f"mixture: {mixed.shared} recordings are in several of its corpora")
    for (name, before, after), count in sorted(mixed.moved.items()):
        console.print(
            f"warning: {count} of {read} examples move from {before} to {after}: those of '{name}' whose patients are there in "
            "another corpus"
        )
    corpus = Corpus(read, mixed.examples, mixed.rejected, folders, workdir.quarantine, settings.data.max_bad_fraction)
    corpus.shares = settings.data.shares
    corpus.check_patients(False)
    corpus.check_recordings(False)
    return corpus


def _tell_tests(corpus: Corpus, folder: Path) -> None:
    """Prints which test sets are left out, and how many tested recordings are in the training splits of their own sets."""
    if left_out := pictures_in(folder):
        console.print(f"warning: left out, as their pictures are of no recording: {', '.join(left_out)}")
    splits = {record: (e.patient.split()[0], e.meta[OWN_SPLIT]) for e in corpus.examples for record in e.records}
    read = Counter(name for name, _ in splits.values())
    if seen := Counter(name for name, split in splits.values() if split == "train"):
        sets = ", ".join(f"{count} of {read[name]} of {name}" for name, count in sorted(seen.items()))
        console.print(
            f"warning: {seen.total()} of {len(splits)} tested recordings are in the training split of their own set ({sets}): "
            "a model that was trained on that split has seen them"
        )


def _count_missing(corpus: Corpus) -> None:
    """Prints how many conversations are about recordings that are not there, by their sets."""
    counts = Counter(rejected.file for rejected in corpus.rejected if rejected.reason.startswith(MISSING))
    for folder, count in sorted(counts.items()):
        console.print(f"warning: {count} of {corpus.read} examples are set aside, as their recordings are not in '{folder}'")


def _count_unnamed(corpus: Corpus) -> None:
    """Prints the labels whose names no table has, with the number of recordings that have them."""
    counts = Counter(label for example in corpus.examples for label in example.meta.get("unnamed", ()))
    if counts:
        shown = ", ".join(f"{label} ({count})" for label, count in counts.most_common(5))
        console.print(f"warning: {len(counts)} labels without a name are called by their codes: {shown}")


def _make_demo_data(data: DataSettings, folders: Folders, seed: int, stage: Stage) -> None:
    if stage.finished():
        return
    folder = stage.marker.parent
    if folder.exists() and not stage.marker.exists():
        raise CorpusError(
            f"{folder}: this folder is not this project's, but the synthetic recordings need its path; move it away"
        )
    stage.begin()
    for old in (folders.root, folders.ecgqa_root):
        if old.exists():
            shutil.rmtree(old)
    with progress("make synthetic recordings", data.synthetic_records) as report:
        write_demo(folders.root, folders.ecgqa_root, data.synthetic_records, seed, progress=report)
    stage.finish([folders.root, folders.ecgqa_root])


def _published_split(examples: Iterable[Example | Rejected]) -> Iterator[Example | Rejected]:
    """Replaces the split by ECG-Byte's own, drawn over all recordings or conversations, usable or not."""
    groups = [list(items) for _, items in groupby(examples, _conversation)]
    for split, items in zip(published_splits(len(groups)), groups):
        yield from (replace(item, split=split) if isinstance(item, Example) else item for item in items)


def _in_folds(items: list[Example | Rejected | Unmeasured], data: DataSettings) -> Iterator[Example | Rejected | Unmeasured]:
    """Replaces the split by that of the cross-validation, and prints its sizes."""
    folds = make_folds((item for item in items if not isinstance(item, Rejected)), data.folds)
    least, most = min(folds.recordings), max(folds.recordings)
    console.print(
        f"folds: {len(folds.of)} patients in {data.folds}, of {least} to {most} recordings; test: {data.fold}, "
        f"validation: {data.fold % data.folds + 1}"
    )
    return in_folds(items, folds, data.fold)


def _conversation(item: Example | Rejected) -> str:
    """The conversation of an example, or its id if it has none."""
    return item.meta.get("conversation", item.id) if isinstance(item, Example) else item.id
