"""Questions whose answers are measured in the recordings: rate, intervals, axis, ST level, faults and others.

    python main.py --config=experiments/measured.py --config.data.root=PTBXL --config.model.pretrained=LLAMA

PTBXL is the folder of PTB-XL 1.0.3, or of another set that `data.measured_of` names, LLAMA a Hugging Face folder of Llama 3.2
1B; needs the extra `measured`. A recording of 10 s is one segment. The cleaning leaves out the band-pass and the wavelets,
which would remove the faults that are asked about and change ST levels.
Hardware: intended for one accelerator with 40 GB. Time: not measured. Result: not measured.

    python main.py --config=experiments/measured.py:tiny --config.data.root=PTBXL --workdir=runs/measured_tiny

The same pipeline with a model of 0.2 M parameters from scratch.
"""

from ml_collections import ConfigDict

from experiments.common import get_defaults, is_tiny, use_published_model, use_tiny_model


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg`: "" or "tiny"."""
    config = get_defaults()
    config.data.corpus = "measured"
    config.data.question_types = ()
    config.signal.segment_length = 2500
    config.signal.band = ()
    config.signal.wavelet = ""
    config.prompt.max_length = 8192  # two ECGs
    config.data.length_buckets = (2048, 3072, 4096, 6144, 8192)
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
        config.signal.target_rate = 50.0
        config.signal.segment_length = 500
        config.prompt.max_length = 3072
        config.data.length_buckets = (1024, 1536, 3072)
    return config
