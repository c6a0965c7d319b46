"""ECG-QA on MIMIC-IV-ECG: questions about single recordings (verify, choose, query), with ECG-QA's own split.

    python main.py --config=experiments/ecg_qa_mimic.py --config.data.root=MIMIC --config.data.ecgqa_root=ECGQA \
        --config.model.pretrained=LLAMA --workdir=runs/ecg_qa_mimic

MIMIC is the folder of MIMIC-IV-ECG 1.0, ECGQA the folder `ecgqa` of ECG-QA, LLAMA a Hugging Face folder of Llama 3.2 1B.
`--config.data.question_types="()"` also includes the comparisons of two ECGs. Hardware: intended for one accelerator with 40
GB. Time: not measured. Result: not measured.

    python main.py --config=experiments/ecg_qa_mimic.py:tiny --config.data.root=MIMIC --config.data.ecgqa_root=ECGQA \
        --workdir=runs/ecg_qa_mimic_tiny

The same pipeline with a model of 0.2 M parameters from scratch, split by a hash of the patients. Hardware, time and result:
not measured.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "ecg_qa_mimic"
    config.data.root = "data/mimic-iv-ecg"
    config.tokenizer.sampling = "random"
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
        config.data.split = "folds"
        config.eval.max_new_tokens = 8
    return config
