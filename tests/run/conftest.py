from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments import demo


def small_config() -> ConfigDict:
    """The demo, small enough to prepare and train within seconds."""
    config = demo.get_config()
    config.data.synthetic_records = 40
    config.data.max_segments = 1
    config.tokenizer.num_merges = 100
    config.model.width = 32
    config.model.layers = 2
    config.model.head_dim = 16
    config.model.mlp_width = 64
    config.train.batch_size = 8
    config.train.epochs = 0.5
    config.train.checkpoint_every = 4
    config.eval.batch_size = 8
    config.eval.max_new_tokens = 8
    return config


@pytest.fixture
def config() -> ConfigDict:
    return small_config()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A work directory in which `prepare` has run on `small_config()`."""
    from ecgbyte_jax.run.prepare import prepare

    workdir = tmp_path_factory.mktemp("prepared")
    prepare(small_config(), workdir)
    return workdir
