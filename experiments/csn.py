"""Chapman-Shaoxing-Ningbo: which findings a recording shows, and the patient's age and sex, asked by templates.

    python main.py --config=experiments/csn.py --config.data.root=CSN --config.model.pretrained=LLAMA --workdir=runs/csn

CSN is the folder that holds WFDBRecords and ConditionNames_SNOMED-CT.csv, LLAMA a Hugging Face folder of Llama 3.2 1B.
Hardware: intended for one accelerator with 40 GB. Time: not measured. Result: not measured.

    python main.py --config=experiments/csn.py:tiny --config.data.root=CSN --workdir=runs/csn_tiny

The same pipeline with a model of 0.2 M parameters from scratch. Hardware, time and result: not measured.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "csn"
    config.data.root = "data/csn"
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
    return config
