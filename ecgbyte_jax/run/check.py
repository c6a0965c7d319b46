"""What a setting may be, looked at before any work is done: a wrong one must not cost a finished stage."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import pywt
from ml_collections import ConfigDict

from ecgbyte_jax.corpora.ecg_qa import PUBLISHED_TYPES, QUESTION_TYPES
from ecgbyte_jax.corpora.example import SPLITS
from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.config import KERNELS
from ecgbyte_jax.run.corpus import CORPORA
from ecgbyte_jax.run.perturb import PERTURBATIONS

_PATHS = (
    "data.root",
    "data.ecgqa_root",
    "data.translations",
    "data.conversations",
    "data.table",
    "prepare.cache",
    "tokenizer.file",
    "model.pretrained",
    "eval.checkpoint",
    "eval.bertscore_model",
)
_Rule = tuple[Callable[[object], bool], str]


def _at_least(least: float) -> _Rule:
    return lambda value: least <= value < math.inf, f"a number, at least {least}"


def _above(bound: float) -> _Rule:
    return lambda value: bound < value < math.inf, f"a number, more than {bound}"


def _one_of(*known: object) -> _Rule:
    return lambda value: value in known, f"one of {known}"


def _between(low: float, high: float) -> _Rule:
    return lambda value: low <= value <= high, f"{low} to {high}"


_FLOATS = _one_of("float32", "bfloat16", "float16")
_NUMBERS: _Rule = (lambda some: all(isinstance(one, int) and one >= 0 for one in some), "whole numbers from 0")
_RULES: dict[str, _Rule] = {
    "seed": _at_least(0),
    "data.corpus": _one_of(*CORPORA),
    "data.sample_rate": _one_of(100, 500),
    "data.wording": _one_of("template", "paraphrased"),
    "data.split": _one_of("official", "folds"),
    "data.question_types": (lambda types: {*types} <= {*QUESTION_TYPES}, f"of {QUESTION_TYPES}"),
    "data.synthetic_records": _at_least(0),
    "data.max_segments": _at_least(0),
    "data.max_bad_fraction": _between(0, 1),
    "data.sequences_per_file": _at_least(1),
    "data.length_buckets": (
        lambda sizes: list(sizes) == sorted({*sizes}) and all(s > 0 for s in sizes),
        "rising lengths above 0",
    ),
    "signal.target_rate": (lambda hz: hz == 0 or 1 <= hz < math.inf, "at least 1, or 0 for a recording's own rate"),
    "signal.segment_length": _at_least(1),
    "signal.notches": (lambda hz: all(0 < f < math.inf for f in hz), "frequencies above 0 Hz"),
    "signal.notch_quality": _above(0),
    "signal.band": (
        lambda hz: not hz or (len(hz) == 2 and 0 < hz[0] < hz[1] < math.inf),
        "two rising frequencies above 0 Hz, or ()",
    ),
    "signal.highpass": _at_least(0),
    "signal.max_amplitude": _at_least(0),
    "signal.order": _between(1, 10),
    "signal.wavelet": (
        lambda name: not name or name in pywt.wavelist(kind="discrete"),
        'a discrete wavelet of PyWavelets, or ""',
    ),
    "signal.wavelet_level": _between(1, 10),
    "prepare.workers": _at_least(1),
    "prepare.task_records": _between(1, 10_000),
    "tokenizer.num_merges": _between(1, 20_000),
    "tokenizer.boundary": _one_of("", "record", "lead"),
    "tokenizer.sampling": _one_of("all", "random", "stratified"),
    "tokenizer.sample_records": _at_least(1),
    "tokenizer.max_clusters": _at_least(2),
    "tokenizer.percentile_records": _at_least(1),
    "prompt.max_length": _at_least(8),
    "prompt.text_vocab_size": _at_least(260),  # bytes and special tokens
    "model.width": _at_least(1),
    "model.layers": _at_least(1),
    "model.heads": _at_least(1),
    "model.kv_heads": _at_least(1),
    "model.head_dim": (lambda width: width >= 2 and width % 2 == 0, "an even number"),
    "model.mlp_width": _at_least(1),
    "model.rope_theta": _above(0),
    "model.dtype": _FLOATS,
    "model.param_dtype": _FLOATS,
    "model.remat": _one_of("", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable", "everything_saveable"),
    "model.vocab_multiple": _at_least(1),
    "lora.rank": _at_least(0),
    "lora.alpha": _above(0),
    "lora.dropout": (lambda share: 0 <= share < 1, "0 or more, below 1"),
    "lora.targets": (lambda names: {*names} <= {*KERNELS}, f"of {KERNELS}"),
    "optim.preset": _one_of("ecg_byte", "adamw"),
    "optim.peak_rate": _above(0),
    "optim.schedule": _one_of("cosine", "linear"),
    "optim.warmup": _at_least(1),
    "optim.b1": (lambda share: 0 <= share < 1, "0 or more, below 1"),
    "optim.b2": (lambda share: 0 <= share < 1, "0 or more, below 1"),
    "optim.weight_decay": _at_least(0),
    "optim.clip_norm": _above(0),
    "train.batch_size": _at_least(1),
    "train.accumulate": _at_least(1),
    "train.epochs": _above(0),
    "train.checkpoint_every": _at_least(1),
    "train.keep_checkpoints": _at_least(1),
    "train.valid_batches": _at_least(1),
    "train.valid_answers": _at_least(0),
    "train.patience": _at_least(0),
    "train.patience_delta": _at_least(0),
    "distributed.processes": _at_least(0),
    "distributed.timeout": _at_least(1),
    "distributed.heartbeat": _at_least(1),
    "export.checkpoint": (lambda which: which in ("last", "best") or which.isdecimal(), '"last", "best" or a step'),
    "eval.split": _one_of(*SPLITS),
    "eval.batch_size": _at_least(1),
    "eval.max_new_tokens": _at_least(1),
    "eval.max_sequences": _at_least(0),
    "eval.checkpoint": (
        lambda which: which in ("last", "best") or which.isdecimal() or (which and Path(which).is_dir()),
        '"last", "best", a step or a Hugging Face folder',
    ),
    "eval.temperature": _at_least(0),
    "eval.top_k": _at_least(0),
    "eval.top_p": (lambda share: 0 < share <= 1, "above 0, 1 at most"),
    "eval.seeds": (
        lambda seeds: seeds and len({*seeds}) == len(seeds) and all(isinstance(seed, int) and seed >= 0 for seed in seeds),
        "one whole number or more, none twice, each 0 or more",
    ),
    "eval.perturb": (lambda names: {*names} <= {*PERTURBATIONS}, f"of {tuple(PERTURBATIONS)}"),
    "eval.bootstrap": _at_least(1),
    "attend.examples": (lambda ids: all(isinstance(id, str) for id in ids), "ids of examples, as texts"),
    "attend.layers": _NUMBERS,
    "attend.heads": _NUMBERS,
}


def expand_home(config: ConfigDict) -> None:
    """Puts the home folder in the place of a leading ~ in all settings that are paths."""
    for name in _PATHS:
        part, _, field = name.partition(".")
        config[part][field] = os.path.expanduser(config[part][field])


def check_config(config: ConfigDict) -> None:
    """Raises ConfigError that names the first setting which cannot work, its value and what is wanted."""
    for name, (fits, wanted) in _RULES.items():
        part, _, field = name.rpartition(".")
        value = config[part][field] if part else config[field]
        try:
            right = fits(value)
        except TypeError:  # a text among numbers, for example
            right = False
        if not right:
            raise ConfigError(f"{name}: {value!r} found, {wanted} wanted")
    if config.model.heads % config.model.kv_heads:
        raise ConfigError(
            f"model.kv_heads: {config.model.kv_heads} found, a divisor of model.heads {config.model.heads} wanted"
        )
    if config.data.published_split and config.data.corpus == "own":
        raise ConfigError("data.published_split: your own data has no published split; its table's field 'split' is taken")
    if config.data.published_split and config.data.corpus in ("ecg_qa", "ecg_qa_mimic"):
        _check_published_questions(config.data)
    if config.lora.rank and not config.lora.targets:
        raise ConfigError("lora.targets: none found, at least one wanted where lora.rank is above 0")
    if len(config.eval.seeds) > 1 and config.eval.temperature == 0:
        raise ConfigError(
            f"eval.seeds: {config.eval.seeds} found with eval.temperature 0, which answers the same for every seed; "
            "one seed, or a temperature above 0 wanted"
        )
    if "wander" in config.eval.perturb and not config.signal.target_rate:
        raise ConfigError("eval.perturb: 'wander' needs one sample rate of all recordings: signal.target_rate above 0 wanted")


def _check_published_questions(data: ConfigDict) -> None:
    """Raises ConfigError for questions that are not in ECG-Byte's own split, which holds both wordings of three types."""
    if not data.question_types or not {*data.question_types} <= {*PUBLISHED_TYPES}:
        raise ConfigError(
            f"data.published_split: data.question_types {data.question_types} found, of {PUBLISHED_TYPES} expected"
        )
    if data.wording != "template":
        raise ConfigError(f"data.published_split: data.wording {data.wording!r} found, which it has no use for: it takes both")


def check_pretrained(config: ConfigDict) -> None:
    """Looks at the folder of `model.pretrained`, config.json, tokenizer and files of weights, before any work is done for it.

    Raises WeightsError or TokenizerError that names the file at fault, ConfigError for settings that do not fit the model.
    """
    from ecgbyte_jax.inputs.text import load_text_tokenizer  # these take seconds to import, and most preparation does without
    from ecgbyte_jax.model.hf import locate, read_config
    from ecgbyte_jax.model.stored import weight_files
    from ecgbyte_jax.run.build import check_fit

    folder = locate(config.model.pretrained)
    check_fit(config, read_config(folder))
    weight_files(folder)
    load_text_tokenizer(folder)
