"""The segments of the shards as they were before quantisation, for models that read signals instead of tokens.

The recordings are cleaned once more, 9 ms each, into signals/, at 12 KB a segment of 2 s; see `prepare.write_signals`.
"""

import shutil
from dataclasses import replace

from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.inputs.shards import read_manifest
from ecgbyte_jax.prepare.cleaning import Cleaning
from ecgbyte_jax.prepare.corpus import open_corpus
from ecgbyte_jax.prepare.workers import open_workers
from ecgbyte_jax.prepare.write_signals import SUMMARIES, write_signals
from ecgbyte_jax.run.cost import counted
from ecgbyte_jax.run.processes import leads, wait_for_all
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages.tokenizer import make_tokenizer


def clean_signals(settings: Settings, workdir: Workdir) -> None:
    """Cleans the recordings of the shards, unless an earlier command has; of several processes the leader does, all must call.

    Raises ConfigError where preparation has not finished, ShardsError where its recordings are others now.
    """
    if leads():
        _write_signals(settings, workdir)
    wait_for_all("the clean signals are written")


def _write_signals(settings: Settings, workdir: Workdir) -> None:
    stage = lineage.signals(settings, workdir)
    if stage.finished():
        return
    corpus = open_corpus(settings, workdir, lineage.synthetic(settings, workdir))
    lineage.preparation(settings, workdir, corpus.digest()).require()
    if not stage.begun():
        _clear(workdir)
    stage.begin()
    corpus = replace(corpus, quarantine=workdir.signals / workdir.quarantine.name)  # preparation's stays as it is
    with counted(workdir, "signals", stage), open_workers(settings.prepare) as run:
        _, symbols = make_tokenizer(settings, workdir, corpus, run)
        cleaning, tokenizer = Cleaning.of(settings), workdir.ecg_tokenizer
        files = write_signals(workdir.signals, tokenizer, cleaning, symbols, corpus.records(), run)
    manifest = read_manifest(workdir.shards)
    expected = sum(manifest.written[file].records for file in manifest.ecg)
    if (found := sum(file.records for file in files)) != expected:
        raise ShardsError(f"{workdir.signals}: {found} segments found, {expected} in the shards; run --stage=prepare again")
    shutil.rmtree(workdir.signals / SUMMARIES)
    stage.finish(sorted(workdir.signals.glob("*.array_record")))


def _clear(workdir: Workdir) -> None:
    """Removes what other settings left, the marker first, and nothing else: the folder may be a link to another disk."""
    workdir.signals_marker.unlink(missing_ok=True)
    for file in (*workdir.signals.glob("signals-*"), workdir.signals / workdir.quarantine.name):
        file.unlink(missing_ok=True)
    if (workdir.signals / SUMMARIES).exists():
        shutil.rmtree(workdir.signals / SUMMARIES)
