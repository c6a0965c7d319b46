"""The demo: synthetic ECGs with questions about them, from WFDB files to scores, with nothing to download.

    python main.py --config=experiments/demo.py --workdir=runs/demo        (or `make demo`)

Hardware: 2 CPU cores; no accelerator needed. Time: 7 min 11 s with the installation, on busy cores.
Result, exact match on patients not in training: the model 79.5%, the model given another patient's ECG 44.8%, the commonest
answer to each question 51.5%; by recording 87.5, 50.0 and 51.5%.

    python main.py --config=experiments/demo.py:small --workdir=runs/small

The same with fewer recordings and a smaller model, for tutorials and tests: it shows what happens, not how good it gets.

The signal is resampled to 50 Hz and the model has only 0.7 M parameters, so that the complete pipeline takes minutes.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, parse_argument


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "small"."""
    small = parse_argument(arg, "small") == "small"
    config = get_defaults()
    config.data.corpus = "ecg_qa"
    config.data.synthetic_records = 500
    config.data.max_segments = 5
    config.signal.target_rate = 50.0
    config.signal.segment_length = 100
    config.signal.band = (0.5, 20.0)
    config.tokenizer.num_merges = 2000
    config.tokenizer.percentile_records = 200
    config.prompt.max_length = 256
    config.prompt.text_vocab_size = 600
    config.model.width = 128
    config.model.layers = 2
    config.model.heads = 2
    config.model.kv_heads = 2
    config.model.head_dim = 64
    config.model.mlp_width = 384
    config.model.vocab_multiple = 1
    config.optim.preset = "adamw"
    config.optim.peak_rate = 2e-3
    config.optim.warmup = 50
    config.train.batch_size = 32
    config.train.epochs = 1.15
    config.train.checkpoint_every = 100
    config.eval.batch_size = 64
    config.eval.max_new_tokens = 24
    if small:
        config.data.synthetic_records = 240
        config.data.max_segments = 1
        config.tokenizer.num_merges = 500
        config.model.width = 64
        config.model.head_dim = 32
        config.model.mlp_width = 192
        config.optim.peak_rate = 5e-3
        config.train.epochs = 4.0
    return config
