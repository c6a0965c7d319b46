"""The stages of a run, one after the other."""

from contextlib import nullcontext
from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run.check import check_config, check_pretrained
from ecgbyte_jax.run.inquiry import Inquiry

STAGES = ("tokenizer", "prepare", "inspect", "train", "eval", "attend", "report", "export", "ask")
_TOGETHER = ("train", "eval")  # every process takes part; the other stages are the leader's, and the others wait
_READERS = ("attend", "report", "ask")  # leave the settings of the run as they are


def run(
    config: ConfigDict,
    workdir: Path,
    stages: list[str],
    profile_steps: tuple[int, int] = (0, 0),
    inquiry: Inquiry = Inquiry(()),
) -> None:
    """Runs the named stages in their order, and answers the inquiry where `ask` is among them.

    Each stage does nothing where it is already done. Raises ConfigError for others, and for an inquiry that is not asked for.
    profile_steps: the first and the last training step that a JAX profile is written of.
    """
    unknown = sorted(set(stages) - set(STAGES))
    if unknown or not stages:
        raise ConfigError(f"--stage: {unknown} found, any of {[*STAGES]} wanted")
    if inquiry != Inquiry(()) and "ask" not in stages:
        raise ConfigError("--record, --question and what belongs to them: found without --stage=ask")
    check_config(config)
    if config.model.pretrained and "prepare" in stages:
        check_pretrained(config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir: '{workdir}' cannot be made or is no folder: {error.strerror}") from error
    alone = not config.distributed.initialize
    if not alone:
        from ecgbyte_jax.run import distributed  # which imports JAX: preparation does without

        distributed.join(config)
    for name in (name for name in STAGES if name in stages):
        leads = alone or distributed.leads()
        if leads or name in _TOGETHER:
            with nullcontext() if alone else distributed.ending_with_the_others(config):
                _run_stage(name, config, workdir, {"train": (profile_steps,), "ask": (inquiry,)}.get(name, ()))
        if leads and name not in _READERS:
            # Behind the stage: one that is refused leaves the settings of what lies here.
            write_whole(workdir / "config.json", [config.to_json_best_effort(indent=1).encode()])
        if not alone:
            distributed.wait_for_all(name)


def _run_stage(name: str, config: ConfigDict, workdir: Path, more: tuple) -> None:
    """Each stage imports what it needs itself: preparation is spared the seconds that JAX and all of training take."""
    match name:
        case "tokenizer":
            from ecgbyte_jax.run.tokenizer import tokenizer as stage
        case "prepare":
            from ecgbyte_jax.run.prepare import prepare as stage
        case "inspect":
            from ecgbyte_jax.run.inspect import inspect as stage
        case "train":
            from ecgbyte_jax.run.train import train as stage
        case "eval":
            from ecgbyte_jax.run.evaluate import evaluate as stage
        case "attend":
            from ecgbyte_jax.run.attend import attend as stage
        case "report":
            from ecgbyte_jax.run.report import report as stage
        case "export":
            from ecgbyte_jax.run.export import export as stage
        case "ask":
            from ecgbyte_jax.run.ask import ask as stage
    if name not in ("tokenizer", "prepare", "inspect"):
        _keep_compiled(workdir)
    stage(config, workdir, *more)


def _keep_compiled(workdir: Path) -> None:
    """Programs that took a second or more to compile are kept for the next run, unless JAX_COMPILATION_CACHE_DIR says where."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").resolve()))
