"""ECG-QA-CoT: ECG-QA's questions about PTB-XL, answered with the reasons first and "Answer: ..." at the end.

    python main.py --config=experiments/ecg_qa_cot.py --config.data.root=PTBXL --config.data.conversations=COT \
        --config.model.pretrained=LLAMA --workdir=runs/ecg_qa_cot

PTBXL is the folder of PTB-XL 1.0.3, COT that of ecg_qa_cot_train.csv, ecg_qa_cot_val.csv and ecg_qa_cot_test.csv, LLAMA a
Hugging Face folder of Llama 3.2 1B. The split is that of the files; with `--config.data.split=folds` it is PTB-XL's.
Hardware: intended for one accelerator with 40 GB. Time: not measured. Result: not measured.

    python main.py --config=experiments/ecg_qa_cot.py:tiny --config.data.root=PTBXL --config.data.conversations=COT

The same pipeline with a model of 0.2 M parameters from scratch. Hardware, time and result: not measured.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "ecg_qa_cot"
    config.eval.max_new_tokens = 512
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
    return config
