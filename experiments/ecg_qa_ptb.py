"""ECG-QA on PTB-XL: questions about single recordings (verify, choose, query), with ECG-QA's own split.

    python main.py --config=experiments/ecg_qa_ptb.py --config.data.root=PTBXL --config.data.ecgqa_root=ECGQA \
        --config.model.pretrained=LLAMA --workdir=runs/ecg_qa_ptb

PTBXL is the folder of PTB-XL 1.0.3, ECGQA the folder `ecgqa` of ECG-QA, LLAMA a Hugging Face folder of Llama 3.2 1B. Hardware:
intended for one accelerator with 40 GB. Time: not measured. Result: not measured.

    python main.py --config=experiments/ecg_qa_ptb.py:tiny --config.data.root=PTBXL --config.data.ecgqa_root=ECGQA \
        --workdir=runs/ecg_qa_ptb_tiny

The same pipeline with a model of 0.2 M parameters from scratch, split by PTB-XL's folds, because small excerpts of ECG-QA
contain only questions of its training split. On 413 questions about 174 recordings: Hardware: 2 CPU cores. Time: one minute.
Result: exact match 66%, the same as the commonest answer.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "ecg_qa"
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
        config.data.split = "folds"
        config.eval.max_new_tokens = 8
    return config
