"""The stages of a run, one after the other: the door where an experiment's ConfigDict becomes `Settings`."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.corpora.read import TESTS, check_data, recordings_of
from ecgbyte_jax.errors import ConfigError, OutOfMemoryError
from ecgbyte_jax.run.console import keeping_stdout_clear
from ecgbyte_jax.run.lock import holding
from ecgbyte_jax.run.stage import settings_of
from ecgbyte_jax.run.workdir import Workdir, runs_beside
from ecgbyte_jax.settings import DataSettings, Settings, stored_config
from ecgbyte_jax.stages.inquiry import Inquiry

STAGES = {  # in their order, with what --help says of them
    "tokenizer": "train the ECG tokenizer by itself, and measure its compression and errors",
    "prepare": "clean recordings, train the tokenizers, write token shards",
    "inspect": "show the counts of the prepared data and one prompt",
    "fit": "compile for hardware that need not be here (fit.topology): memory, least times",
    "pretrain": "train the encoder of a two-stage baseline by itself, on clean signals",
    "train": "train the model, or go on from its last checkpoint",
    "eval": "answer the test questions from a checkpoint, score the answers",
    "controls": "train and ask with other patients' ECGs, zeros and none too: one table",
    "headline": "train every system that reads ECGs in another way, with several seeds: scores, costs, one page",
    "attend": "write where in the ECG chosen answers come from: .npz, .png, .svg",
    "report": "write report.html: scores, examples, curves, tokens",
    "export": "write the model as a Hugging Face folder, or its LoRA paths for PEFT",
    "ask": "answer questions about your own recordings: --record, --question",
    "serve": "answer them in the browser and over an API, until it is stopped",
}
# Every process takes part; the other stages are the leader's, and the others wait.
_TOGETHER = ("pretrain", "train", "eval", "controls", "headline", "export")
_ALONE = ("attend", "ask", "serve")  # one process holds the whole model
_STARTERS = ("tokenizer", "prepare", "fit")  # may make a run's folder; the other stages read what is there
_TRAINERS = ("tokenizer", "pretrain", "train", "controls", "headline")  # which a published benchmark has no examples for
_LOOKERS = ("inspect", "ask", "serve")  # write nothing into the run's folder, so they may run beside another command


def run(
    config: ConfigDict,
    folder: Path,
    stages: list[str],
    profile_steps: tuple[int, int] = (0, 0),
    inquiry: Inquiry = Inquiry(()),
) -> None:
    """Runs the named stages of an experiment in a run's folder, in their order; answers the inquiry where `ask` is among them.

    Each stage does nothing where it is already done. Raises ConfigError for settings that cannot work, for other stages and for
    an inquiry without `ask`, LockedError where another command is at work in the folder.
    profile_steps: the first and the last training step that a JAX profile is written of.
    """
    unknown = sorted(set(stages) - set(STAGES))
    if unknown or not stages:
        raise ConfigError(f"--stage: {unknown} found, any of {[*STAGES]} expected; compare and list go by themselves")
    if inquiry != Inquiry(()) and "ask" not in stages:
        raise ConfigError("--record, --question and what belongs to them: found without --stage=ask")
    settings = Settings.of(config)
    workdir = Workdir(folder, settings.eval.name)
    if stages != ["fit"]:
        check_data(settings.data)
    if settings.data.corpus in TESTS and (trained := [name for name in _TRAINERS if name in stages]):
        raise ConfigError(
            f"--stage: {trained} found with data.corpus {settings.data.corpus!r}, which has only test questions; "
            "--stage=prepare,eval expected, of a model that was trained in another run"
        )
    if "headline" in stages:
        from ecgbyte_jax.sweep.systems import check_systems

        check_systems(settings)
    if "train" in stages:
        _check_encoder(settings)
    if settings.model.pretrained and "prepare" in stages:
        _check_pretrained(settings)
    alone = not settings.distributed.initialize
    if not alone and {*_ALONE} & {*stages}:
        raise ConfigError(
            f"--stage: {[name for name in _ALONE if name in stages]} found with distributed.initialize; "
            "give it by itself, without that, to one process whose devices hold the whole model"
        )
    if not {*_STARTERS} & {*stages}:
        _check_folder(folder, stages)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir: '{folder}' cannot be made or is no folder: {error.strerror}") from error
    _check_links(folder)
    if {"tokenizer", "prepare"} & {*stages}:
        _check_corpus(settings.data, workdir)
    quiet = keeping_stdout_clear() if inquiry.format == "json" else nullcontext()
    try:
        with quiet, _together(settings, alone):
            writes = any(name not in _LOOKERS for name in stages) and (alone or _leads())
            with holding(workdir.lock) if writes else nullcontext():
                _run_stages(settings, workdir, stages, profile_steps, inquiry)
    finally:
        if made and alone and not any(folder.iterdir()):  # a stage that could not even begin
            folder.rmdir()


def _together(settings: Settings, alone: bool) -> AbstractContextManager[None]:
    """Makes this process one of several, where it is; in the context, they end together."""
    if alone:
        return nullcontext()
    from ecgbyte_jax.run import processes  # which imports JAX: preparation does without

    given = asdict(settings.distributed)
    del given["initialize"]
    processes.join(**given)
    return processes.ending_together(settings.distributed.heartbeat)


def _check_encoder(settings: Settings) -> None:
    """Raises ConfigError where the encoder comes from a run on the same recordings that tested another fold, or none.

    It has been trained on patients that this run tests.
    """
    pretrained, data = settings.encoder.pretrained, settings.data
    kept = Workdir(Path(pretrained)).config
    if settings.ecg_input.kind != "encoder" or pretrained in ("", "random") or data.mixture or not kept.is_file():
        return
    theirs = Settings.of(stored_config(kept)).data
    same = not theirs.mixture and recordings_of(theirs) == recordings_of(data) != ""
    if same and (theirs.folds, theirs.fold) != (data.folds, data.fold):
        raise ConfigError(
            f"encoder.pretrained: '{pretrained}' was trained with data.folds {theirs.folds} and data.fold {theirs.fold}, this "
            f"run has {data.folds} and {data.fold}: the encoder has seen patients that are tested here; that of a run of the "
            "same fold expected, or '' and --stage=pretrain here"
        )


def _check_pretrained(settings: Settings) -> None:
    """Looks at what `model.pretrained` names, its settings, tokenizer, chat template and files of weights, before any work.

    Raises WeightsError or TokenizerError that names the file at fault, ConfigError for settings that do not fit the model.
    """
    from ecgbyte_jax.inputs.chat import Chat  # these take seconds to import, and most preparation does without
    from ecgbyte_jax.inputs.text import add_ecg_tokens
    from ecgbyte_jax.model.build import check_fit
    from ecgbyte_jax.model.hf import locate, read_config
    from ecgbyte_jax.model.weights.stored import weight_files
    from ecgbyte_jax.stages.prepare import pretrained_text_tokenizer
    from ecgbyte_jax.train.restore import positions
    from ecgbyte_jax.train.vectors import pretrained_map

    folder = locate(settings.model.pretrained)
    check_fit(settings.model, settings.lora, positions(settings), read_config(folder))
    weight_files(folder)
    pretrained_map(settings)
    tokenizer = pretrained_text_tokenizer(settings.model.pretrained)
    if settings.prompt.format == "chat":
        add_ecg_tokens(tokenizer, 0)
        Chat.of(tokenizer, settings.prompt.system)


def _check_folder(folder: Path, stages: list[str]) -> None:
    """Raises ConfigError where the run is not there that these stages are to read: its name may be misspelt."""
    if not folder.exists():
        raise ConfigError(
            f"--workdir: no folder '{folder}', which --stage={','.join(stages)} reads{runs_beside(folder)}; "
            "a new run begins with --stage=prepare"
        )


def _check_corpus(data: DataSettings, workdir: Workdir) -> None:
    """Raises ConfigError where another corpus was prepared here, whose shards and tokenizer this one would replace."""
    given = _describe(data.corpus, data.shares, data.synthetic_records)
    for marker in (workdir.prepare_marker, workdir.tokenizer_marker):
        before = settings_of(marker).get("data")
        if before and (here := _describe(before["corpus"], before.get("mixture", ()), before["synthetic_records"])) != given:
            raise ConfigError(
                f"{workdir.root}: a run on {here} is here, {given} found in the settings; give this run a folder of its own: "
                "--workdir=DIR"
            )


def _describe(corpus: str, mixture: Iterable[str], synthetic_records: int) -> str:
    parts = ", ".join(mixture)
    return f"{'synthetic' if synthetic_records else 'real'} data of corpus '{corpus}'" + (f" ({parts})" if parts else "")


def _check_links(folder: Path) -> None:
    """Raises ConfigError for a folder that is a link, for example to another disk, whose end is gone."""
    for path in folder.iterdir():
        if path.is_symlink() and not path.exists() and not path.name.startswith("."):
            raise ConfigError(
                f"'{path}': a link to '{path.readlink()}', which is not there; make that folder or remove the link"
            )


def _run_stages(
    settings: Settings, workdir: Workdir, stages: list[str], profile_steps: tuple[int, int], inquiry: Inquiry
) -> None:
    alone = not settings.distributed.initialize
    for name in (name for name in STAGES if name in stages):
        if alone or _leads() or name in _TOGETHER:
            _run_stage(name, settings, workdir, {"train": (profile_steps,), "ask": (inquiry,)}.get(name, ()))
        if not alone:
            _wait_for_all(name)


def _leads() -> bool:
    from ecgbyte_jax.run.processes import leads

    return leads()


def _wait_for_all(name: str) -> None:
    from ecgbyte_jax.run.processes import wait_for_all

    wait_for_all(name)


def _run_stage(name: str, settings: Settings, workdir: Workdir, extra: tuple) -> None:
    """Each stage imports what it needs itself: preparation is spared the seconds that JAX and all of training take."""
    match name:
        case "tokenizer":
            from ecgbyte_jax.stages.tokenizer import tokenizer as stage
        case "prepare":
            from ecgbyte_jax.stages.prepare import prepare as stage
        case "inspect":
            from ecgbyte_jax.stages.inspect import inspect as stage
        case "fit":
            from ecgbyte_jax.fit.fit import fit as stage
        case "pretrain":
            from ecgbyte_jax.pretrain.pretrain import pretrain as stage
        case "train":
            from ecgbyte_jax.stages.train import train as stage
        case "eval":
            from ecgbyte_jax.stages.eval import evaluate as stage
        case "controls":
            from ecgbyte_jax.sweep.controls import controls as stage
        case "headline":
            from ecgbyte_jax.sweep.headline import headline as stage
        case "attend":
            from ecgbyte_jax.stages.attend import attend as stage
        case "report":
            from ecgbyte_jax.stages.report import report as stage
        case "export":
            from ecgbyte_jax.stages.export import export as stage
        case "ask":
            from ecgbyte_jax.stages.ask import ask as stage
        case "serve":
            from ecgbyte_jax.serve.serve import serve as stage
    if name not in ("tokenizer", "prepare", "inspect", "fit"):
        _keep_compiled(workdir)
    try:
        stage(settings, workdir, *extra)
    except (MemoryError, RuntimeError, ValueError) as error:  # jax's errors are of the second kind, on CPUs of the third too
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = (str(error).splitlines() or ["on the host"])[0]
        raise OutOfMemoryError(
            f"{name}: out of memory ({why}); a smaller batch_size of the stage, a larger train.accumulate, model.remat, or "
            "a mesh with more fsdp or tensor takes less"
        ) from error


def _keep_compiled(workdir: Workdir) -> None:
    """Programs that took a second or more to compile are kept for the next run, unless JAX_COMPILATION_CACHE_DIR says where."""
    import jax

    folder = workdir.compiled if workdir.compiled.exists() else workdir.root
    if not jax.config.jax_compilation_cache_dir and os.access(folder, os.W_OK):  # jax would warn of every program
        jax.config.update("jax_compilation_cache_dir", str(workdir.compiled.resolve()))
