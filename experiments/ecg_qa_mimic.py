"""ECG-QA on MIMIC-IV-ECG: questions about single recordings (verify, choose, query), with ECG-QA's own split.

    python main.py --config=experiments/ecg_qa_mimic.py --config.data.root=MIMIC --config.data.ecgqa_root=ECGQA \
        --config.model.pretrained=LLAMA --workdir=runs/ecg_qa_mimic

MIMIC is the folder of MIMIC-IV-ECG 1.0, ECGQA the folder `ecgqa` of ECG-QA, LLAMA a downloaded Hugging Face folder of Llama 3.2
1B. `--config.data.question_types="()"` takes the comparisons of two ECGs too. Hardware: one accelerator with 40 GB. Time and
result: not measured yet.

    python main.py --config=experiments/ecg_qa_mimic.py:tiny --config.data.root=MIMIC --config.data.ecgqa_root=ECGQA \
        --workdir=runs/ecg_qa_mimic_tiny

The same way through the code with a model of 0.2 M parameters from scratch, split by a hash of the patients.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """arg: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "ecg_qa_mimic"
    config.data.root = "data/mimic-iv-ecg"
    config.tokenizer.sampling = "random"
    use_published_model(config)
    if arg == "tiny":
        use_tiny_model(config)
        config.data.split = "folds"
        config.eval.max_new_tokens = 8
    elif arg:
        raise ValueError(f"experiments/ecg_qa_mimic.py:{arg}: unknown argument, 'tiny' or none wanted")
    return config
