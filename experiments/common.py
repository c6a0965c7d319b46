"""Shared by the experiments: defaults, the parse of their argument, two models, conversations, published benchmarks."""

from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import default_config, stored_config


def get_defaults() -> ConfigDict:
    """A new copy of all settings with their defaults (`ecgbyte_jax/settings.py`); unknown names are refused."""
    return default_config()


def is_tiny(arg: str) -> bool:
    """Whether the argument, "" or "tiny", asks for the tiny version; raises ValueError for any other."""
    return parse_argument(arg, "tiny") == "tiny"


def parse_argument(arg: str, *known: str) -> str:
    """The argument, the text after the colon of --config=FILE:ARGUMENT; raises ValueError for an unknown one."""
    if arg and arg not in known:
        expected = " or ".join([*map(repr, known), "none"])
        raise ValueError(f"--config: argument {arg!r} found, {expected} expected")
    return arg


def use_published_model(config: ConfigDict) -> None:
    """Sets the published model: Llama 3.2 1B in bfloat16 with LoRA."""
    config.model.pretrained = "meta-llama/Llama-3.2-1B"
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "bfloat16"
    config.lora.rank = 16


def use_tiny_model(config: ConfigDict) -> None:
    """Sets a model of 0.2 M parameters from scratch and one segment per recording: minutes on a laptop."""
    config.data.max_segments = 1
    config.tokenizer.num_merges = 1000
    config.prompt.max_length = 640
    config.prompt.text_vocab_size = 1000
    config.model.pretrained = ""
    config.model.dtype = "float32"
    config.model.param_dtype = "float32"
    config.model.width = 64
    config.model.layers = 2
    config.model.heads = 2
    config.model.kv_heads = 2
    config.model.head_dim = 32
    config.model.mlp_width = 192
    config.lora.rank = 0
    config.optim.preset = "adamw"
    config.optim.peak_rate = 3e-3
    config.optim.warmup = 20
    config.train.batch_size = 8
    config.train.epochs = 3.0
    config.eval.max_new_tokens = 64


def get_conversations(corpus: str, arg: str) -> ConfigDict:
    """Conversations about recordings of several sets, in folders of data.root; `arg`: "" or "tiny", of those that are there."""
    config = get_defaults()
    config.data.corpus = corpus
    config.data.root = "data"
    config.tokenizer.sampling = "random"
    use_published_model(config)
    if is_tiny(arg):
        use_tiny_model(config)
        config.data.max_bad_fraction = 1.0
    return config


def get_tests(corpus: str, run: str) -> ConfigDict:
    """A published benchmark for the model that a run has exported, with that run's settings; "": none, with the defaults.

    Raises ConfigError where the folder is no run's, or has no export.
    """
    config, defaults = get_defaults(), get_defaults()
    if run:
        trained = Workdir(Path(run).expanduser())
        config = stored_config(trained.config)
        if not (trained.export / trained.ecg_tokenizer.name).is_file():
            raise ConfigError(f"{trained.export}: no exported model there; python main.py --run={run} --stage=export makes it")
        config.tokenizer.file = str(trained.export / trained.ecg_tokenizer.name)
        config.model.pretrained = config.eval.checkpoint = str(trained.export)
        config.model.new_rows, config.model.quantize, config.lora = "mean", "", defaults.lora
        defaults.data.sample_rate, defaults.data.max_segments = config.data.sample_rate, config.data.max_segments
        config.eval.name, config.eval.split, config.eval.ecg = "", "test", "own"
        config.eval.max_sequences = config.eval.labels = 0
    config.data = defaults.data
    config.data.corpus = corpus
    config.data.root = "data"
    return config
