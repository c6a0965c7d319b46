"""ECG-Grounding (GEM): conversations about recordings of several sets.

    python main.py --config=experiments/ecg_grounding.py --config.data.root=SETS --config.model.pretrained=LLAMA

SETS holds ECG_Grounding_30k.json (its card, https://huggingface.co/datasets/LANSG/ECG-Grounding, has its licence) and, as
downloaded or as links, the sets in folders called mimic, ptbxl and code15.
Conversations about recordings that are not there are set aside and counted, a share of at most data.max_bad_fraction. Patients
are split as in their sets. LLAMA is a Hugging Face folder of Llama 3.2 1B. CODE-15% needs the extra `code15`.
Hardware: intended for one accelerator with 40 GB. Time: not measured. Result: not measured.

    python main.py --config=experiments/ecg_grounding.py:tiny --config.data.root=SETS --workdir=runs/ecg_grounding_tiny

The same pipeline with a model of 0.2 M parameters from scratch, of the sets that are there. Hardware, time and result: not
measured.
"""

from ml_collections import ConfigDict

from experiments.common import get_conversations


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    return get_conversations("ecg_grounding", arg)
