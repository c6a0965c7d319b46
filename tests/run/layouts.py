"""Trains, validates and evaluates the small demo as one of several processes, in one layout after the other.

`python -m tests.run.layouts FOLDER ADDRESS PROCESSES NUMBER DATAxFSDPxTENSOR ...`; FOLDER/DATAxFSDPxTENSOR is prepared.
"""

import sys
from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.run import distributed
from ecgbyte_jax.run.evaluate import evaluate
from ecgbyte_jax.run.train import train
from tests.run.conftest import small_config


def layout_config(layout: str) -> ConfigDict:
    """Four steps and a few answers; LoRA's dropout depends on which row of a batch stands where."""
    config = small_config()
    config.train.epochs = 0.25
    config.train.valid_answers = config.eval.max_sequences = 8
    config.lora.rank, config.lora.dropout = 4, 0.3
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = map(int, layout.split("x"))
    return config


def main(folder: str, address: str, processes: str, number: str, *layouts: str) -> None:
    config = small_config()
    config.distributed.address, config.distributed.heartbeat = address, 10
    config.distributed.initialize = int(processes) > 1
    config.distributed.processes, config.distributed.process = int(processes), int(number)
    distributed.join(config)
    for layout in layouts:
        for stage in (train, evaluate):
            stage(layout_config(layout), Path(folder) / layout)
            distributed.wait_for_all(f"{layout} {stage.__name__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
