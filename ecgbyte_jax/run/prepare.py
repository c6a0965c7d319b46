"""Stage `prepare`: from recordings and questions to tokenizers and token shards.

Axes: S segments, L leads (12), T samples of a segment. Everything of the corpus that is held at once is symbols, one byte a
sample; millivolts are held for one recording at a time.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.corpora.ecg_qa import read_questions
from ecgbyte_jax.corpora.example import Example, Rejected
from ecgbyte_jax.corpora.ptbxl import read_reports
from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.records import read_record
from ecgbyte_jax.ecg.signal import CleanConfig, clean, segment
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ConfigError, CorpusError, ExampleError, RecordError, WeightsError
from ecgbyte_jax.inputs.prompt import PromptIds, ecg_room
from ecgbyte_jax.inputs.shards import Manifest, Sequence, ShardWriter, read_manifest
from ecgbyte_jax.inputs.text import add_ecg_tokens, load_text_tokenizer, train_text_tokenizer
from ecgbyte_jax.run import stages
from ecgbyte_jax.run.logbook import banner, console, progress

_VERSION = 1  # of this stage's outputs
_SEGMENTS_AT_ONCE = 1024


@dataclass(frozen=True)
class Paths:
    """Where the stage reads and writes."""

    root: Path
    ecgqa_root: Path
    ecg_tokenizer: Path
    text_tokenizer: Path
    shards: Path
    quarantine: Path
    marker: Path

    @classmethod
    def of(cls, config: ConfigDict, workdir: Path) -> "Paths":
        root, ecgqa_root = workdir / "synthetic" / "ptbxl", workdir / "synthetic" / "ecgqa"
        if not config.data.synthetic_records:
            root = Path(config.data.root)
            ecgqa_root = Path(config.data.ecgqa_root or Path(os.path.abspath(root)).parent / "ecgqa")
        return cls(
            root=root,
            ecgqa_root=ecgqa_root,
            ecg_tokenizer=workdir / "tokenizer" / "ecg_tokenizer.json",
            text_tokenizer=workdir / "tokenizer" / "text",
            shards=workdir / "shards",
            quarantine=workdir / "prepare" / "quarantine.jsonl",
            marker=workdir / "prepare" / "stage.json",
        )


@dataclass(frozen=True)
class Prepared:
    """What the stage left on disk, opened."""

    shards: Path
    manifest: Manifest
    text_tokenizer: PreTrainedTokenizerFast
    ids: PromptIds


def load_prepared(config: ConfigDict, workdir: Path) -> Prepared:
    """Opens the shards and tokenizers; raises ShardsError or TokenizerError, naming the file, where one is missing."""
    paths = Paths.of(config, workdir)
    ecg_vocab_size = ECGTokenizer.load(paths.ecg_tokenizer).bpe.vocab_size
    text_tokenizer = load_text_tokenizer(paths.text_tokenizer)
    ids = PromptIds.of(text_tokenizer, ecg_vocab_size)
    return Prepared(paths.shards, read_manifest(paths.shards), text_tokenizer, ids)


def settings(config: ConfigDict) -> dict:
    """What the outputs depend on, beside the files that are read."""
    indifferent = ("root", "ecgqa_root", "max_bad_fraction", "sequences_per_file")  # the files' content counts, not their place
    data = {k: v for k, v in config.data.to_dict().items() if k not in indifferent}
    parts = {name: config[name].to_dict() for name in ("signal", "tokenizer", "prompt")}
    return {"version": _VERSION, "seed": config.seed, "data": data, "pretrained": bool(config.model.pretrained), **parts}


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


def prepare(config: ConfigDict, workdir: Path) -> str:
    """Runs the stage where it is not done; returns the digest of its outputs.

    Raises CorpusError where more than `data.max_bad_fraction` of the examples had to be set aside.
    """
    paths = Paths.of(config, workdir)
    _make_demo_data(config, paths, workdir)
    corpus = Corpus.of(_read_corpus(config, paths), paths.quarantine, config.data.max_bad_fraction)
    _check_pretrained(config.model.pretrained)
    stage = stages.Stage("prepare", paths.marker, settings(config), _inputs(config, paths, corpus))
    if stage.finished():
        console.print("prepare: settings and inputs have not changed, nothing to do")
        return stage.digest()
    if stage.changes():
        console.print(f"prepare: running again, because {stage.changes()}", markup=False)
    stage.begin()
    for folder in (paths.shards, paths.text_tokenizer):
        if folder.exists():
            shutil.rmtree(folder)
    _prepare(config, paths, corpus)
    stage.finish([paths.ecg_tokenizer, *paths.text_tokenizer.iterdir(), *paths.shards.iterdir()])
    return stage.digest()


def _prepare(config: ConfigDict, paths: Paths, corpus: Corpus) -> None:
    corpus.set_aside([])  # writes and checks what was set aside in reading
    cleaner = _Cleaner(config)
    quantizer = _fit_quantizer(cleaner, corpus, config)
    cleaned = _clean(cleaner, corpus, corpus.records(), "clean and quantize")
    symbols = {record: quantizer.encode(segments) for record, segments in cleaned}
    bpe = _train_bpe(np.concatenate([symbols[record] for record in corpus.records("train")]), config)
    ECGTokenizer(quantizer, bpe).save(paths.ecg_tokenizer)
    text_tokenizer = _make_text_tokenizer(config, corpus, bpe.vocab_size)
    text_tokenizer.save_pretrained(paths.text_tokenizer)
    _set_aside_long_texts(corpus, text_tokenizer, config)
    with ShardWriter(paths.shards, config.data.sequences_per_file) as writer:
        _write_shards(writer, config, bpe, text_tokenizer, symbols, corpus)
        manifest = writer.finish()
    assert corpus.read == len(corpus.rejected) + sum(split.examples for split in manifest.splits.values())
    _report(paths, corpus, manifest, bpe, config)


class _Cleaner:
    """From a record's path to clean segments, as the config says."""

    def __init__(self, config: ConfigDict):
        fields = config.signal.to_dict()
        self.length = fields.pop("segment_length")
        self.config = CleanConfig(**fields)
        self.max_segments = config.data.max_segments or None

    def __call__(self, record: Path) -> np.ndarray:
        """float64 [S, 12, T] in mV; raises RecordError."""
        return segment(clean(read_record(record), self.config), self.length)[: self.max_segments]


def _check_pretrained(folder: str) -> None:
    """Before hours of work, not behind them."""
    if folder and not Path(folder).is_dir():
        raise WeightsError(
            f"model.pretrained: no folder '{folder}'; download one, say with `hf download meta-llama/Llama-3.2-1B "
            f"--local-dir {folder}` once its licence is accepted there, or train from scratch with "
            "--config.model.pretrained= --config.lora.rank=0"
        )


def _make_demo_data(config: ConfigDict, paths: Paths, workdir: Path) -> None:
    records = config.data.synthetic_records
    folder = workdir / "synthetic"
    settings = {"version": _VERSION, "records": records, "seed": config.seed}
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


def _inputs(config: ConfigDict, paths: Paths, corpus: Corpus) -> str:
    """A digest of all that is read: the examples themselves, the recordings' files, a pretrained text tokenizer."""
    examples = [[e.id, e.patient, e.split, e.question, e.answer] for e in corpus.examples]
    rejected = [[r.id, r.reason] for r in corpus.rejected]
    recordings = (record.with_name(record.name + ending) for record in corpus.records() for ending in (".hea", ".dat"))
    pretrained = Path(config.model.pretrained)
    text = sorted(pretrained.glob("*token*")) if config.model.pretrained else []  # its text tokenizer's files
    return stages.digest([examples, rejected, stages.fingerprint(recordings, paths.root), stages.fingerprint(text, pretrained)])


def _clean(cleaner: _Cleaner, corpus: Corpus, records: list[Path], what: str) -> Iterator[tuple[Path, np.ndarray]]:
    """(recording, clean segments float64 [S, 12, T] in mV); the examples of unusable recordings are set aside at the end."""
    reasons: dict[Path, str] = {}
    with progress(what, len(records)) as report:
        for done, record in enumerate(records, start=1):
            try:
                yield record, cleaner(record)
            except RecordError as error:
                reasons[record] = str(error)
            report(done)
    corpus.set_aside([Rejected(e.id, str(e.record), reasons[e.record]) for e in corpus.examples if e.record in reasons])


def _fit_quantizer(cleaner: _Cleaner, corpus: Corpus, config: ConfigDict) -> Quantizer:
    """From training recordings alone, so that the test set stays unseen."""
    records = corpus.records("train")
    wanted = min(config.tokenizer.percentile_records, len(records))
    drawn = np.sort(np.random.default_rng(config.seed).choice(len(records), wanted, replace=False))
    cleaned = _clean(cleaner, corpus, [records[i] for i in drawn], "percentiles of the signal")
    return Quantizer.fit((segments for _, segments in cleaned), seed=config.seed)


def _train_bpe(symbols: np.ndarray, config: ConfigDict) -> BPE:
    """From the training segments [S, 12, T]."""
    merges = config.tokenizer.num_merges
    with progress(f"BPE on {symbols.size / 1e6:.1f} M symbols", merges) as report:
        return BPE.train(symbols, merges, progress=report)


def _make_text_tokenizer(config: ConfigDict, corpus: Corpus, ecg_vocab_size: int) -> PreTrainedTokenizerFast:
    if config.model.pretrained:
        tokenizer = load_text_tokenizer(config.model.pretrained)
    else:
        texts = (text for e in corpus.examples if e.split == "train" for text in (e.question, e.answer))
        tokenizer = train_text_tokenizer(texts, config.prompt.text_vocab_size)
    add_ecg_tokens(tokenizer, ecg_vocab_size)
    return tokenizer


def _token_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """int32 [n]; a text that spells a special token is text all the same."""
    return np.array(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids, np.int32)


def _set_aside_long_texts(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, config: ConfigDict) -> None:
    bad = []
    for example in corpus.examples:
        try:
            ecg_room(_token_ids(tokenizer, example.question), _token_ids(tokenizer, example.answer), config.prompt.max_length)
        except ExampleError as error:
            bad.append(Rejected(example.id, str(example.record), str(error)))
    corpus.set_aside(bad)


def _write_shards(
    writer: ShardWriter,
    config: ConfigDict,
    bpe: BPE,
    tokenizer: PreTrainedTokenizerFast,
    symbols: dict[Path, np.ndarray],
    corpus: Corpus,
) -> None:
    """One sequence an example and segment, recording after recording."""
    by_record: dict[Path, list[Example]] = {}
    for example in corpus.examples:
        by_record.setdefault(example.record, []).append(example)
    with progress("encode and write shards", len(by_record)) as report:
        for done, (record, tokens) in enumerate(_encode(bpe, {r: symbols[r] for r in by_record}), start=1):
            for example in by_record[record]:
                question, answer = _token_ids(tokenizer, example.question), _token_ids(tokenizer, example.answer)
                room = ecg_room(question, answer, config.prompt.max_length)
                for number, ecg in enumerate(tokens):
                    texts = (example.id, example.patient, number, example.question, example.answer)
                    length = config.prompt.max_length - room + min(room, len(ecg))
                    writer.write(example.split, Sequence(*texts, ecg, question, answer), length, len(ecg) > room)
            report(done)


def _encode(bpe: BPE, symbols: dict[Path, np.ndarray]) -> Iterator[tuple[Path, list[np.ndarray]]]:
    """(recording, the ids of each of its segments), many segments at a time."""
    waiting: list[Path] = []
    for position, record in enumerate(symbols, start=1):
        waiting.append(record)
        if sum(len(symbols[r]) for r in waiting) < _SEGMENTS_AT_ONCE and position < len(symbols):
            continue
        stacked = np.concatenate([symbols[r] for r in waiting])
        ids = iter(bpe.encode_batch(stacked.reshape(len(stacked), -1)))
        for r in waiting:
            yield r, [next(ids) for _ in symbols[r]]
        waiting = []


def _report(paths: Paths, corpus: Corpus, manifest: Manifest, bpe: BPE, config: ConfigDict) -> None:
    merges = f"{len(bpe.merges)}"
    if len(bpe.merges) < config.tokenizer.num_merges:
        merges += f" (of {config.tokenizer.num_merges} asked for: the corpus has no more pairs)"
    rows: dict[str, object] = {"BPE merges": merges, "examples read": corpus.read}
    for name, split in manifest.splits.items():
        mean = split.tokens / max(split.sequences, 1)
        rows[f"  {name}"] = (
            f"{split.examples} examples in {split.sequences} sequences, {mean:.0f} tokens each "
            f"(longest {split.longest_sequence}), ECG cut in {split.ecg_cut}"
        )
    rows["  set aside"] = f"{len(corpus.rejected)} ({paths.quarantine})"
    banner("prepared", rows | {"tokenizers": paths.ecg_tokenizer.parent, "shards": paths.shards})
