"""ECG-Chat: its conversations about recordings of MIMIC-IV-ECG.

    python main.py --config=experiments/ecg_chat.py --config.data.root=MIMIC \
        --config.data.conversations=CHAT/pretrain_mimic.json --config.model.pretrained=LLAMA --workdir=runs/ecg_chat

MIMIC is the folder of MIMIC-IV-ECG 1.0, CHAT that of ECG-Chat's files, LLAMA a downloaded Hugging Face folder of Llama 3.2 1B.
A later question of a conversation is preceded by what was said before. Patients are split by a hash of their number;
`--config.data.published_split=true` draws ECG-Byte's own split over the conversations, and warns that patients stand on both
sides. Hardware: one accelerator with 40 GB. Time and result: not measured yet.

    python main.py --config=experiments/ecg_chat.py:tiny --config.data.root=MIMIC --workdir=runs/ecg_chat_tiny

The same way through the code with a model of 0.2 M parameters from scratch.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """arg: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "ecg_chat"
    config.data.root = "data/mimic-iv-ecg"
    config.tokenizer.sampling = "random"
    use_published_model(config)
    if arg == "tiny":
        use_tiny_model(config)
    elif arg:
        raise ValueError(f"experiments/ecg_chat.py:{arg}: unknown argument, 'tiny' or none wanted")
    return config
