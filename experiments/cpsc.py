"""CPSC 2018: which findings a recording shows, and the patient's age and sex, asked by templates.

    python main.py --config=experiments/cpsc.py --config.data.root=CPSC --config.model.pretrained=LLAMA --workdir=runs/cpsc

CPSC is a folder above the recordings of CPSC 2018 in the layout of the PhysioNet challenges (A0001.hea with
A0001.mat) or of its first release (A0001.mat and REFERENCE.csv), LLAMA a Hugging Face folder of Llama 3.2 1B.
Hardware: intended for one accelerator with 40 GB. Time: not measured. Result: not measured.

    python main.py --config=experiments/cpsc.py:tiny --config.data.root=CPSC --workdir=runs/cpsc_tiny

The same pipeline with a model of 0.2 M parameters from scratch. On ten recordings: Hardware: 2 CPU cores. Time: 1 min 23 s.
Result: exact match 20%, less than the commonest answer's 33%: seven recordings teach nothing.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "cpsc"
    config.data.root = "data/cpsc2018"
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
    return config
