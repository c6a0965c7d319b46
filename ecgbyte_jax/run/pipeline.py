"""The stages of a run, one after the other."""

from contextlib import nullcontext
from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError, OutOfMemoryError
from ecgbyte_jax.run.check import check_config, check_pretrained, expand_home
from ecgbyte_jax.run.inquiry import Inquiry
from ecgbyte_jax.run.lock import holding

STAGES = ("tokenizer", "prepare", "inspect", "train", "eval", "attend", "report", "export", "ask")
_TOGETHER = ("train", "eval", "export")  # every process takes part; the other stages are the leader's, and the others wait
_ALONE = ("attend", "ask")  # one process holds the whole model
_LOOKERS = ("inspect", "ask")  # write nothing into the run's folder, so they may run beside another command


def run(
    config: ConfigDict,
    workdir: Path,
    stages: list[str],
    profile_steps: tuple[int, int] = (0, 0),
    inquiry: Inquiry = Inquiry(()),
) -> None:
    """Runs the named stages in their order, and answers the inquiry where `ask` is among them.

    Each stage does nothing where it is already done. A leading ~ of the config's paths is expanded in it. Raises ConfigError
    for other stages and for an inquiry without `ask`, LockedError where another command is at work in the folder.
    profile_steps: the first and the last training step that a JAX profile is written of.
    """
    unknown = sorted(set(stages) - set(STAGES))
    if unknown or not stages:
        raise ConfigError(f"--stage: {unknown} found, any of {[*STAGES]} wanted")
    if inquiry != Inquiry(()) and "ask" not in stages:
        raise ConfigError("--record, --question and what belongs to them: found without --stage=ask")
    expand_home(config)
    check_config(config)
    if config.model.pretrained and "prepare" in stages:
        check_pretrained(config)
    alone = not config.distributed.initialize
    if not alone and {*_ALONE} & {*stages}:
        raise ConfigError(
            f"--stage: {[name for name in _ALONE if name in stages]} found with distributed.initialize; "
            "give it by itself, without that, to one process whose devices hold the whole model"
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir: '{workdir}' cannot be made or is no folder: {error.strerror}") from error
    _check_links(workdir)
    if not alone:
        from ecgbyte_jax.run import distributed  # which imports JAX: preparation does without

        distributed.join(config)
    with nullcontext() if alone else distributed.ending_together(config):
        writes = any(name not in _LOOKERS for name in stages) and (alone or distributed.leads())
        with holding(workdir) if writes else nullcontext():
            _run_stages(config, workdir, stages, profile_steps, inquiry)


def _check_links(workdir: Path) -> None:
    """Raises ConfigError for a folder that is a link, for example to another disk, whose end is gone."""
    for path in workdir.iterdir():
        if path.is_symlink() and not path.exists() and not path.name.startswith("."):
            raise ConfigError(
                f"'{path}': a link to '{path.readlink()}', which is not there; make that folder or remove the link"
            )


def _run_stages(config: ConfigDict, workdir: Path, stages: list[str], profile_steps: tuple[int, int], inquiry: Inquiry) -> None:
    alone = not config.distributed.initialize
    if not alone:
        from ecgbyte_jax.run import distributed
    for name in (name for name in STAGES if name in stages):
        if alone or distributed.leads() or name in _TOGETHER:
            _run_stage(name, config, workdir, {"train": (profile_steps,), "ask": (inquiry,)}.get(name, ()))
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
    try:
        stage(config, workdir, *more)
    except (MemoryError, RuntimeError, ValueError) as error:  # jax's errors are of the second kind, on CPUs of the third too
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = (str(error).splitlines() or ["on the host"])[0]
        raise OutOfMemoryError(
            f"{name}: out of memory ({why}); a smaller batch_size of the stage, a larger train.accumulate, model.remat, or "
            "a mesh with more fsdp or tensor takes less"
        ) from error


def _keep_compiled(workdir: Path) -> None:
    """Programs that took a second or more to compile are kept for the next run, unless JAX_COMPILATION_CACHE_DIR says where."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").resolve()))
