"""What holds for every stage: where it may run, and how a lack of memory is reported."""

import json
from dataclasses import asdict

import jax.numpy as jnp
import numpy as np
import pytest

from ecgbyte_jax.errors import ConfigError, OutOfMemoryError
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
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


def test_an_encoder_that_was_trained_on_another_fold_is_refused_in_a_cross_validation(config, tmp_path):
    other = Workdir(tmp_path / "other")
    config.data.folds, config.data.fold = 3, 1
    config.ecg_input.kind = config.encoder.kind = "encoder"
    config.encoder.kind, config.encoder.pretrained = "mtae", str(other.root)
    other.root.mkdir()
    other.config.write_text(json.dumps(asdict(Settings.of(config))))
    config.data.fold = 2
    with pytest.raises(
        ConfigError, match=r"'.*other' was trained with data.folds 3 and data.fold 1, this run has 3 and 2: the enc"
    ):
        run(config, tmp_path / "w", ["train"])
    for name, value in (("fold", 1), ("corpus", "own")):  # the same fold; recordings that may be others
        with config.unlocked(), pytest.raises(ConfigError, match="--workdir: no folder"):
            config.data[name] = value
            run(config, tmp_path / "w", ["train"])


def test_a_folder_that_is_not_there_is_not_made_where_a_run_is_to_be_read(config, tmp_path):
    for name in ("demo", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"data": {}}')
    with pytest.raises(ConfigError, match=r"^--workdir: no folder '.*dmeo', which --stage=train,eval reads; .*: \S*/demo, "):
        run(config, tmp_path / "dmeo", ["train", "eval"])
    assert not (tmp_path / "dmeo").exists()


@pytest.mark.parametrize(("name", "value"), [("corpus", "ptbxl"), ("synthetic_records", 0)])
@pytest.mark.parametrize("stage", ["prepare", "tokenizer"])
def test_another_corpus_is_not_prepared_over_a_run(prepared, config, stage, name, value):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    config.data[name] = value
    with pytest.raises(ConfigError, match=r"a run on synthetic data of corpus 'ecg_qa' is here, .* --workdir=DIR$"):
        run(config, prepared, [stage])
    assert before == {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
