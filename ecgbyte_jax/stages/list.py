"""Tool `list`: the runs below a folder, each with its data, model, scores and age; what is missing or damaged is named."""

import json
import os
import time
from pathlib import Path

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.evaluate.results import MODEL
from ecgbyte_jax.run.console import console, text_table
from ecgbyte_jax.run.workdir import Workdir, is_run

_DEEPEST = 3  # folders between the given one and a run


def list_runs(folders: list[Path]) -> None:
    """Shows a line for each evaluation of every run that is one of these folders or below them.

    Raises ConfigError where a folder is not there.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"--runs: no folder '{folder}'; --stage=list --runs=FOLDER,FOLDER lists the runs below them")
    for folder in folders:
        runs = _find(folder, _DEEPEST)
        if runs:
            evaluations = [workdir for run in runs for workdir in Workdir(run).evaluations()]
            rows = [{"run": _name(workdir, folder)} | _describe(workdir) for workdir in evaluations]
            text_table(f"runs in {folder}", rows)
        else:
            console.print(f"no runs in {folder}")


def _name(workdir: Workdir, folder: Path) -> str:
    ending = f" {workdir.evaluation_name}" if workdir.evaluation_name else ""
    return f"{workdir.root.relative_to(folder)}{ending}"


def _find(folder: Path, depth: int) -> list[Path]:
    if is_run(folder):
        return [folder]
    try:
        inner = sorted(path for path in folder.iterdir() if os.path.isdir(path) and not path.name.startswith("."))
    except PermissionError:
        return [folder]  # it may be one: its line says that it cannot be read
    return [run for path in inner for run in _find(path, depth - 1)] if depth else []


def _describe(workdir: Workdir) -> dict[str, str]:
    """The cells of a run's line."""
    problems: list[str] = []
    config = _read(workdir.config, "settings", problems)
    results = _read(workdir.results, "evaluation", problems)
    voted = _at(results, "by_recording", "scores", MODEL, "exact_match")  # as the verdict
    score = _at(results, "scores", MODEL, "exact_match") if voted is None else voted
    if results and not isinstance(score, int | float):
        problems.append(f"no exact match in {workdir.results.name}")
    sentence = _at(results, "verdict", "sentence")
    return {
        "data": _data(config),
        "model": _model(config),
        "exact match": f"{100 * score:.1f}%" if isinstance(score, int | float) else "-",
        "age": _age(workdir),
        "verdict": "; ".join([*([sentence] if isinstance(sentence, str) else []), *problems]),
    }


def _read(path: Path, what: str, problems: list[str]) -> dict:
    """An object in JSON; {} and a line among the problems where it is not there or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        problems.append(f"no {what}")
    except OSError as error:
        problems.append(f"{path.name}: {error.strerror}")
    except ValueError:
        problems.append(f"{path.name} is damaged")
    else:
        if isinstance(content, dict):
            return content
        problems.append(f"{path.name} is damaged")
    return {}


def _at(tree: object, *names: str) -> object:
    """The value below these names; None where it is not there."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _data(config: dict) -> str:
    corpus, synthetic = _at(config, "data", "corpus"), _at(config, "data", "synthetic_records")
    return f"{corpus}{', synthetic' if synthetic else ''}" if corpus else "-"


def _model(config: dict) -> str:
    """The pretrained model's name, or layers x width; the rank of LoRA; what it reads of an ECG, where not its tokens."""
    pretrained, rank = _at(config, "model", "pretrained"), _at(config, "lora", "rank")
    layers, width = _at(config, "model", "layers"), _at(config, "model", "width")
    name = Path(pretrained).name if isinstance(pretrained, str) and pretrained else f"{layers} layers x {width}"
    if not (layers or pretrained):
        return "-"
    kind = _at(config, "ecg_input", "kind") or "tokens"
    reads = _at(config, "encoder", "kind") if kind == "encoder" else kind
    return ", ".join([name, *([f"LoRA {rank}"] if rank else []), *([f"reads {reads}"] if kind != "tokens" else [])])


def _age(workdir: Workdir) -> str:
    """Since the newest of the files that a run writes as it goes on."""
    files = (workdir.results, workdir.metrics, workdir.config)
    times = [os.path.getmtime(path) for path in files if os.path.exists(path)] or [os.path.getmtime(workdir.root)]
    hours = (time.time() - max(times)) / 3600
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} d"
