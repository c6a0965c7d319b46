"""ECGBench (PULSE): its test sets, asked of a model that another run has trained, scored by their published rules.

    python main.py --run=runs/ecg_instruct --stage=export
    python main.py --config=experiments/ecgbench.py:runs/ecg_instruct --config.data.root=SETS --stage=prepare,eval

After the colon is the trained run's folder: its cleaning, prompt, tokenizers and exported model are used, and the outputs go
to runs/ecgbench_ecg_instruct. SETS holds ECGBench, the folder of its parquet files (ptb-test/ and others, over 11 GB, from
https://huggingface.co/datasets/PULSE-ECG/ECGBench, whose card names no licence) or the same as JSON files, and, as downloaded
or as links, the sets of its recordings in folders called ptbxl, code15, cpsc, csn and georgia (all CC BY 4.0). It needs the
extra `parquet`, and for CODE-15% the extra `code15`.

Scored: ptb-test, code15-test, cpsc-test (macro F1, macro AUC, Hamming loss), csn-test-no-cot, g12-test-no-cot, ecgqa-test
(accuracy). ptb-test-report, published with GPT-4o as judge, has the text scores, and missed and extra findings, instead. arena
and mmmu-ecg are left out: their pictures are of no recording. Conversations about recordings that are not there are set aside
and counted; where a set is missing, --config.data.max_bad_fraction=1 goes on with the others. How many tested recordings are
in the training split of their own set is printed.
Hardware: intended for one accelerator with 40 GB. Time: not measured. Result: not measured.
"""

from ml_collections import ConfigDict

from experiments.common import get_tests


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or the folder of the run whose exported model is tested."""
    return get_tests("ecg_bench", arg)
