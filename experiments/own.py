"""Your own recordings and questions: recordings below a folder, and one table.

    python main.py --config=experiments/own.py --config.data.root=RECORDS --config.data.table=TABLE.csv \
        --config.model.pretrained=LLAMA --workdir=runs/own

TABLE is a CSV or JSONL file with the fields record (a path below RECORDS), question, answer and patient, and optionally split
(train, valid, test) and id. In place of question and answer it may have messages, a conversation as [{"role": "user",
"content": ...}, {"role": "assistant", ...}]. In JSONL, record may be a list of two for a comparison; patients then lists the
patients of both. Recordings are of any format that `ask` reads (README, "Your own data"). LLAMA is a Hugging Face folder
of Llama 3.2 1B.
Hardware: intended for one accelerator with 40 GB. Time: not measured. Result: not measured.

    python main.py --config=experiments/own.py:tiny --config.data.root=RECORDS --config.data.table=TABLE.csv

The same pipeline with a model of 0.2 M parameters from scratch. Hardware, time and result: not measured.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "own"
    config.data.root = "data/own"
    config.data.table = "data/own/examples.csv"
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
    return config
