"""The examples of a run: where its files lie, which examples are usable, and which were set aside with the reason."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.corpora.ecg_qa import read_questions
from ecgbyte_jax.corpora.example import Example, Rejected
from ecgbyte_jax.corpora.ptbxl import read_reports
from ecgbyte_jax.errors import ConfigError, CorpusError
from ecgbyte_jax.run import stages
from ecgbyte_jax.run.logbook import progress

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

    @classmethod
    def of(cls, found: Iterable[Example | Rejected], quarantine: Path, max_bad_fraction: float) -> "Corpus":
        """Of examples with the same id the first is kept and the others are rejected."""
        examples: dict[str, Example] = {}
        rejected: list[Rejected] = []
        for item in found:
            if isinstance(item, Rejected):
                rejected.append(item)
            elif item.id in examples:
                rejected.append(Rejected(item.id, str(item.record), "another example before it has the same id"))
            else:
                examples[item.id] = item
        return cls(len(examples) + len(rejected), list(examples.values()), rejected, quarantine, max_bad_fraction)

    def records(self, split: str | None = None) -> list[Path]:
        """The distinct recordings (of one split), in the order in which they are first asked about."""
        return list(dict.fromkeys(e.record for e in self.examples if split in (None, e.split)))

    def set_aside(self, bad: list[Rejected]) -> None:
        """Moves examples to the rejected ones and writes all of those to the quarantine file.

        Raises CorpusError where they are too many, or no example is left to train on.
        """
        ids = {rejected.id for rejected in bad}
        self.examples = [example for example in self.examples if example.id not in ids]
        self.rejected += bad
        lines = (json.dumps(asdict(rejected), ensure_ascii=False) + "\n" for rejected in self.rejected)
        self.quarantine.parent.mkdir(parents=True, exist_ok=True)
        self.quarantine.write_text("".join(lines), encoding="utf-8")
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
    return Corpus.of(_read_corpus(config, paths), paths.quarantine, config.data.max_bad_fraction)


def digest(corpus: Corpus, root: Path) -> str:
    """Of the examples themselves and of the recordings' files below `root`."""
    examples = [[e.id, e.patient, e.split, e.question, e.answer] for e in corpus.examples]
    rejected = [[r.id, r.reason] for r in corpus.rejected]
    recordings = (record.with_name(record.name + ending) for record in corpus.records() for ending in (".hea", ".dat"))
    return stages.digest([examples, rejected, stages.fingerprint(recordings, root)])


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


def _read_corpus(config: ConfigDict, paths: Paths) -> Iterator[Example | Rejected]:
    data = config.data
    match data.corpus:
        case "ptbxl":
            return read_reports(paths.root, data.sample_rate, data.question)
        case "ecg_qa":
            types = tuple(data.question_types)
            return read_questions(paths.ecgqa_root, paths.root, data.sample_rate, data.wording, types, data.split)
        case other:
            raise ConfigError(f"data.corpus: {other!r} found, 'ptbxl' or 'ecg_qa' wanted")
