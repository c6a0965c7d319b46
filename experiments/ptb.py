"""PTB-XL: explain the ECG. The question is always the same; the answer is the cardiologist's report.

    python main.py --config=experiments/ptb.py --config.data.root=PTBXL --config.model.pretrained=LLAMA --workdir=runs/ptb

PTBXL is the folder of PTB-XL 1.0.3, LLAMA a Hugging Face folder of Llama 3.2 1B.
Hardware: one accelerator with 16 GB or more; `--stage=fit` says what fits yours. The published 2 rows a step leave most of a
TPU v5e's 16 GB empty; `--config.train.batch_size=8` needs 12.3 GB there (`fit.topology=v5e-1`). Time: not measured. Result: not
measured.

    python main.py --config=experiments/ptb.py:tiny --config.data.root=PTBXL --workdir=runs/ptb_tiny

The same pipeline with a model of 0.2 M parameters from scratch. On 388 recordings of PTB-XL: Hardware: 2 CPU cores. Time: one
minute. Result: exact match 31%, that of the commonest report: so small a model learns the wording of the reports, but not to
read the ECG.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "ptbxl"
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
    return config
