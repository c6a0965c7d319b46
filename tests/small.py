"""The demo, small enough to prepare and train within seconds."""

from ml_collections import ConfigDict

from experiments import demo


def small_config() -> ConfigDict:
    """Its config, to be changed by a test."""
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
