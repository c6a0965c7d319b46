"""Stage `prepare`: from recordings and questions to tokenizers and token shards."""

import errno
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from ecgbyte_jax.corpora.example import SPLITS
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.inputs.prompt import PromptIds
from ecgbyte_jax.inputs.shards import Manifest, read_manifest, write_manifest
from ecgbyte_jax.inputs.text import add_ecg_tokens, load_text_tokenizer, train_text_tokenizer
from ecgbyte_jax.run import quantize, stages, write_shards
from ecgbyte_jax.run.corpus import Corpus, Paths, digest, open_corpus
from ecgbyte_jax.run.logbook import banner, console
from ecgbyte_jax.run.tokenizer import make_tokenizer
from ecgbyte_jax.run.workers import Run, open_workers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_VERSION = 4  # of this stage's outputs
_SHARDS = re.compile(rf"(ecg|{'|'.join(SPLITS)})-(\d+\.array_record|lengths\.i4)|manifest\.json")  # how their names begin
# What transformers may read a text tokenizer from; config.json names its class where nothing else does.
_TEXT_FILES = ("*token*", "vocab*", "merges*", "*.model", "config.json")


@dataclass(frozen=True)
class Prepared:
    """What the stage left on disk, opened."""

    shards: Path
    manifest: Manifest
    text_tokenizer: "PreTrainedTokenizerFast"
    ids: PromptIds


def load_prepared(config: ConfigDict, workdir: Path) -> Prepared:
    """Opens the shards and tokenizers; raises ShardsError or TokenizerError, naming the file, where one is missing."""
    paths = Paths.of(config, workdir)
    ecg_vocab_size = ECGTokenizer.load(paths.ecg_tokenizer).bpe.vocab_size
    text_tokenizer = load_text_tokenizer(paths.text_tokenizer)
    ids = PromptIds.of(text_tokenizer, ecg_vocab_size)
    manifest = read_manifest(paths.shards)
    for name, digest_found in _digests(paths).items():
        if manifest.digests[name] != digest_found:
            raise ShardsError(
                f"{paths.shards}: written with another {name} than lies in {paths.ecg_tokenizer.parent}; "
                "run --stage=prepare again"
            )
    return Prepared(paths.shards, manifest, text_tokenizer, ids)


def settings(config: ConfigDict) -> dict:
    """What the outputs depend on, beside the files that are read."""
    own = {"shards_version": _VERSION, "prompt": config.prompt.to_dict(), "pretrained": bool(config.model.pretrained)}
    return quantize.settings(config) | own


def prepare(config: ConfigDict, workdir: Path) -> str:
    """Runs the stage where it is not done, going on from what an earlier run of the same settings left whole.

    Returns the digest of its outputs. Raises CorpusError where more than `data.max_bad_fraction` of the examples had to be set
    aside, and ShardsError where the disk is full.
    """
    paths = Paths.of(config, workdir)
    corpus = open_corpus(config, paths)
    given = quantize.given_tokenizer(config)
    inputs = stages.digest([digest(corpus, paths.root), _text_fingerprint(config.model.pretrained), given])
    stage = stages.Stage("prepare", paths.marker, settings(config), inputs)
    if stage.finished():
        console.print("prepare: settings and inputs have not changed, nothing to do")
        return stage.digest()
    if stage.changes():
        console.print(f"prepare: running again, because {stage.changes()}", markup=False)
    try:
        if not stage.begun():
            _clear(paths)
        stage.begin()
        with open_workers(config) as run:
            _prepare(config, paths, corpus, stage, run)
        shutil.rmtree(paths.summaries)
        stages.keep_settings(config, workdir, "prepare")
        stage.finish([paths.ecg_tokenizer, *paths.text_tokenizer.iterdir(), *_own_shards(paths)])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ShardsError(
            f"{error.filename or workdir}: {error.strerror}; make room, and the same command goes on from what is whole"
        ) from error
    return stage.digest()


def _clear(paths: Paths) -> None:
    """Takes away what other settings left, the marker first: what lies there belongs to nothing until the stage begins."""
    paths.marker.unlink(missing_ok=True)
    for file in _own_shards(paths):
        file.unlink()
    for folder in (paths.summaries, paths.text_tokenizer):
        if folder.exists():
            shutil.rmtree(folder)


def _own_shards(paths: Paths) -> list[Path]:
    """What this stage has written into shards/, whole or not: the folder may be a link to one that holds other files too."""
    return [file for file in paths.shards.glob("*") if _SHARDS.match(file.name)]


def _prepare(config: ConfigDict, paths: Paths, corpus: Corpus, stage: stages.Stage, run: Run) -> None:
    corpus.set_aside([])  # writes and checks what was set aside in reading
    tokenizer, signals = make_tokenizer(config, paths, corpus, run)
    text_tokenizer = _make_text_tokenizer(config, corpus, tokenizer.bpe.vocab_size)
    _save_whole(text_tokenizer, paths.text_tokenizer)
    ecg = write_shards.write_ecg(paths.shards, paths.summaries, paths.ecg_tokenizer, signals, corpus.records(), run)
    text_file = paths.text_tokenizer / "tokenizer.json"
    limits = (config.data.sequences_per_file, config.prompt.max_length)
    texts = write_shards.write_texts(paths.shards, paths.summaries, text_file, corpus, ecg, *limits, run)
    corpus.set_aside(texts.rejected)
    manifest = write_shards.make_manifest(ecg, texts, _digests(paths) | {"settings": stage.digest()})
    assert corpus.read == len(corpus.rejected) + sum(split.examples for split in manifest.splits.values())
    _remove_strays(paths, manifest)
    write_manifest(paths.shards, manifest)
    rows = {"BPE merges": quantize.merges_made(tokenizer), "samples clipped": signals.clipped_samples()}
    _report(paths, corpus, manifest, rows)


def _save_whole(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Writes the folder under another name first, so that it is either whole or not there."""
    partial = folder.with_name(folder.name + ".partial")
    for old in (partial, folder):
        if old.exists():
            shutil.rmtree(old)
    tokenizer.save_pretrained(partial)
    os.replace(partial, folder)


def _digests(paths: Paths) -> dict[str, str]:
    """SHA-256 of what the shards' ids belong to."""
    files = {"ecg_tokenizer": paths.ecg_tokenizer, "text_tokenizer": paths.text_tokenizer / "tokenizer.json"}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()}


def _remove_strays(paths: Paths, manifest: Manifest) -> None:
    """What somebody who was killed left under another name."""
    for file in (*_own_shards(paths), *paths.ecg_tokenizer.parent.glob("*.partial")):
        if file.name not in manifest.written:
            file.unlink()


def _text_fingerprint(pretrained: str) -> str:
    """Of what a pretrained text tokenizer's files hold; raises WeightsError where they are missing, before hours of work."""
    if not pretrained:
        return ""
    from ecgbyte_jax.model.hf import locate  # which imports JAX: it takes a second, and most preparation does without

    folder = locate(pretrained)
    files = sorted({file for pattern in _TEXT_FILES for file in folder.glob(pattern)})
    return stages.digest([[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files if file.is_file()])


def _make_text_tokenizer(config: ConfigDict, corpus: Corpus, ecg_vocab_size: int) -> "PreTrainedTokenizerFast":
    if config.model.pretrained:
        from ecgbyte_jax.model.hf import locate

        tokenizer = load_text_tokenizer(locate(config.model.pretrained))
    else:
        texts = (text for e in corpus.examples if e.split == "train" for text in (e.question, e.answer))
        tokenizer = train_text_tokenizer(texts, config.prompt.text_vocab_size)
    add_ecg_tokens(tokenizer, ecg_vocab_size)
    return tokenizer


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
