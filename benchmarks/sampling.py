"""How long stratified sampling takes: `python -m benchmarks.sampling --root=PTBXL [--recordings=100000] [--clusters=100]`.

Measures the morphology of recordings of a PTB-XL folder, draws `--recordings` rows around it (with noise of a tenth of each
feature's standard deviation) and clusters them. Times are CPU times.
"""

import argparse
import os
import platform
import resource
import time
from pathlib import Path

import numpy as np

from ecgbyte_jax.ecg.features import features
from ecgbyte_jax.ecg.records import read_record
from ecgbyte_jax.ecg.signal import CleanConfig, clean
from ecgbyte_jax.errors import RecordError
from ecgbyte_jax.prepare.sampling import cluster
from ecgbyte_jax.run.console import banner

MEASURED = 200  # recordings, at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="the folder with ptbxl_database.csv")
    parser.add_argument("--recordings", type=int, default=100_000)
    parser.add_argument("--clusters", type=int, default=100)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    measured, milliseconds = measure(Path(arguments.root))
    rng = np.random.default_rng(0)
    rows = measured[rng.integers(len(measured), size=arguments.recordings)]
    rows += 0.1 * measured.std(axis=0) * rng.standard_normal(rows.shape)
    start = time.process_time()
    clusters = cluster(rows, arguments.clusters, seed=0)
    banner(
        "stratified sampling",
        {
            "measure one recording": f"{milliseconds:.1f} ms, so {milliseconds * arguments.recordings / 60_000:.1f} min in all",
            f"cluster {arguments.recordings:,}": f"{time.process_time() - start:.0f} s: {clusters.max() + 1} clusters",
            "peak memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB",
        },
    )


def measure(root: Path) -> tuple[np.ndarray, float]:
    """(features float64 [R, F] of the usable recordings among the first ones, CPU milliseconds for one)."""
    measured, spent = [], 0.0
    for path in sorted(root.glob("records500/*/*.hea"))[:MEASURED]:
        try:
            signal = clean(read_record(path.with_suffix("")), CleanConfig())
        except RecordError:
            continue
        start = time.process_time()
        measured.append(features(signal, 250.0))
        spent += time.process_time() - start
    return np.stack(measured), 1000 * spent / len(measured)


if __name__ == "__main__":
    main()
