"""ECG-Chat: its conversations about recordings of MIMIC-IV-ECG.

    python main.py --config=experiments/ecg_chat.py --config.data.root=MIMIC \
        --config.data.conversations=CHAT/pretrain_mimic.json --config.model.pretrained=LLAMA --workdir=runs/ecg_chat

MIMIC is the folder of MIMIC-IV-ECG 1.0, CHAT the folder of ECG-Chat's files, LLAMA a Hugging Face folder of Llama 3.2 1B. A
later question of a conversation is preceded by the earlier turns. Patients are split by a hash of their number;
`--config.data.published_split=true` uses ECG-Byte's own split over conversations, and warns that patients are in both training
and test. Hardware: intended for one accelerator with 40 GB. Time: not measured. Result: not measured.

    python main.py --config=experiments/ecg_chat.py:tiny --config.data.root=MIMIC --workdir=runs/ecg_chat_tiny

The same pipeline with a model of 0.2 M parameters from scratch. Hardware, time and result: not measured.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "ecg_chat"
    config.data.root = "data/mimic-iv-ecg"
    config.tokenizer.sampling = "random"
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
    return config
