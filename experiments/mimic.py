"""MIMIC-IV-ECG: explain the ECG. The question is always the same; the answer is the machine's report.

    python main.py --config=experiments/mimic.py --config.data.root=MIMIC --config.model.pretrained=LLAMA --workdir=runs/mimic

MIMIC is the folder of MIMIC-IV-ECG 1.0 (with record_list.csv, machine_measurements.csv and files/), LLAMA a Hugging Face
folder of Llama 3.2 1B. Prepare it with `--config.prepare.workers=16`, or on a Dask cluster with `--config.prepare.scheduler`;
the cached symbols of 800,035 recordings take 24 GB. Hardware: intended for one accelerator with 40 GB. Time: not measured.
Result: not measured.

    python main.py --config=experiments/mimic.py:tiny --config.data.root=MIMIC --workdir=runs/mimic_tiny

The same pipeline with a model of 0.2 M parameters from scratch. Hardware, time and result: not measured.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "mimic"
    config.data.root = "data/mimic-iv-ecg"
    config.tokenizer.sampling = "stratified"
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
        config.tokenizer.sampling = "random"
    return config
