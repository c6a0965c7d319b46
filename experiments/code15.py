"""CODE-15%: which of six findings a recording shows, and the patient's age and sex, asked by templates.

    python main.py --config=experiments/code15.py --config.data.root=CODE15 --config.model.pretrained=LLAMA

CODE15 is the folder of exams.csv and the unpacked exams_part0.hdf5 to exams_part17.hdf5, LLAMA a Hugging Face folder of Llama
3.2 1B. It needs the extra `code15`.
Hardware: intended for one accelerator with 40 GB. Time: not measured. Result: not measured.

    python main.py --config=experiments/code15.py:tiny --config.data.root=CODE15 --workdir=runs/code15_tiny

The same pipeline with a model of 0.2 M parameters from scratch, also where only one part is there: the exams of the others are
set aside. Hardware, time and result: not measured.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "code15"
    config.data.root = "data/code15"
    config.tokenizer.sampling = "random"
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
        config.data.max_bad_fraction = 0.97  # all parts but one
    return config
