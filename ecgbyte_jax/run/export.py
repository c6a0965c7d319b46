"""Stage `export`: the trained model as a Hugging Face folder, or its LoRA paths as a PEFT adapter."""

import shutil
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.hf import save_pretrained
from ecgbyte_jax.model.lora import merge_lora
from ecgbyte_jax.model.peft import save_adapter
from ecgbyte_jax.run import distributed, prepare, stages, train
from ecgbyte_jax.run.logbook import banner, console
from ecgbyte_jax.run.restore import restore_model
from ecgbyte_jax.run.sharding import make_mesh

_VERSION = 1  # of this stage's outputs


def export(config: ConfigDict, workdir: Path) -> None:
    """Runs the stage where it is not done: writes `export/` with the weights of a checkpoint and the text tokenizer.

    Several processes that share the model gather it tensor by tensor, and the leader writes.
    Raises ConfigError where an adapter is asked for and there is no LoRA on a pretrained model.
    """
    if config.export.adapter and not (config.lora.rank and config.model.pretrained):
        raise ConfigError("export.adapter: True found, which needs LoRA (lora.rank above 0) on a pretrained model")
    trained = train.describe(config, workdir).require()
    folder = workdir / "export"
    stage = stages.Stage("export", folder / "stage.json", {"version": _VERSION, **config.export.to_dict()}, trained)
    if distributed.agree(stage.finished()):
        console.print("export: settings and inputs have not changed, nothing to do")
        return
    if distributed.leads():
        if folder.exists():
            shutil.rmtree(folder)
        stage.begin()
    mesh = make_mesh(**config.mesh.to_dict())
    with jax.set_mesh(mesh):
        prepared = prepare.load_prepared(config, workdir)
        model, step = restore_model(config, workdir, prepared, mesh, config.export.checkpoint)
        rows = {"checkpoint": step, "folder": folder, "vocabulary": model.config.vocab_size}
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
        stage.finish(path for path in folder.iterdir() if path != stage.marker)
    banner("exported", rows)
