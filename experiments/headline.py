"""Ways to give an ECG to a language model, with the same decoder, data and steps: scores and costs on one page.

    make headline        (or python main.py --config=experiments/headline.py --stage=prepare,headline)

on synthetic recordings, more of them than in the demo, with tiny encoders. With a real decoder and encoders of published sizes,
on an accelerator:

    python main.py --config=experiments/headline.py:ptb --stage=prepare,headline --config.data.root=PTBXL
    python main.py --config=experiments/headline.py:mimic --stage=prepare,headline --config.data.root=MIMIC

Each system and seed is a run in systems/ of the run's folder. The same command goes on where it was stopped.
"""

from ml_collections import ConfigDict

from experiments import demo, mimic, ptb
from experiments.common import parse_argument


def get_config(arg: str = "") -> ConfigDict:
    """The comparison on synthetic data; "ptb", "mimic": on these, with their model."""
    if parse_argument(arg, "ptb", "mimic"):
        config = {"ptb": ptb, "mimic": mimic}[arg].get_config()
        config.ecg_input.vectors = 50
        config.train.valid_answers = 200
        return config
    config = demo.get_config()
    config.data.synthetic_records = 1000
    config.data.max_segments = 2
    config.data.length_buckets = (64, 96, 160, 192, 224, 256)
    config.ecg_input.vectors = 25
    config.encoder.size = "tiny"
    config.pretrain.batch_size = 64
    config.pretrain.epochs = 10.0
    config.pretrain.checkpoint_every = 100
    config.pretrain_optim.preset = "adamw"
    config.pretrain_optim.peak_rate = 2e-3
    config.pretrain_optim.warmup = 50
    config.train.epochs = 1.5
    config.train.checkpoint_every = 50
    config.train.valid_answers = 200
    return config
