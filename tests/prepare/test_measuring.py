"""Measuring recordings in preparation: cached, the same after a kill, and refused where the library is missing."""

import hashlib

import pytest

from ecgbyte_jax.errors import ConfigError, CorpusError, SettingsError
from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.prepare import measuring
from ecgbyte_jax.prepare.corpus import Corpus, open_corpus
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages.prepare import prepare


def opened(config, folder) -> Corpus:
    settings, workdir = Settings.of(config), Workdir(folder)
    return open_corpus(settings, workdir, lineage.synthetic(settings, workdir))


@pytest.fixture
def measured(config):
    config.data.corpus, config.data.synthetic_records, config.data.question_types = "measured", 6, ()
    config.prepare.task_records = 2
    return config


def test_recordings_are_measured_once_and_the_same_after_a_loss(measured, tmp_path, monkeypatch):
    pytest.importorskip("neurokit2")
    first = opened(measured, tmp_path)
    assert first.examples and {e.split for e in first.examples} <= {"train", "valid", "test"}
    assert all(e.segment >= 0 for e in first.examples)
    parts = {path: path.read_bytes() for path in tmp_path.rglob("*.measured")}
    assert len(parts) == 3
    lost, damaged, _ = parts
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-3])
    calls = []
    monkeypatch.setattr(measuring, "measure_part", lambda task, run=measuring.measure_part: calls.append(task) or run(task))
    again = opened(measured, tmp_path)
    assert again.digest() == first.digest() and len(calls) == 2
    assert opened(measured, tmp_path).digest() == first.digest() and len(calls) == 2
    kept = {path: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob("*.measured")}
    assert {hashlib.sha256(content).digest() for content in parts.values()} == {*kept.values()}


def test_recordings_of_one_fold_are_compared(measured, tmp_path):
    pytest.importorskip("neurokit2")
    measured.data.synthetic_records, measured.data.folds, measured.data.fold = 12, 3, 2
    measured.data.question_types = ("comparison_irrelevant-query",)
    corpus = opened(measured, tmp_path)
    assert corpus.examples and not any("different splits" in rejected.reason for rejected in corpus.rejected)
    measured.data.corpus, measured.data.question_types = "ptbxl", ()
    splits = {patient: e.split for e in opened(measured, tmp_path).examples for patient in e.patients}
    assert all(splits[patient] == e.split for e in corpus.examples for patient in e.patients)


def test_without_the_library_nothing_starts(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs NeuroKit2.*\[measured\]"):
        opened(measured, tmp_path)


def test_a_set_that_cannot_be_measured_is_refused(measured):
    from ecgbyte_jax.corpora.read import check_data

    for name in ("measured", "none"):
        measured.data.measured_of = name
        with pytest.raises(SettingsError, match=r"data.measured_of: .* found, one of"):
            check_data(Settings.of(measured).data)


def test_a_question_is_about_its_own_segment_and_set_aside_where_that_must_be_cut(measured, tmp_path):
    pytest.importorskip("neurokit2")
    measured.signal.segment_length, measured.data.max_segments = 200, 2
    ids = {}
    for length in (4096, 200):
        measured.prompt.max_length, measured.data.max_bad_fraction = length, 1.0
        settings, workdir = Settings.of(measured), Workdir(tmp_path / str(length))
        try:
            prepare(settings, workdir)
        except CorpusError as error:
            assert length == 200 and "none of them usable" in str(error)
            assert "must be cut" in workdir.quarantine.read_text()
            continue
        prepared = load_prepared(workdir)
        sequences = open_split(prepared.shards, prepared.manifest, "train")
        ids |= {sequences[n].id: sequences[n].segment for n in range(len(sequences))}
    assert {int(id.split("/")[-2]) for id in ids} == {0, 1}
    assert all(segment == int(id.split("/")[-2]) for id, segment in ids.items())
