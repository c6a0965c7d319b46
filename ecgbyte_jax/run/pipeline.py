"""The stages of a run, one after the other."""

from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.run.evaluate import evaluate
from ecgbyte_jax.run.prepare import prepare
from ecgbyte_jax.run.stages import write_atomically
from ecgbyte_jax.run.train import train

# The smallest value that makes sense; a smaller one would end in a stack trace, or worse, in nothing.
_AT_LEAST = {
    "data.synthetic_records": 0,
    "data.max_segments": 0,
    "data.max_bad_fraction": 0,
    "data.sequences_per_file": 1,
    "signal.target_rate": 1,
    "signal.segment_length": 1,
    "signal.order": 1,
    "signal.wavelet_level": 1,
    "tokenizer.num_merges": 1,
    "tokenizer.percentile_records": 1,
    "prompt.max_length": 8,
    "prompt.text_vocab_size": 260,  # bytes, and the special tokens
    "model.width": 1,
    "model.layers": 1,
    "model.heads": 1,
    "model.kv_heads": 1,
    "model.head_dim": 2,
    "model.mlp_width": 1,
    "lora.rank": 0,
    "lora.dropout": 0,
    "optim.warmup": 1,
    "optim.clip_norm": 0,
    "train.batch_size": 1,
    "train.epochs": 0,
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 1,
    "train.valid_batches": 1,
    "eval.batch_size": 1,
    "eval.max_new_tokens": 1,
    "eval.max_sequences": 0,
}

STAGES = {"prepare": prepare, "train": train, "eval": evaluate}


def run(config: ConfigDict, workdir: Path, stages: list[str]) -> None:
    """Runs the named stages in their order; each does nothing where it is already done. Raises ConfigError for others."""
    unknown = sorted(set(stages) - set(STAGES))
    if unknown or not stages:
        raise ConfigError(f"--stage: {unknown} found, any of {list(STAGES)} wanted")
    for name, least in _AT_LEAST.items():
        part, field = name.split(".")
        if not config[part][field] >= least:
            raise ConfigError(f"{name}: {config[part][field]} found, at least {least} wanted")
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / "config.json", config.to_json_best_effort(indent=1))
    for name, stage in STAGES.items():
        if name in stages:
            stage(config, workdir)
