"""MIMIC-IV-ECG: explain the ECG. The question is always the same, the answer is the machine's report.

    python main.py --config=experiments/mimic.py --config.data.root=MIMIC --config.model.pretrained=LLAMA --workdir=runs/mimic

MIMIC is the folder of MIMIC-IV-ECG 1.0 (with record_list.csv, machine_measurements.csv and files/), LLAMA a downloaded Hugging
Face folder of Llama 3.2 1B. Preparation: `--config.prepare.workers=16`, or a Dask cluster with `--config.prepare.scheduler`;
800,035 recordings take 24 GB of symbols in the cache. Hardware: one accelerator with 40 GB. Time and result: not measured yet.

    python main.py --config=experiments/mimic.py:tiny --config.data.root=MIMIC --workdir=runs/mimic_tiny

The same way through the code with a model of 0.2 M parameters from scratch.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """arg: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "mimic"
    config.data.root = "data/mimic-iv-ecg"
    config.tokenizer.sampling = "stratified"
    use_published_model(config)
    if arg == "tiny":
        use_tiny_model(config)
        config.tokenizer.sampling = "random"
    elif arg:
        raise ValueError(f"experiments/mimic.py:{arg}: unknown argument, 'tiny' or none wanted")
    return config
