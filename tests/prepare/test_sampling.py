import shutil

import numpy as np
import pytest

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.prepare import sampling
from ecgbyte_jax.prepare.cleaning import Cleaning
from ecgbyte_jax.prepare.sampling import cluster, sample_evenly
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import tokenizer as stage
from ecgbyte_jax.stages.prepare import prepare
from tests.small import small_config


def test_the_same_number_of_each_cluster_and_the_rest_from_all(rng):
    clusters = np.repeat([0, 1, 2], [50, 5, 45])
    chosen = sample_evenly(clusters, 40, rng)
    assert len(set(chosen.tolist())) == 40 and chosen.tolist() == sorted(chosen.tolist())
    counts = np.bincount(clusters[chosen])
    assert counts[1] == 5 and counts[0] >= 13 and counts[2] >= 13  # 13 of each, where there are so many
    assert sample_evenly(clusters, 1000, rng).tolist() == list(range(100))


def test_clusters_are_found_and_the_seed_decides(rng):
    pytest.importorskip("sklearn")
    centres = np.array([[0, 0, 0, 0], [40, 0, 0, 0], [0, 40, 0, 0]])
    found = cluster(np.repeat(centres, 30, axis=0) + rng.standard_normal((90, 4)), 6, seed=0)
    assert len(set(found.tolist())) == 2  # the published elbow lies before the largest fall of the inertia, from 2 to 3
    assert all(len(set(found[start : start + 30].tolist())) == 1 for start in (0, 30, 60))


def test_two_far_recordings_of_many_do_not_stop_the_choice(rng):
    pytest.importorskip("sklearn")
    found = np.concatenate([rng.standard_normal((12_000, 4)), [[1e4, 0, 0, 0], [1e4, 1, 0, 0]]])
    assert len(cluster(found, 3, seed=0)) == 12_002


@pytest.mark.parametrize("recordings", [1, 2, 3])
def test_few_recordings_are_clustered_too(rng, recordings):
    pytest.importorskip("sklearn")
    assert len(cluster(rng.standard_normal((recordings + 1, 30)), 100, seed=0)) == recordings + 1


@pytest.fixture
def stratified(config):
    pytest.importorskip("sklearn")
    config.tokenizer.sampling, config.tokenizer.sample_records, config.tokenizer.max_clusters = "stratified", 12, 4
    return config


def test_each_recording_is_cleaned_once(stratified, tmp_path, monkeypatch):
    cleaned, whole = [], Cleaning.whole
    monkeypatch.setattr(Cleaning, "whole", lambda self, record: cleaned.append(record) or whole(self, record))
    prepare(Settings.of(stratified), Workdir(tmp_path / "w"))
    assert len(cleaned) == len(set(cleaned)) == 40


def test_a_second_try_clusters_nothing_again(stratified, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(stage, "train_tokenizer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(Settings.of(stratified), Workdir(tmp_path / "w"))
    monkeypatch.setattr(sampling, "cluster", lambda *_: pytest.fail("clustered again"))
    monkeypatch.setattr(Cleaning, "whole", lambda *_: pytest.fail("cleaned again"))
    prepare(Settings.of(stratified), Workdir(tmp_path / "w"))
    stratified.tokenizer.num_merges = 50
    prepare(Settings.of(stratified), Workdir(tmp_path / "w"))


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_damaged_or_missing_features_are_measured_again(stratified, tmp_path, damage):
    stratified.prepare.task_records = 8
    prepare(Settings.of(stratified), Workdir(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "w")
    found = (tmp_path / "w/cache/features").rglob("*.*")
    for file in found:
        if damage == "cut" and file.suffix == ".features":
            file.write_bytes(file.read_bytes()[:-1])
        else:
            file.unlink()
    (tmp_path / "w/tokenizer/ecg_tokenizer.json").unlink()
    stratified.prepare.task_records = 5
    prepare(Settings.of(stratified), Workdir(tmp_path / "w"))
    files = [tmp_path / name / "tokenizer/ecg_tokenizer.json" for name in ("whole", "w")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_unusable_recording_is_not_sampled(stratified, tmp_path):
    stratified.tokenizer.sample_records, stratified.data.max_bad_fraction = 30, 0.5
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 40, seed=0)
    stratified.data.corpus, stratified.data.synthetic_records, stratified.data.root = "ptbxl", 0, str(tmp_path / "ptbxl")
    (tmp_path / "ptbxl/records500/00000/00001_hr.dat").write_bytes(b"")
    prepare(Settings.of(stratified), Workdir(tmp_path / "w"))
    assert ECGTokenizer.load(tmp_path / "w/tokenizer/ecg_tokenizer.json").training.segments == 30


@pytest.mark.parametrize("way", ["random", "stratified"])
def test_the_tokenizer_sees_so_many_recordings_and_the_same_ones_again(tmp_path, way):
    pytest.importorskip("sklearn")
    config = small_config()
    config.tokenizer.sampling, config.tokenizer.sample_records, config.tokenizer.max_clusters = way, 12, 4
    config.tokenizer.num_merges = 50
    for name in ("a", "b"):
        prepare(Settings.of(config), Workdir(tmp_path / name))
    files = [tmp_path / name / "tokenizer/ecg_tokenizer.json" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert ECGTokenizer.load(files[0]).training.segments == 12


@pytest.mark.slow
def test_two_workers_choose_the_same_recordings(stratified, tmp_path):
    pytest.importorskip("distributed")
    stratified.prepare.task_records = 7
    for workers in (1, 2):
        stratified.prepare.workers = workers
        prepare(Settings.of(stratified), Workdir(tmp_path / str(workers)))
    files = [tmp_path / name / "tokenizer/ecg_tokenizer.json" for name in ("1", "2")]
    assert files[0].read_bytes() == files[1].read_bytes()
