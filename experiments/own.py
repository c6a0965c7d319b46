"""Your own recordings and questions: WFDB records below a folder, and one table.

    python main.py --config=experiments/own.py --config.data.root=RECORDS --config.data.table=TABLE.csv \
        --config.model.pretrained=LLAMA --workdir=runs/own

TABLE is a CSV or JSONL file with the fields record (a path below RECORDS), question, answer and patient, and, where you have
them, split (train, valid, test) and id. In JSONL, record may be a list of two for a comparison, and patients then lists the
patients of both. Records hold the twelve leads by name, in mV, uV or V, at any sampling rate. LLAMA is a downloaded Hugging
Face folder of Llama 3.2 1B. Hardware: one accelerator with 40 GB.

    python main.py --config=experiments/own.py:tiny --config.data.root=RECORDS --config.data.table=TABLE.csv

The same way through the code with a model of 0.2 M parameters from scratch.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """arg: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "own"
    config.data.root = "data/own"
    config.data.table = "data/own/examples.csv"
    use_published_model(config)
    if arg == "tiny":
        use_tiny_model(config)
    elif arg:
        raise ValueError(f"experiments/own.py:{arg}: unknown argument, 'tiny' or none wanted")
    return config
