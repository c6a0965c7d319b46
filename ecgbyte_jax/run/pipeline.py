"""The stages of a run, one after the other."""

from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run.ask import Inquiry, ask
from ecgbyte_jax.run.attend import attend
from ecgbyte_jax.run.check import check_config
from ecgbyte_jax.run.evaluate import evaluate
from ecgbyte_jax.run.export import export
from ecgbyte_jax.run.inspect import inspect
from ecgbyte_jax.run.prepare import prepare
from ecgbyte_jax.run.report import report
from ecgbyte_jax.run.tokenizer import tokenizer
from ecgbyte_jax.run.train import train

STAGES = {
    "tokenizer": tokenizer,
    "prepare": prepare,
    "inspect": inspect,
    "train": train,
    "eval": evaluate,
    "attend": attend,
    "report": report,
    "export": export,
}
_ASK = "ask"  # last, and with flags of its own
_READERS = ("attend", "report")  # leave the settings of the run as they are


def run(config: ConfigDict, workdir: Path, stages: list[str], inquiry: Inquiry = Inquiry(())) -> None:
    """Runs the named stages in their order, and answers the inquiry where `ask` is among them.

    Each stage does nothing where it is already done. Raises ConfigError for others, and for an inquiry that is not asked for.
    """
    unknown = sorted(set(stages) - {*STAGES, _ASK})
    if unknown or not stages:
        raise ConfigError(f"--stage: {unknown} found, any of {[*STAGES, _ASK]} wanted")
    if inquiry != Inquiry(()) and _ASK not in stages:
        raise ConfigError("--record, --question and what belongs to them: found without --stage=ask")
    check_config(config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir: '{workdir}' cannot be made or is no folder: {error.strerror}") from error
    for name, stage in STAGES.items():
        if name in stages:
            stage(config, workdir)
            if name in _READERS:
                continue
            # Behind the stage: one that is refused leaves the settings of what lies here.
            write_whole(workdir / "config.json", [config.to_json_best_effort(indent=1).encode()])
    if _ASK in stages:
        ask(config, workdir, inquiry)
