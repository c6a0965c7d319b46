"""Which training recordings the ECG tokenizer is trained on: all, random ones, or evenly from clusters of their features.

Axes: R recordings, F features (24 per lead).
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.ecg.features import features as measure
from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import read_arrays, write_arrays
from ecgbyte_jax.prepare.cleaning import Task, TaskMaker
from ecgbyte_jax.prepare.corpus import Corpus
from ecgbyte_jax.prepare.feature_cache import read_features, write_features
from ecgbyte_jax.prepare.workers import Run
from ecgbyte_jax.run.console import progress
from ecgbyte_jax.run.stage import json_digest
from ecgbyte_jax.settings import TokenizerSettings

if TYPE_CHECKING:
    from sklearn.cluster import MiniBatchKMeans

_VERSION = 1  # of the cached clusters
_CANDIDATES = 100_000  # recordings clustered, drawn at random if there are more: their features fill 230 MB
_SAMPLE = 10_000  # of them, used to choose the number of clusters
_SILHOUETTE_SAMPLE = 5_000  # of those: their distances fill 200 MB
_VARIANCE = 0.95
_STARTS, _BATCH = 10, 1024  # of k-means


def candidates(tokenizer: TokenizerSettings, corpus: Corpus, seed: int) -> list[SignalSource]:
    """Draws the training recordings to be measured and clustered; none if the sampling needs no clusters.

    They are drawn before cleaning, so that they can be measured during it; some may prove unusable. Raises ConfigError if
    scikit-learn is not installed.
    """
    records, count = corpus.records("train"), tokenizer.sample_records
    if tokenizer.sampling != "stratified" or len(records) <= count:
        return []
    if find_spec("sklearn") is None:
        raise ConfigError("tokenizer.sampling 'stratified' needs scikit-learn: install the extra, pip install -e '.[sampling]'")
    chances, count = corpus.chances(records) if tokenizer.by_weight else None, min(max(_CANDIDATES, 2 * count), len(records))
    drawn = np.random.default_rng(seed).choice(len(records), count, replace=False, p=chances)
    return [records[i] for i in np.sort(drawn)]


def choose(
    tokenizer: TokenizerSettings, maker: TaskMaker, corpus: Corpus, drawn: list[SignalSource], run: Run
) -> list[SignalSource]:
    """Chooses usable training recordings by `tokenizer.sampling` and the seed, in corpus order.

    drawn: the result of `candidates`.
    """
    records, count = corpus.records("train"), tokenizer.sample_records
    rng = np.random.default_rng(maker.seed)
    if tokenizer.sampling == "all" or len(records) <= count:
        return records
    if tokenizer.sampling == "random":
        chances = corpus.chances(records) if tokenizer.by_weight else None
        return [records[i] for i in np.sort(rng.choice(len(records), count, replace=False, p=chances))]
    usable = set(records)
    clustered = [record for record in drawn if record in usable]
    clusters = _clusters(tokenizer.max_clusters, maker, corpus, clustered, run)
    return [clustered[i] for i in sample_evenly(clusters, count, rng)]


def _clusters(max_clusters: int, maker: TaskMaker, corpus: Corpus, records: list[SignalSource], run: Run) -> np.ndarray:
    """The cluster int [R] of each recording, cached next to the features."""
    keys = corpus.keys(records)
    name = json_digest([_VERSION, max_clusters, maker.seed, keys.tolist()])[:24]
    file = maker.features / f"{name}.clusters"
    cached = read_arrays(file)
    if cached is not None:
        return cached["clusters"]
    clusters = cluster(_features(maker, records, keys, run), max_clusters, maker.seed)
    write_arrays(file, clusters=clusters)
    return clusters


def cluster(features: np.ndarray, max_clusters: int, seed: int) -> np.ndarray:
    """Clusters recordings by features [R, F], as published, but in mini-batches; int [R], the cluster of each.

    Principal components with 95% of the variance, standardised; k-means, with the number of clusters the smaller of the elbow
    (largest drop in inertia) and the best silhouette, on 10,000 of the recordings.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # multi-threaded sums differ in the last bit between runs
        components = PCA(_VARIANCE, svd_solver="covariance_eigh").fit_transform(features)
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
            scorable = 1 < len(np.unique(labels)) < len(labels)  # a cluster of a few outliers may not be in this sample
            silhouettes.append(silhouette_score(distances, labels, metric="precomputed") if scorable else -1.0)
            report(done)
    elbow = int(np.argmin(np.diff(inertias))) if len(inertias) > 1 else 0
    return counts[min(elbow, int(np.argmax(silhouettes)))]


def _k_means(points: np.ndarray, count: int, seed: int) -> "MiniBatchKMeans":
    from sklearn.cluster import MiniBatchKMeans

    return MiniBatchKMeans(count, random_state=seed, n_init=_STARTS, batch_size=_BATCH).fit(points)


def sample_evenly(clusters: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Samples indices int [count], sorted: the same number from each cluster, the remainder at random from the others."""
    names = np.unique(clusters)
    share = count // len(names)
    members = [np.flatnonzero(clusters == name) for name in names]
    chosen = np.concatenate([rng.choice(places, min(share, len(places)), replace=False) for places in members])
    others = np.setdiff1d(np.arange(len(clusters)), chosen)
    rest = rng.choice(others, min(count - len(chosen), len(others)), replace=False)
    return np.sort(np.concatenate([chosen, rest]).astype(int))


def _features(maker: TaskMaker, records: list[SignalSource], keys: np.ndarray, run: Run) -> np.ndarray:
    """float64 [R, F]; recordings cached without features are cleaned again, in tasks."""
    measured = read_features(maker.features, keys)
    missing = [i for i, key in enumerate(keys.tolist()) if key not in measured]
    if missing:
        done = 0
        with progress("morphology", len(missing)) as report:
            for _, count in run(measure_part, maker.tasks([records[i] for i in missing], keys[missing])):
                report(done := done + count)
        measured |= read_features(maker.features, keys[missing])
    return np.stack([measured[key] for key in keys.tolist()])


def measure_part(task: Task) -> int:
    """Measures and writes the features of a few hundred recordings; returns their number."""
    measured = {key: measure(*task.cleaning.whole(record)) for key, record in zip(task.keys, task.records)}
    write_features(task.features, measured)
    return len(measured)
