"""Stage `export`: the trained model as a Hugging Face folder, or its LoRA paths as a PEFT adapter."""

import os
import shutil
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.hf import save_pretrained
from ecgbyte_jax.model.lora import merge_lora
from ecgbyte_jax.model.peft import save_adapter
from ecgbyte_jax.run import distributed, prepare, stages, train
from ecgbyte_jax.run.corpus import Paths
from ecgbyte_jax.run.logbook import banner, console
from ecgbyte_jax.run.restore import restore_model
from ecgbyte_jax.run.sharding import make_mesh

_VERSION = 2  # of this stage's outputs


def export(config: ConfigDict, workdir: Path) -> None:
    """Runs the stage where it is not done: writes `export/` with the weights of a checkpoint and both tokenizers.

    Several processes that share the model gather it tensor by tensor, and the leader writes.
    Raises ConfigError where an adapter is asked for and there is no LoRA on a pretrained model.
    """
    if config.export.adapter and not (config.lora.rank and config.model.pretrained):
        raise ConfigError("export.adapter: True found, which needs LoRA (lora.rank above 0) on a pretrained model")
    trained = train.describe(config, workdir).require()
    folder = (workdir / "export").resolve()  # which may lie on another disk, by a link
    settings = {"version": _VERSION, **config.export.to_dict()}
    if distributed.agree(stages.Stage("export", folder / "stage.json", settings, trained).finished()):
        console.print("export: settings and inputs have not changed, nothing to do")
        return
    partial = folder.with_name(f"{folder.name}.partial")
    stage = stages.Stage("export", partial / "stage.json", settings, trained)
    if distributed.leads():
        if partial.exists():
            shutil.rmtree(partial)
        stage.begin()
    rows = {"folder": workdir / "export", **_write(config, workdir, partial)}
    if distributed.leads():
        stages.keep_settings(config, workdir, "export")
        stage.finish(path for path in partial.rglob("*") if path != stage.marker)
        _put_in_place(partial, folder)
    banner("exported", rows)


def _write(config: ConfigDict, workdir: Path, folder: Path) -> dict[str, object]:
    """Everything but the marker; returns what to say about it."""
    mesh = make_mesh(**config.mesh.to_dict())
    with jax.set_mesh(mesh):
        prepared = prepare.load_prepared(config, workdir)
        model, step = restore_model(config, workdir, prepared, mesh, config.export.checkpoint)
        rows = {"checkpoint": step, "vocabulary": model.config.vocab_size}
        if config.export.adapter:
            save_adapter(model, folder, base=config.model.pretrained, grown=True)
            if distributed.leads():
                prepared.text_tokenizer.save_pretrained(folder)
            rows["to load it"] = f"base.resize_token_embeddings({model.config.vocab_size}), then PeftModel.from_pretrained"
        else:
            merge_lora(model)
            save_pretrained(model, folder, text_tokenizer=prepared.text_tokenizer)
            rows["to load it"] = "transformers.AutoModelForCausalLM.from_pretrained"
    if distributed.leads():
        shutil.copyfile(Paths.of(config, workdir).ecg_tokenizer, folder / "ecg_tokenizer.json")  # `restore_model` compares it
    return rows


def _put_in_place(partial: Path, folder: Path) -> None:
    """Gives the finished export its name; the one before is removed, or kept aside where anything there is a user's own."""
    old = stages.free_name(folder)
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial, folder)
    own = stages.not_made_by(old / "stage.json")
    if own:
        console.print(f"export: {own[0]} is not of the export before; all of that is kept in {old}", markup=False)
    elif old.exists():
        shutil.rmtree(old)
