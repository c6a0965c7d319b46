"""Stage `prepare`: from recordings and questions to tokenizers and token shards.

Axes: S segments of a recording, L leads (12), T samples of a segment.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from ecgbyte_jax.corpora.example import Example, Rejected
from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ExampleError
from ecgbyte_jax.inputs.prompt import PromptIds, ecg_room
from ecgbyte_jax.inputs.shards import Manifest, Sequence, ShardWriter, read_manifest
from ecgbyte_jax.inputs.text import add_ecg_tokens, load_text_tokenizer, train_text_tokenizer
from ecgbyte_jax.model.hf import locate
from ecgbyte_jax.run import quantize, stages
from ecgbyte_jax.run.corpus import Corpus, Paths, digest, open_corpus
from ecgbyte_jax.run.logbook import banner, console, progress

_VERSION = 1  # of this stage's outputs
_SEGMENTS_AT_ONCE = 1024


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
    own = {"shards_version": _VERSION, "prompt": config.prompt.to_dict(), "pretrained": bool(config.model.pretrained)}
    return quantize.settings(config) | own


def prepare(config: ConfigDict, workdir: Path) -> str:
    """Runs the stage where it is not done; returns the digest of its outputs.

    Raises CorpusError where more than `data.max_bad_fraction` of the examples had to be set aside.
    """
    paths = Paths.of(config, workdir)
    corpus = open_corpus(config, paths)
    inputs = stages.digest([digest(corpus, paths.root), _text_fingerprint(config.model.pretrained)])
    stage = stages.Stage("prepare", paths.marker, settings(config), inputs)
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
    signals = quantize.quantize(config, corpus, quantize.fit_quantizer(config, corpus))
    tokenizer = quantize.train_tokenizer(config, corpus, signals)
    tokenizer.save(paths.ecg_tokenizer)
    text_tokenizer = _make_text_tokenizer(config, corpus, tokenizer.bpe.vocab_size)
    text_tokenizer.save_pretrained(paths.text_tokenizer)
    _set_aside_long_texts(corpus, text_tokenizer, config)
    with ShardWriter(paths.shards, config.data.sequences_per_file) as writer:
        _write_shards(writer, config, tokenizer.bpe, text_tokenizer, signals.symbols, corpus)
        manifest = writer.finish()
    assert corpus.read == len(corpus.rejected) + sum(split.examples for split in manifest.splits.values())
    rows = {"BPE merges": quantize.merges_made(tokenizer), "samples clipped": signals.clipped_samples()}
    _report(paths, corpus, manifest, rows)


def _text_fingerprint(pretrained: str) -> str:
    """Of a pretrained text tokenizer's files; raises WeightsError where they are missing, before hours of work."""
    if not pretrained:
        return ""
    folder = locate(pretrained)
    return stages.fingerprint(sorted(folder.glob("*token*")), folder)


def _make_text_tokenizer(config: ConfigDict, corpus: Corpus, ecg_vocab_size: int) -> PreTrainedTokenizerFast:
    if config.model.pretrained:
        tokenizer = load_text_tokenizer(locate(config.model.pretrained))
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


def _report(paths: Paths, corpus: Corpus, manifest: Manifest, rows: dict[str, object]) -> None:
    rows |= {"examples read": corpus.read}
    for name, split in manifest.splits.items():
        mean = split.tokens / max(split.sequences, 1)
        rows[f"  {name}"] = (
            f"{split.examples} examples in {split.sequences} sequences, {mean:.0f} tokens each "
            f"(longest {split.longest_sequence}), ECG cut in {split.ecg_cut}"
        )
    rows["  set aside"] = f"{len(corpus.rejected)} ({paths.quarantine})"
    banner("prepared", rows | {"tokenizers": paths.ecg_tokenizer.parent, "shards": paths.shards})
