"""PTB-XL: explain the ECG. The question is always the same, the answer is the cardiologist's report.

    python main.py --config=experiments/ptb.py --config.data.root=PTBXL --config.model.pretrained=LLAMA --workdir=runs/ptb

PTBXL is the folder of PTB-XL 1.0.3, LLAMA a downloaded Hugging Face folder of Llama 3.2 1B. Hardware: one accelerator with
40 GB. Time and result: not measured yet.

    python main.py --config=experiments/ptb.py:tiny --config.data.root=PTBXL --workdir=runs/ptb_tiny

The same way through the code with a model of 0.2 M parameters from scratch. On 388 recordings of PTB-XL and 2 CPU cores it
takes one minute; so small a model learns the wording of the reports and not to read the ECG: its exact match is that of the
commonest report (31%).
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """arg: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "ptbxl"
    use_published_model(config)
    if arg == "tiny":
        use_tiny_model(config)
    elif arg:
        raise ValueError(f"experiments/ptb.py:{arg}: unknown argument, 'tiny' or none wanted")
    return config
