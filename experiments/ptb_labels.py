"""PTB-XL's labels: which of its 71 statements, 23 subclasses or 5 superclasses a recording shows, asked by templates.

    python main.py --config=experiments/ptb_labels.py --config.data.root=PTBXL --config.model.pretrained=LLAMA

PTBXL is the folder of PTB-XL 1.0.3, LLAMA a Hugging Face folder of Llama 3.2 1B. `--config.data.label_set=superclasses` or
subclasses asks about these. Every label gets AUROC and other scores (`eval.labels`, with the extra `labels`).
Hardware: intended for one accelerator with 40 GB. Time: not measured. Result: not measured.

    python main.py --config=experiments/ptb_labels.py:tiny --config.data.root=PTBXL --workdir=runs/ptb_labels_tiny

The same pipeline with a model of 0.2 M parameters from scratch, about the superclasses.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "ptbxl_labels"
    config.eval.labels = 16
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
        config.data.label_set = "superclasses"
        config.eval.max_new_tokens = 16
    return config
