"""Stage `fit`: whether an experiment fits hardware that need not be here, and what a step costs there at least."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.encoders.config import CONTRASTED
from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.fit.programs import Request
from ecgbyte_jax.fit.topology import environment
from ecgbyte_jax.inputs.batches import outlines_of
from ecgbyte_jax.inputs.controls import vector_lengths
from ecgbyte_jax.inputs.plan import Layout, Plan
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.inputs.shards import read_lengths, read_manifest
from ecgbyte_jax.inputs.signals import segments_of
from ecgbyte_jax.model.config import KEPT
from ecgbyte_jax.model.hf import locate, read_config
from ecgbyte_jax.run.console import banner, console
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.chips import USABLE
from ecgbyte_jax.train.vectors import has_first_stage, vectors_of

_ANSWER = 128  # tokens, where nothing is prepared
_LETTERS, _SPECIAL = 26, 4  # of the ECG's vocabulary; tokens around an ECG, end and padding
_SAMPLE = 1000  # sequences, whose lengths the bounds are of
_HOUR = 3600
_GB = 1e9
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b.*:")  # the line of a Python error
_NAMES = {"step": "training step", "generation": "generation"}
_FIRST_STAGE = {"step": "first stage's step"}
_FIRST_REMEDY = "fewer segments (pretrain.batch_size) or more devices (mesh.data) help"
_REMEDY = "fewer rows (train.batch_size, eval.batch_size), more of train.accumulate or mesh.fsdp, or model.remat='inputs' help"


def fit(settings: Settings, workdir: Workdir) -> None:
    """Compiles the training step and the generation for `fit.topology`, prints what they need and writes fit.json.

    Likewise the step of `pretrain`, where the model reads an encoder that this run trains.
    Raises ConfigError where the topology is not known, its compiler is missing or crashes, or the experiment does not fit.
    """
    request, sequences = _request(settings, workdir)
    console.print(f"fit: compiling for {request.topology}, which takes a minute or more")
    found = _measure(request)
    report: dict[str, Any] = {"topology": request.topology} | found
    _add_hours(found, sequences * settings.train.epochs)
    _write(report, workdir)
    first = replace(request, first_stage=True)
    if has_first_stage(settings) and not settings.encoder.pretrained:
        report["pretrain"] = _measure(first)
        _add_hours(report["pretrain"], _segments(settings, workdir) * settings.pretrain.epochs)
        _write(report, workdir)
    if settings.fit.search:
        if found["memory"] is None:
            raise ConfigError("fit.search: the memory of these devices is not known; fit.topology with a chip expected")
        report["search"] = _search(request)
        if "pretrain" in report:
            report["pretrain"]["search"] = _most_rows(first)
        _write(report, workdir)
    _show(report)
    problems = [_problem(found)]
    if "pretrain" in report:
        _show_first_stage(report["pretrain"])
        problems.append(_problem(report["pretrain"], _FIRST_STAGE, _FIRST_REMEDY))
    if any(problems):
        raise ConfigError(f"fit: {'; '.join(filter(None, problems))}; written to {workdir.fit}")


def _add_hours(found: dict[str, Any], examples: float) -> None:
    """Those of a training on so many examples, 0 where their number is not known."""
    if "bounds" in found and examples:
        found["bounds"]["hours"] = examples / found["bounds"]["examples_per_s"] / _HOUR


def _segments(settings: Settings, workdir: Workdir) -> int:
    """The number of those that a first stage is trained on; 0 where nothing is prepared."""
    if not workdir.manifest.is_file():
        return 0
    outlines = outlines_of(workdir.shards, read_manifest(workdir.shards), "train")
    reports = settings.encoder.kind in CONTRASTED  # of segments that are asked about alone
    return len(segments_of([outline for outline in outlines if len(outline.ecgs) == 1 or not reports]))


def _write(report: dict[str, Any], workdir: Workdir) -> None:
    write_whole(workdir.fit, [json.dumps(report, indent=1).encode()])


def _request(settings: Settings, workdir: Workdir) -> tuple[Request, int]:
    """What to compile, and the number of an epoch's sequences, 0 where it is not known."""
    vectors, ecgs = vectors_of(settings), 1
    if workdir.manifest.is_file():
        prepared = load_prepared(workdir, vectors)
        console.print(f"fit: vocabulary and lengths of the data that was prepared in {workdir.shards}")
        lengths = read_lengths(prepared.shards, prepared.manifest, "train")
        if vectors:
            lengths = vector_lengths(prepared, "train", "own", settings.prompt.max_length)
            shown = np.array([len(outline.ecgs) for outline in outlines_of(prepared.shards, prepared.manifest, "train")])
            layout = Layout(settings.prompt.max_length, settings.data.packing)
            ecgs = Plan(lengths, layout, 1, 1.0, settings.seed).most(shown)
        vocabulary, first, count = len(prepared.text_tokenizer), int(prepared.ids.ecg.min()), len(lengths)
    else:
        pretrained = settings.model.pretrained
        first = read_config(locate(pretrained)).vocab_size if pretrained else settings.prompt.text_vocab_size
        vocabulary = first + _LETTERS + settings.tokenizer.num_merges + _SPECIAL
        lengths = np.array([[settings.prompt.max_length, _ANSWER]])
        count = -(-settings.fit.tokens // settings.prompt.max_length)
    answers = -(-int(lengths[:, 1].max()) // 8) * 8
    some = lengths[:: -(-len(lengths) // _SAMPLE)].tolist()
    steps = max(1, int(count * settings.train.epochs) // settings.train.batch_size)
    signals = [ecgs, len(LEADS), settings.signal.segment_length] if vectors else None
    return Request(asdict(settings), settings.fit.topology, vocabulary, first, answers, steps, some, signals), count


def _measure(request: Request) -> dict[str, Any]:
    """What `programs.measure` returns, by a process of its own; raises ConfigError where it refuses or its compiler crashes."""
    done = subprocess.run(
        [sys.executable, "-m", "ecgbyte_jax.fit.programs"],
        input=json.dumps(asdict(request)),
        env=os.environ | environment(request.topology),
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    last = next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1])
    if done.returncode == 2:
        raise ConfigError(last)
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    raise ConfigError(f"fit.topology: the compiler for {request.topology} failed ({how}): {last:.300}")


def _problem(found: dict[str, Any], names: dict[str, str] = _NAMES, remedy: str = _REMEDY) -> str:
    """Why the programs do not fit, "" where they do."""
    for program, name in names.items():
        measured, memory = found.get(program, {}), found["memory"]
        if "refused" in measured:
            return f"the {name} does not fit: {measured['refused']}; {remedy}"
        if measured and memory and measured["peak"] > USABLE * memory:
            needed, usable = measured["peak"] / _GB, USABLE * memory / _GB
            return (
                f"the {name} does not fit: {needed:.1f} GB a device found, {usable:.1f} GB usable, "
                f"{needed - usable:.1f} GB too much; {remedy}"
            )
    return ""


def _search(request: Request) -> dict[str, int]:
    """The most rows a device with which a step fits, for each value of `remat`."""
    return {remat: _most_rows(replace(request, remat=remat, generate=False)) for remat in KEPT}


def _most_rows(request: Request) -> int:
    """Within a sixteenth: from the peaks of one row and two along a line, then halving what is left."""

    def share(rows: int) -> float:
        """Of the usable memory, 0 where it does not fit."""
        found = _measure(replace(request, rows=rows))
        fits = not _problem(found)
        what = "segments a device" if request.first_stage else f"rows a device, model.remat '{request.remat}'"
        console.print(f"fit: {rows} {what}: {'fits' if fits else 'does not fit'}")
        return found["step"]["peak"] / (USABLE * found["memory"]) if fits else 0.0

    first = share(1)
    second = first and share(2)
    if not second:
        return int(bool(first))
    low, high, rows = 2, 0, max(3, 1 + int((1 - first) / max(second - first, 1e-6)))
    while not high or high - low > max(1, low // 16):  # within a sixteenth
        if share(rows):
            low, rows = rows, (rows + high) // 2 if high else rows + max(1, rows // 8)
        else:
            high, rows = rows, (low + rows) // 2
    return low


def _show(report: dict[str, Any]) -> None:
    rows: dict[str, object] = {
        "devices": _describe_devices(report),
        "parameters": f"{report['parameters']['trained']:,} trained, {report['parameters']['frozen']:,} frozen",
        "attention": f"the fused kernel '{report['attention']}'" if report["attention"] else "plain operations",
        "a step": f"{report['rows']} rows, {report['rows a device']} a device, model.remat '{report['remat']}'",
    }
    rows |= _describe_program("training step", report, report["step"])
    rows |= _describe_program("generation", report, report.get("generation", {}))
    if "bounds" in report:
        bounds = report["bounds"]
        rows |= _describe_bounds(bounds)
        rows["a token at least"] = f"{1000 * bounds['token']['seconds']:.2f} ms, {bounds['tokens_per_s']:,.0f} tokens/s"
    if "search" in report:
        found = report["search"]
        rows["most rows a device"] = ", ".join(f"{number} with '{remat}'" for remat, number in found.items())
        best = next((remat for remat, number in found.items() if number), None)
        if best:
            total = found[best] * (report["rows"] // report["rows a device"])
            rows["recommended"] = f"model.remat='{best}', train.batch_size={total}"
    banner("fit", rows)


def _show_first_stage(found: dict[str, Any]) -> None:
    rows: dict[str, object] = {
        "devices": _describe_devices(found),
        "parameters": f"{found['parameters']['trained']:,} with those of the objective alone",
        "a step": f"{found['rows']} segments, {found['rows a device']} a device",
    }
    rows |= _describe_program("training step", found, found["step"])
    rows |= _describe_bounds(found["bounds"]) if "bounds" in found else {}
    if "search" in found:
        rows["most segments a device"] = found["search"]
    banner("fit: the first stage", rows)


def _describe_devices(found: dict[str, Any]) -> str:
    sizes = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    return f"{found['devices']} x {found['device']}, {sizes}"


def _describe_program(name: str, found: dict[str, Any], measured: dict[str, Any]) -> dict[str, str]:
    """What a program needs and sends; {} where it was refused, or not compiled."""
    if "peak" not in measured:
        return {}
    of = f" of {found['memory'] / _GB:.1f} GB" if found["memory"] else ""
    needs = (
        f"{measured['peak'] / _GB:.2f}{of} a device: {measured['arguments'] / _GB:.2f} of arguments, "
        f"{measured['temporaries'] / _GB:.2f} of temporaries; compiled in {measured['seconds']:.0f} s"
    )
    return {name: needs, f"  {name.split()[-1]} sends": _sent(measured["collectives"]) or "nothing"}


def _describe_bounds(bounds: dict[str, Any]) -> dict[str, str]:
    least = bounds["step"]
    parts = ", ".join(f"{part} {1000 * least[part]:.1f}" for part in ("arithmetic", "memory", "communication"))
    hours = f", {bounds['hours']:.2f} hours for all epochs" if "hours" in bounds else ""
    return {
        "a step takes at least": f"{1000 * least['seconds']:.1f} ms ({parts})",
        "at that bound": f"{bounds['examples_per_s']:,.1f} examples/s{hours}",
    }


def _sent(collectives: dict[str, dict[str, int]]) -> str:
    """What a program sends: how often and how much, or only how often its text says so."""
    known = (f"{sent['times']} {kind} ({sent['bytes'] / _GB:.3f} GB)" for kind, sent in collectives.items() if "times" in sent)
    return ", ".join(known) or ", ".join(f"{sent['places']} {kind} in its text" for kind, sent in collectives.items())
