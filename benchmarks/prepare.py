"""How long preparation takes: `python -m benchmarks.prepare --root=PTBXL [--merges=1000]`.

Every recording of a PTB-XL folder, all segments, with the published signal settings: cleaning, quantizer, BPE, token shards.
"""

import argparse
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

from ecgbyte_jax.inputs.shards import read_manifest
from ecgbyte_jax.run.logbook import banner
from ecgbyte_jax.run.prepare import prepare
from experiments import ptb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="the folder with ptbxl_database.csv")
    parser.add_argument("--merges", type=int, default=1000)
    arguments = parser.parse_args()
    config = ptb.get_config("tiny")
    config.data.root = arguments.root
    config.data.max_segments = 0
    config.tokenizer.num_merges = arguments.merges
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        prepare(config, Path(folder))
        seconds = time.perf_counter() - start
        splits = read_manifest(Path(folder) / "shards").splits.values()
    examples = sum(split.examples for split in splits)
    rows = {
        "machine": f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}",
        "recordings": examples,
        "segments": sum(split.sequences for split in splits),
        "seconds": f"{seconds:.1f}",
        "ms a recording": f"{1000 * seconds / examples:.1f}",
        "peak memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB",
    }
    banner("benchmarks/prepare.py", rows)


if __name__ == "__main__":
    main()
