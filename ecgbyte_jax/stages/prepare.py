"""Stage `prepare`: from recordings and questions to tokenizers and token shards."""

import errno
import os
import re
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ecgbyte_jax.corpora.example import PART
from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.inputs.chat import Chat
from ecgbyte_jax.inputs.gguf_tokenizer import make_gguf_tokenizer
from ecgbyte_jax.inputs.prepared import tokenizer_digests
from ecgbyte_jax.inputs.prompt import PromptIds
from ecgbyte_jax.inputs.shards import Manifest, write_manifest
from ecgbyte_jax.inputs.text import add_ecg_tokens, load_run_tokenizer, load_text_tokenizer, train_text_tokenizer
from ecgbyte_jax.prepare.corpus import Corpus, open_corpus
from ecgbyte_jax.prepare.train_tokenizer import merges_made
from ecgbyte_jax.prepare.workers import Run, open_workers
from ecgbyte_jax.prepare.write_ecg import write_ecg
from ecgbyte_jax.prepare.write_texts import TextForm, make_manifest, write_texts
from ecgbyte_jax.run.console import banner, console
from ecgbyte_jax.run.cost import counted
from ecgbyte_jax.run.stage import content_digest
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import SPLITS, Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages.tokenizer import make_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# How their names begin.
_SHARDS = re.compile(rf"(ecg|{'|'.join(SPLITS)})-(\d+\.array_record|(lengths|parts)\.i4)|manifest\.json")


def prepare(settings: Settings, workdir: Workdir) -> str:
    """Runs the stage where it is not done, going on from what an earlier run of the same settings left whole.

    Returns the digest of its outputs. Raises CorpusError where more than `data.max_bad_fraction` of the examples had to be set
    aside, and ShardsError where the disk is full.
    """
    corpus = open_corpus(settings, workdir, lineage.synthetic(settings, workdir))
    stage = lineage.preparation(settings, workdir, corpus.digest())
    if stage.finished():
        console.print("prepare: settings and inputs have not changed, nothing to do")
        return stage.require()
    if stage.changes():
        console.print(f"prepare: running again, because {stage.changes()}")
    try:
        if not stage.begun():
            _clear(workdir)
        stage.begin()
        with counted(workdir, "prepare", stage), open_workers(settings.prepare) as run:
            manifest = _prepare(settings, workdir, corpus, run)
        shutil.rmtree(workdir.summaries)
        lineage.keep_settings(settings, workdir, "prepare")
        outputs = [workdir.ecg_tokenizer, *workdir.text_tokenizer.iterdir(), *_own_shards(workdir)]
        # The bytes of the shards, whatever was read to make them: a training on the same bytes need not be repeated.
        stage.finish(outputs, result=asdict(manifest))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ShardsError(
            f"{error.filename or workdir.root}: {error.strerror}; free some space; the same command then continues"
        ) from error
    return stage.require()


def _clear(workdir: Workdir) -> None:
    """Removes what other settings left, the marker first: what is there belongs to nothing until the stage begins."""
    workdir.prepare_marker.unlink(missing_ok=True)
    for file in _own_shards(workdir):
        file.unlink()
    for folder in (workdir.summaries, workdir.text_tokenizer):
        if folder.exists():
            shutil.rmtree(folder)


def _own_shards(workdir: Workdir) -> list[Path]:
    """What this stage has written into shards/, whole or not: the folder may be a link to one that holds other files too."""
    return [file for file in workdir.shards.glob("*") if _SHARDS.match(file.name)]


def _prepare(settings: Settings, workdir: Workdir, corpus: Corpus, run: Run) -> Manifest:
    corpus.set_aside([])  # writes and checks what was set aside in reading
    tokenizer, signals = make_tokenizer(settings, workdir, corpus, run)
    text_tokenizer = _make_text_tokenizer(settings, corpus, tokenizer.bpe.vocab_size)
    _save_whole(text_tokenizer, workdir.text_tokenizer)
    ecg = write_ecg(workdir.shards, workdir.summaries, workdir.ecg_tokenizer, signals, corpus.records(), run)
    text_file = workdir.text_tokenizer / "tokenizer.json"
    how = _text_form(settings, corpus, workdir, PromptIds.of(text_tokenizer, tokenizer.bpe.vocab_size))
    per_file = settings.data.sequences_per_file
    texts = write_texts(workdir.shards, workdir.summaries, text_file, corpus, ecg, per_file, how, run)
    corpus.set_aside(texts.rejected)
    manifest = make_manifest(ecg, texts, tokenizer_digests(workdir), how)
    assert corpus.read == len(corpus.rejected) + sum(split.examples for split in manifest.splits.values())
    _remove_strays(workdir, manifest)
    write_manifest(workdir.shards, manifest)
    rows = {"BPE merges": merges_made(tokenizer), "samples clipped": signals.clipped_samples()}
    _report(workdir, corpus, manifest, rows)
    return manifest


def _save_whole(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Writes the folder under another name first, so that it is either whole or not there."""
    partial = folder.with_name(folder.name + ".partial")
    for old in (partial, folder):
        if old.exists():
            shutil.rmtree(old)
    tokenizer.save_pretrained(partial)
    os.replace(partial, folder)


def _remove_strays(workdir: Workdir, manifest: Manifest) -> None:
    """Removes what a killed run left under another name."""
    for file in (*_own_shards(workdir), *workdir.tokenizers.glob("*.partial")):
        if file.name not in manifest.written:
            file.unlink()


def _make_text_tokenizer(settings: Settings, corpus: Corpus, ecg_vocab_size: int) -> "PreTrainedTokenizerFast":
    if settings.model.pretrained:
        tokenizer = pretrained_text_tokenizer(settings.model.pretrained)
    else:
        texts = (text for e in corpus.examples if e.split == "train" for text in (e.question, e.answer))
        tokenizer = train_text_tokenizer(texts, settings.prompt.text_vocab_size)
    add_ecg_tokens(tokenizer, ecg_vocab_size)
    return tokenizer


def _text_form(settings: Settings, corpus: Corpus, workdir: Workdir, ids: PromptIds) -> TextForm:
    """How texts become ids; raises TokenizerError for a chat template that cannot be used, before any text is written."""
    prompt = settings.prompt
    every_answer = prompt.format == "chat" and settings.train.turns == "all"
    if prompt.format == "chat":
        chat = Chat.of(load_run_tokenizer(workdir.text_tokenizer), prompt.system)
        if every_answer and (settings.data.questions_together > 1 or any(example.history for example in corpus.examples)):
            chat.check_every_answer()
    system = prompt.system if prompt.format == "chat" else ""
    files = content_digest(sorted(file for file in workdir.text_tokenizer.iterdir() if file.is_file()))
    together = settings.data.questions_together
    pretrained = settings.model.pretrained
    known = len(pretrained_text_tokenizer(pretrained)) if pretrained else 0
    parts = prompt.format, system, prompt.max_length, every_answer, together, settings.data_seed, ids, files, known
    return TextForm(*parts, counted=corpus.needed)


def pretrained_text_tokenizer(pretrained: str) -> "PreTrainedTokenizerFast":
    """The text tokenizer of a Hugging Face folder, hub id or GGUF file; raises TokenizerError or WeightsError."""
    from ecgbyte_jax.model.hf import locate
    from ecgbyte_jax.model.weights.gguf_file import (  # these import JAX: most preparation does without
        open_gguf,
        tokenizer_metadata,
    )

    place = locate(pretrained)
    if place.is_file():
        return make_gguf_tokenizer(tokenizer_metadata(open_gguf(place)), place)
    return load_text_tokenizer(place)


def _report(workdir: Workdir, corpus: Corpus, manifest: Manifest, rows: dict[str, object]) -> None:
    rows |= {"examples read": corpus.read}
    for name, split in manifest.splits.items():
        mean = split.tokens / max(split.sequences, 1)
        rows[f"  {name}"] = (
            f"{split.examples} examples in {split.sequences} sequences, {mean:.0f} tokens each "
            f"(longest {split.longest_sequence}), ECG cut in {split.ecg_cut}"
            + (f", {split.turns_left_out} earlier turns left out" if split.turns_left_out else "")
        )
    counts = Counter((example.meta.get(PART), example.split) for example in corpus.examples)
    for name, share in corpus.shares.items():
        of = ", ".join(f"{counts[name, split]} {split}" for split in SPLITS)
        rows[f"  {name}"] = f"{of} examples, {share:.1%} of the sequences that training draws"
    rows["  set aside"] = f"{len(corpus.rejected)} ({workdir.quarantine})"
    banner("prepared", rows | {"tokenizers": workdir.tokenizers, "shards": workdir.shards})
