import numpy as np
import pytest

from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.run.prepare import prepare
from ecgbyte_jax.run.sampling import cluster, sample_evenly
from tests.run.conftest import small_config


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


@pytest.mark.parametrize("sampling", ["random", "stratified"])
def test_the_tokenizer_sees_so_many_recordings_and_the_same_ones_again(tmp_path, sampling):
    pytest.importorskip("sklearn")
    config = small_config()
    config.tokenizer.sampling, config.tokenizer.sample_records, config.tokenizer.max_clusters = sampling, 12, 4
    config.tokenizer.num_merges = 50
    for name in ("a", "b"):
        prepare(config, tmp_path / name)
    files = [tmp_path / name / "tokenizer/ecg_tokenizer.json" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert ECGTokenizer.load(files[0]).training.segments == 12
