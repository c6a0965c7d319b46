"""ECG-Reasoning-Benchmark: its step-by-step questions, asked of a model that another run has trained, by its rule-based scorer.

    python main.py --run=runs/ecg_instruct --stage=export
    python main.py --config=experiments/ecg_reasoning.py:runs/ecg_instruct --config.data.root=SETS --stage=prepare,eval

After the colon is the trained run's folder: its cleaning, prompt, tokenizers and exported model are used, and the outputs go
to runs/ecg_reasoning_ecg_instruct. SETS holds ECG-Reasoning-Benchmark, the folder of ptbxl.jsonl and mimic_iv_ecg.jsonl (29
MB, https://huggingface.co/datasets/Jwoo5/ECG-Reasoning-Benchmark, ODbL), and, as downloaded or as links, PTB-XL and
MIMIC-IV-ECG in folders called ptbxl and mimic; where one is missing, --config.data.max_bad_fraction=1 goes on with the other.

Each question comes after the reference answers to those before it, as published. Options with times are about a recording of
10 s: a run whose segments are shorter sees only a part of it. How many tested recordings are in the training split of their own
set is printed.
Hardware: intended for one accelerator with 40 GB. Time: not measured. Result: not measured.
"""

from ml_collections import ConfigDict

from experiments.common import get_tests


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or the folder of the run whose exported model is tested."""
    return get_tests("ecg_reasoning", arg)
