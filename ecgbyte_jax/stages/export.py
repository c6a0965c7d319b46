"""Stage `export`: the trained model as a Hugging Face folder, or its LoRA paths as a PEFT adapter, ready for use elsewhere."""

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import jax
from safetensors import SafetensorError

from ecgbyte_jax.asking.worth import check_evaluated
from ecgbyte_jax.encoders.config import FOLDER
from ecgbyte_jax.encoders.stored import save_ecg_input
from ecgbyte_jax.errors import ConfigError, WeightsError
from ecgbyte_jax.export.card import make_card, write_card
from ecgbyte_jax.export.code import write_code, write_example
from ecgbyte_jax.export.form import write_form, write_generation
from ecgbyte_jax.inputs.prepared import Prepared, load_prepared
from ecgbyte_jax.model.hf import save_pretrained
from ecgbyte_jax.model.lora import merge_lora
from ecgbyte_jax.model.peft import save_adapter
from ecgbyte_jax.model.sharding import make_mesh
from ecgbyte_jax.report.folder import read_json
from ecgbyte_jax.run.console import banner, console
from ecgbyte_jax.run.processes import agree, leads
from ecgbyte_jax.run.stage import free_name, not_made_by, settings_of
from ecgbyte_jax.run.workdir import MARKER, Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.train.restore import restore_model
from ecgbyte_jax.train.vectors import described, vectors_of


def export(settings: Settings, workdir: Workdir) -> None:
    """Runs the stage where it is not done: writes `export/` with a checkpoint's weights, tokenizers, code, example and card.

    Several processes that share the model gather it tensor by tensor, and the leader writes.
    Raises ConfigError where an adapter is asked for and there is no LoRA on a pretrained model, or PEFT cannot load that.
    """
    pretrained = settings.model.pretrained
    if settings.export.adapter and not (settings.lora.rank and pretrained):
        raise ConfigError("export.adapter: True found, which needs LoRA (lora.rank above 0) on a pretrained model")
    if settings.export.adapter and Path(pretrained).is_file():
        raise ConfigError(f"export.adapter: True found, but PEFT cannot load '{pretrained}', a GGUF file; leave it out")
    folder = workdir.export.resolve()  # it may be a link to another disk
    stage = lineage.exported(settings, workdir, folder / MARKER)
    if agree(stage.finished()):
        console.print("export: settings and inputs have not changed, nothing to do")
        return
    partial = folder.with_name(f"{folder.name}.partial")
    stage = replace(stage, marker=partial / MARKER)
    if leads():
        if partial.exists():
            shutil.rmtree(partial)
        stage.begin()
    try:
        rows = {"folder": workdir.export, **_write(settings, workdir, partial)}
        rows["to ask it"] = f"python {workdir.export / 'example.py'} RECORD QUESTION"
    except SafetensorError as error:
        raise WeightsError(f"{partial}: cannot be written: {error}; the export before is as it was") from error
    if leads():
        lineage.keep_settings(settings, workdir, "export")
        stage.finish(path for path in partial.rglob("*") if path != stage.marker)
        _put_in_place(partial, folder)
    banner("exported", rows)


def _write(settings: Settings, workdir: Workdir, folder: Path) -> dict[str, object]:
    """Everything but the marker; returns what to say about it."""
    mesh = make_mesh(**asdict(settings.mesh))
    with jax.set_mesh(mesh):
        prepared = load_prepared(workdir, vectors_of(settings))
        model, step = restore_model(settings, workdir, prepared, mesh, settings.export.checkpoint)
        rows = {"checkpoint": step, "vocabulary": model.config.vocab_size}
        if settings.export.adapter:
            pretrained = settings.model.pretrained
            base = str(Path(pretrained).resolve()) if Path(pretrained).is_dir() else pretrained
            save_adapter(model, folder, base=base, grown=True)
            if leads():
                prepared.text_tokenizer.save_pretrained(folder)
            rows["to load it"] = f"base.resize_token_embeddings({model.config.vocab_size}), then PeftModel.from_pretrained"
        else:
            merge_lora(model)
            save_pretrained(model, folder, text_tokenizer=prepared.text_tokenizer)
            rows["to load it"] = "transformers.AutoModelForCausalLM.from_pretrained"
    if leads():
        if model.ecg_input is not None:
            save_ecg_input(model.ecg_input, folder / FOLDER, described(settings), model.config.width)
        _write_beside(settings, workdir, prepared, folder, step, model.config.vocab_size)
    return rows


def _write_beside(settings: Settings, workdir: Workdir, prepared: Prepared, folder: Path, step: int, rows: int) -> None:
    """What a program needs beside weights and text tokenizer; rows: of the model's vocabulary."""
    if not prepared.ids.vectors:
        shutil.copyfile(workdir.ecg_tokenizer, folder / workdir.ecg_tokenizer.name)  # `restore_model` compares it
    write_form(folder, settings, prepared.ids, prepared.manifest.system)
    write_generation(folder, settings, prepared.ids, prepared.form.stops, len(prepared.text_tokenizer), rows)
    vectors = prepared.ids.vectors > 0
    write_code(folder, vectors)
    write_example(folder, rows if settings.export.adapter else 0, settings.model.param_dtype, vectors)
    name, evaluation = workdir.root.resolve().name, _evaluation(workdir, step)
    write_card(folder, make_card(name, step, settings, prepared.manifest, *evaluation))


def _evaluation(workdir: Workdir, step: int) -> tuple[dict | None, str, float]:
    """The results of the evaluation of this checkpoint, why there are none, and the temperature of its answers."""
    results = read_json(workdir.results)
    if results is None:
        return None, "The run has no evaluation; `--stage=eval,export` adds one.", 0.0
    try:
        check_evaluated(workdir, results)
    except ConfigError:
        return None, "The evaluation in the run's folder is of another training; `--stage=eval,export` evaluates this one.", 0.0
    if results["checkpoint_step"] != step:
        of = {"start": "the model before its training"}.get(results["checkpoint"], "an exported folder")
        other = of if results["checkpoint_step"] is None else f"checkpoint {results['checkpoint_step']}"
        remedy = f"`--stage=eval,export --config.eval.checkpoint={step}` evaluates this one"
        return None, f"The evaluation in the run's folder is of {other}, this is checkpoint {step}; {remedy}.", 0.0
    evaluated = settings_of(workdir.answers_marker).get("eval", {})
    return results, "", float(evaluated.get("temperature", 0.0))


def _put_in_place(partial: Path, folder: Path) -> None:
    """Gives the finished export its name; the one before is removed, or kept aside where anything there is a user's own."""
    old = free_name(folder)
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial, folder)
    # Python leaves compiled modules beside the code that example.py imports.
    own = [path for path in not_made_by(old / MARKER) if path.parent.name != "__pycache__"]
    if own:
        console.print(f"export: {own[0]} is not of the export before; all of that is kept in {old}")
    elif old.exists():
        shutil.rmtree(old)
