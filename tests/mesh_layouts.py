"""Trains, validates and evaluates the small demo as one of several processes, in one layout after the other.

`python -m tests.mesh_layouts FOLDER ADDRESS PROCESSES NUMBER DATAxFSDPxTENSOR ...`; FOLDER/DATAxFSDPxTENSOR is prepared.
"""

import sys
from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.run import processes as together
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages.eval import evaluate
from ecgbyte_jax.stages.train import train
from tests.small import small_config


def layout_config(layout: str) -> ConfigDict:
    """Four steps and a few answers; LoRA's dropout depends on which row of a batch stands where."""
    config = small_config()
    config.train.epochs = 0.25
    config.train.valid_answers = config.eval.max_sequences = 8
    config.lora.rank, config.lora.dropout = 4, 0.3
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = map(int, layout.split("x"))
    return config


def main(folder: str, address: str, processes: str, number: str, *layouts: str) -> None:
    if int(processes) > 1:
        together.join(address=address, processes=int(processes), process=int(number), timeout=300, heartbeat=10)
    for layout in layouts:
        for stage in (train, evaluate):
            stage(Settings.of(layout_config(layout)), Workdir(Path(folder) / layout))
            together.wait_for_all(f"{layout} {stage.__name__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
