"""The stages of a run, one after the other."""

from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run import distributed
from ecgbyte_jax.run.check import check_config
from ecgbyte_jax.run.evaluate import evaluate
from ecgbyte_jax.run.export import export
from ecgbyte_jax.run.inspect import inspect
from ecgbyte_jax.run.prepare import prepare
from ecgbyte_jax.run.tokenizer import tokenizer
from ecgbyte_jax.run.train import train

STAGES = {
    "tokenizer": tokenizer,
    "prepare": prepare,
    "inspect": inspect,
    "train": train,
    "eval": evaluate,
    "export": export,
}
_TOGETHER = {"train", "eval"}  # every process takes part; the other stages are the leader's, and the others wait


def run(config: ConfigDict, workdir: Path, stages: list[str]) -> None:
    """Runs the named stages in their order; each does nothing where it is already done. Raises ConfigError for others."""
    unknown = sorted(set(stages) - set(STAGES))
    if unknown or not stages:
        raise ConfigError(f"--stage: {unknown} found, any of {list(STAGES)} wanted")
    check_config(config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir: '{workdir}' cannot be made or is no folder: {error.strerror}") from error
    distributed.join(config)
    alone = not config.distributed.initialize  # asking jax who leads would start it, which preparation does without
    for name in (name for name in STAGES if name in stages):
        leads = alone or distributed.leads()
        if leads or name in _TOGETHER:
            STAGES[name](config, workdir)
        if leads:
            # Behind the stage: one that is refused leaves the settings of what lies here.
            write_whole(workdir / "config.json", [config.to_json_best_effort(indent=1).encode()])
        if not alone:
            distributed.wait_for_all(name)
