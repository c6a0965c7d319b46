"""Which training recordings the ECG tokenizer is trained on: all, some at random, or evenly over clusters of their morphology.

Axes: R recordings, F features (24 a lead).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from ecgbyte_jax.ecg.features import features
from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import read_arrays, write_arrays
from ecgbyte_jax.run import quantize, stages
from ecgbyte_jax.run.corpus import Corpus, Paths
from ecgbyte_jax.run.feature_cache import read_features, write_features
from ecgbyte_jax.run.logbook import progress
from ecgbyte_jax.run.workers import Run

if TYPE_CHECKING:
    from sklearn.cluster import MiniBatchKMeans

_VERSION = 1  # of the clusters that are kept
_CANDIDATES = 100_000  # recordings that are clustered, drawn at random where there are more: their features fill 230 MB
_SAMPLE = 10_000  # of them, on which the number of clusters is chosen
_SILHOUETTE_SAMPLE = 5_000  # of those: the distances between them fill 200 MB
_VARIANCE = 0.95
_STARTS, _BATCH = 10, 1024  # of k-means


def candidates(config: ConfigDict, corpus: Corpus) -> list[Path]:
    """Training recordings to be measured and clustered; none where `tokenizer.sampling` or their number asks for no clusters.

    They are drawn before any is cleaned, so that each is measured when it is; some may turn out to be unusable. Raises
    ConfigError where scikit-learn is not installed.
    """
    records, wanted = corpus.records("train"), config.tokenizer.sample_records
    if config.tokenizer.sampling != "stratified" or len(records) <= wanted:
        return []
    if find_spec("sklearn") is None:
        raise ConfigError("tokenizer.sampling 'stratified' needs scikit-learn: install the extra, pip install -e '.[sampling]'")
    count = min(max(_CANDIDATES, 2 * wanted), len(records))
    return [records[i] for i in np.sort(np.random.default_rng(config.seed).choice(len(records), count, replace=False))]


def choose(config: ConfigDict, paths: Paths, corpus: Corpus, drawn: list[Path], run: Run) -> list[Path]:
    """Usable training recordings by `tokenizer.sampling`, in the order of the corpus; the seed decides.

    drawn: what `candidates` gave.
    """
    records = corpus.records("train")
    wanted = config.tokenizer.sample_records
    rng = np.random.default_rng(config.seed)
    if config.tokenizer.sampling == "all" or len(records) <= wanted:
        return records
    if config.tokenizer.sampling == "random":
        return [records[i] for i in np.sort(rng.choice(len(records), wanted, replace=False))]
    usable = set(records)
    clustered = [record for record in drawn if record in usable]
    clusters = _clusters(config, paths, corpus, clustered, run)
    return [clustered[i] for i in sample_evenly(clusters, wanted, rng)]


def _clusters(config: ConfigDict, paths: Paths, corpus: Corpus, records: list[Path], run: Run) -> np.ndarray:
    """The cluster int [R] of each recording, kept in the cache beside their features."""
    record_keys = corpus.keys(records, paths.root)
    how = (config.tokenizer.max_clusters, config.seed)
    name = stages.digest([_VERSION, *how, record_keys.tolist()])[:24]
    file = quantize.features_folder(paths, quantize.Cleaning.of(config)) / f"{name}.clusters"
    kept = read_arrays(file)
    if kept is not None:
        return kept["clusters"]
    clusters = cluster(_features(config, paths, records, record_keys, run), *how)
    write_arrays(file, clusters=clusters)
    return clusters


def cluster(found: np.ndarray, max_clusters: int, seed: int) -> np.ndarray:
    """The cluster int [R] of each recording by its features [R, F], as published, in mini-batches.

    Principal components of 95% of the variance, then standardised; k-means, where the number of clusters is the smaller of the
    elbow (the largest fall of the inertia) and the best silhouette, on 10,000 of the recordings.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums of several threads differ in the last bit from run to run
        components = PCA(_VARIANCE, svd_solver="covariance_eigh").fit_transform(found)
        points = StandardScaler().fit_transform(components)
        sample = np.random.default_rng(seed).permutation(len(points))[:_SAMPLE]
        return _k_means(points, _count_clusters(points[sample], max_clusters, seed), seed).labels_


def _count_clusters(points: np.ndarray, max_clusters: int, seed: int) -> int:
    from sklearn.metrics import pairwise_distances, silhouette_score

    counts = range(2, min(max_clusters, len(points) - 1) + 1)
    if not counts:
        return 1
    distances = pairwise_distances(points[:_SILHOUETTE_SAMPLE])
    inertias, silhouettes = [], []
    with progress("clusters", len(counts)) as report:
        for done, count in enumerate(counts, start=1):
            fitted = _k_means(points, count, seed)
            inertias.append(fitted.inertia_)
            labels = fitted.labels_[:_SILHOUETTE_SAMPLE]
            several = 1 < len(np.unique(labels)) < len(labels)  # a few outliers may be a cluster that stands not among these
            silhouettes.append(silhouette_score(distances, labels, metric="precomputed") if several else -1.0)
            report(done)
    elbow = int(np.argmin(np.diff(inertias))) if len(inertias) > 1 else 0
    return counts[min(elbow, int(np.argmax(silhouettes)))]


def _k_means(points: np.ndarray, count: int, seed: int) -> "MiniBatchKMeans":
    from sklearn.cluster import MiniBatchKMeans

    return MiniBatchKMeans(count, random_state=seed, n_init=_STARTS, batch_size=_BATCH).fit(points)


def sample_evenly(clusters: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Places int [wanted] of recordings, in order: the same number of each cluster, the rest from all others at random."""
    names = np.unique(clusters)
    share = wanted // len(names)
    members = [np.flatnonzero(clusters == name) for name in names]
    chosen = np.concatenate([rng.choice(some, min(share, len(some)), replace=False) for some in members])
    others = np.setdiff1d(np.arange(len(clusters)), chosen)
    rest = rng.choice(others, min(wanted - len(chosen), len(others)), replace=False)
    return np.sort(np.concatenate([chosen, rest]).astype(int))


def _features(config: ConfigDict, paths: Paths, records: list[Path], record_keys: np.ndarray, run: Run) -> np.ndarray:
    """float64 [R, F]; those that were cleaned before without being measured are cleaned again, in tasks."""
    folder = quantize.features_folder(paths, quantize.Cleaning.of(config))
    found = read_features(folder, record_keys)
    missing = [i for i, key in enumerate(record_keys.tolist()) if key not in found]
    if missing:
        tasks = quantize.make_tasks(config, paths, [records[i] for i in missing], record_keys[missing])
        done = 0
        with progress("morphology", len(missing)) as report:
            for _, measured in run(measure_part, tasks):
                report(done := done + measured)
        found |= read_features(folder, record_keys[missing])
    return np.stack([found[key] for key in record_keys.tolist()])


def measure_part(task: quantize.Task) -> int:
    """Keeps the features of a few hundred recordings; returns their number."""
    found = {key: features(*task.cleaning.whole(record)) for key, record in zip(task.keys, task.records)}
    write_features(task.features, found)
    return len(found)
