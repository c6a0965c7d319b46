"""PTB-XL's reports, ECG-QA's questions, CPSC 2018's labels and answers measured in PTB-XL in one training, or other corpora.

    python main.py --config=experiments/mixture.py --config.data.root=PTBXL --config.data.parts.ecg_qa.ecgqa_root=ECGQA \
        --config.data.parts.cpsc.root=CPSC --config.model.pretrained=LLAMA --workdir=runs/mixture

PTBXL is the folder of PTB-XL 1.0.3, ECGQA the folder `ecgqa` of ECG-QA, CPSC one above the recordings of CPSC 2018, LLAMA a
Hugging Face folder of Llama 3.2 1B; needs the extra `measured`. Training draws from the four in equal shares;
`--config.data.mixture.cpsc=0.5` halves that of CPSC, 0 leaves a corpus out, and `--config.data.mixture.code15=1
--config.data.parts.code15.root=CODE15` adds CODE-15%. What is not given for a corpus (`data.parts.NAME`) is as in `data`.
Measured answers need two whole beats and a segment that the prompt shows whole, hence 2.5 s and the longer prompt.
Hardware: intended for one accelerator with 40 GB. Time: not measured. Result: not measured.

    python main.py --config=experiments/mixture.py:tiny --config.data.root=PTBXL --config.data.parts.ecg_qa.ecgqa_root=ECGQA \
        --config.data.parts.cpsc.root=CPSC --workdir=runs/mixture_tiny

The same pipeline with a model of 0.2 M parameters from scratch, at 50 Hz, ECG-QA split by PTB-XL's folds.
"""

from ml_collections import ConfigDict

from ecgbyte_jax.settings import part_config
from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model

_ROOTS = {
    "mimic": "data/mimic",
    "ecg_qa_mimic": "data/mimic",
    "ecg_chat": "data/mimic",
    "cpsc": "data/cpsc2018",
    "csn": "data/csn",
    "code15": "data/code15",
    "ecg_instruct": "data",
    "ecg_grounding": "data",
    "own": "data/own",
}  # beside those on PTB-XL
_MIXED = ("ptbxl", "ecg_qa", "cpsc", "measured")


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "mixture"
    names = ("ptbxl", "ptbxl_labels", "ecg_qa", "ecg_qa_cot", "measured", *_ROOTS)
    config.data.mixture = {name: float(name in _MIXED) for name in names}
    config.data.parts = {name: part_config(**({"root": _ROOTS[name]} if name in _ROOTS else {})) for name in names}
    config.signal.segment_length = 625
    config.prompt.max_length = 2048
    config.data.length_buckets = (640, 768, 896, 1024, 1280, 1536)
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
        config.signal.target_rate = 50.0
        config.signal.segment_length = 125
        config.data.length_buckets = (256, 320, 384, 448)
        config.data.parts.ecg_qa.split = "folds"
    return config
