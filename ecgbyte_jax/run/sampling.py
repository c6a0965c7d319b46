"""Which training recordings the ECG tokenizer is trained on: all, some at random, or evenly over clusters of their morphology.

Axes: R recordings, F features (24 a lead).
"""

import hashlib
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ecgbyte_jax.ecg.features import features
from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run import quantize, stages
from ecgbyte_jax.run.corpus import Corpus, Paths
from ecgbyte_jax.run.logbook import progress
from ecgbyte_jax.run.workers import Run

_CANDIDATES = 100_000  # recordings that are clustered, drawn at random where there are more: their features fill 230 MB
_SILHOUETTE_SAMPLE = 10_000
_VARIANCE = 0.95


def choose(config: ConfigDict, paths: Paths, corpus: Corpus, run: Run) -> list[Path]:
    """Usable training recordings by `tokenizer.sampling`, in the order of the corpus; the seed decides."""
    records = corpus.records("train")
    wanted = config.tokenizer.sample_records
    rng = np.random.default_rng(config.seed)
    if config.tokenizer.sampling == "all" or len(records) <= wanted:
        return records
    if config.tokenizer.sampling == "random":
        return [records[i] for i in np.sort(rng.choice(len(records), wanted, replace=False))]
    drawn = np.sort(rng.choice(len(records), min(max(_CANDIDATES, wanted), len(records)), replace=False))
    candidates = [records[i] for i in drawn]
    found = _features(config, paths, corpus, candidates, run)
    clusters = cluster(found, config.tokenizer.max_clusters, config.seed)
    return [candidates[i] for i in sample_evenly(clusters, wanted, rng)]


def cluster(found: np.ndarray, max_clusters: int, seed: int) -> np.ndarray:
    """The cluster int [R] of each recording by its features [R, F], as published.

    Principal components of 95% of the variance, then standardised; k-means, where the number of clusters is the smaller of the
    elbow (the largest fall of the inertia) and the best silhouette.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
        from sklearn.metrics import silhouette_score
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ConfigError(
            "tokenizer.sampling 'stratified' needs scikit-learn: install the extra, pip install -e '.[sampling]'"
        ) from error
    with threadpool_limits(1):  # sums of several threads differ in the last bit from run to run
        points = StandardScaler().fit_transform(PCA(_VARIANCE, svd_solver="full").fit_transform(found))
        counts = range(2, min(max_clusters, len(points) - 1) + 1)
        inertias, silhouettes, labels = [], [], []
        with progress("clusters", len(counts)) as report:
            for done, count in enumerate(counts, start=1):
                fitted = KMeans(count, random_state=seed, n_init=10).fit(points)
                sample = min(_SILHOUETTE_SAMPLE, len(points))
                inertias.append(fitted.inertia_)
                silhouettes.append(silhouette_score(points, fitted.labels_, sample_size=sample, random_state=seed))
                labels.append(fitted.labels_)
                report(done)
    elbow = int(np.argmin(np.diff(inertias))) if len(inertias) > 1 else 0
    return labels[min(elbow, int(np.argmax(silhouettes)))]


def sample_evenly(clusters: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Places int [wanted] of recordings, in order: the same number of each cluster, the rest from all others at random."""
    names = np.unique(clusters)
    share = wanted // len(names)
    members = [np.flatnonzero(clusters == name) for name in names]
    chosen = np.concatenate([rng.choice(some, min(share, len(some)), replace=False) for some in members])
    others = np.setdiff1d(np.arange(len(clusters)), chosen)
    rest = rng.choice(others, min(wanted - len(chosen), len(others)), replace=False)
    return np.sort(np.concatenate([chosen, rest]).astype(int))


def _features(config: ConfigDict, paths: Paths, corpus: Corpus, records: list[Path], run: Run) -> np.ndarray:
    """float64 [R, F], computed in tasks and kept in the cache."""
    cleaning = quantize.Cleaning.of(config)
    folder = paths.cache / "features" / stages.digest(repr(cleaning))[:24]
    tasks = quantize.make_tasks(config, paths, records, corpus.keys(records, paths.root), cache=str(folder))
    parts: dict[int, np.ndarray] = {}
    with progress("morphology", len(records)) as report:
        for number, part in run(measure_part, tasks):
            parts[number] = part
            report(sum(len(found) for found in parts.values()))
    return np.concatenate([parts[number] for number in range(len(tasks))])


def measure_part(task: quantize.Task) -> np.ndarray:
    """Features float64 [R, F] of a few hundred recordings, read where they were computed before."""
    name = hashlib.sha256(np.array(task.keys, np.uint64).tobytes()).hexdigest()[:24]
    file = Path(task.cache) / f"{name}.features"
    if file.is_file():
        return np.fromfile(file).reshape(len(task.keys), -1)
    cleaned = map(task.cleaning.whole, task.records)
    found = np.stack([features(signal, rate) for signal, rate in cleaned])
    write_whole(file, [found.tobytes()])
    return found
