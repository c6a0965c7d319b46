"""What holds for every stage: where it may run, and how a lack of memory is reported."""

import jax.numpy as jnp
import numpy as np
import pytest

from ecgbyte_jax.errors import ConfigError, OutOfMemoryError
from ecgbyte_jax.stages import inspect
from ecgbyte_jax.stages.pipeline import run


@pytest.mark.parametrize("allocate", [np.zeros, jnp.zeros])
def test_a_stage_without_enough_memory_says_so_in_one_line(config, tmp_path, monkeypatch, allocate):
    monkeypatch.setattr(inspect, "inspect", lambda *given: allocate((1 << 50,), "uint8"))
    with pytest.raises(OutOfMemoryError, match=r"^inspect: out of memory \(.*\); a smaller batch_size [^\n]*$"):
        run(config, tmp_path, ["inspect"])


def test_other_errors_of_a_stage_keep_their_place(config, tmp_path, monkeypatch):
    def fail(*given):
        raise RuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(inspect, "inspect", fail)
    with pytest.raises(RuntimeError, match="INTERNAL: a bug"):
        run(config, tmp_path, ["inspect"])


@pytest.mark.parametrize("stage", ["attend", "ask"])
def test_stages_that_need_the_whole_model_in_one_process_are_refused_in_several(config, tmp_path, stage):
    config.distributed.initialize = True
    with pytest.raises(ConfigError, match=rf"--stage: \['{stage}'\] found with distributed.initialize; .* one process"):
        run(config, tmp_path, ["prepare", stage])
