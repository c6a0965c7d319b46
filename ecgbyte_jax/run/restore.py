"""From a checkpoint, or an exported folder, back to a model: where it belongs to the run's tokenizers and weights."""

import hashlib
import json
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from ecgbyte_jax.errors import CheckpointError
from ecgbyte_jax.inputs.text import load_text_tokenizer
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.hf import load_pretrained, locate
from ecgbyte_jax.run.build import Parts, build_model
from ecgbyte_jax.run.checkpoint import Checkpoints
from ecgbyte_jax.run.corpus import Paths
from ecgbyte_jax.run.optim import make_optimizer
from ecgbyte_jax.run.prepare import Prepared
from ecgbyte_jax.run.sharding import parameter_shardings
from ecgbyte_jax.run.step import start_state


def build_for(config: ConfigDict, prepared: Prepared, mesh: Mesh) -> Parts:
    """The model at its start, with a row for every token of the prepared text tokenizer."""
    return build_model(config, len(prepared.text_tokenizer), mesh, first_new_id=int(prepared.ids.ecg.min()))


def restore_model(config: ConfigDict, workdir: Path, prepared: Prepared, mesh: Mesh, which: str) -> tuple[Decoder, int | None]:
    """The model that `which` names, "last", "best", a step or a Hugging Face folder, and its step (None: a folder has none).

    Raises CheckpointError where there is none, or it was trained with another tokenizer or base model.
    """
    if which not in ("last", "best") and not which.isdecimal():
        return _load_folder(config, workdir, prepared, mesh, which), None
    parts = build_for(config, prepared, mesh)
    optimizer, _ = make_optimizer(config, parts.config.width, 1)
    with closing(Checkpoints(workdir / "checkpoints", keep=None)) as checkpoints:
        step = _choose(checkpoints, which)
        check_origin(checkpoints, step, origin(config, prepared))
        state = checkpoints.load(step, start_state(parts.trained, optimizer, mesh))
    return parts.model(state.params), step


def _load_folder(config: ConfigDict, workdir: Path, prepared: Prepared, mesh: Mesh, folder: str) -> Decoder:
    theirs, ours = load_text_tokenizer(folder).get_vocab(), prepared.text_tokenizer.get_vocab()
    if theirs != ours:
        different = sorted(word for word in theirs.keys() | ours.keys() if theirs.get(word) != ours.get(word))
        raise CheckpointError(
            f"{folder}: its tokenizer is not the one of {Paths.of(config, workdir).text_tokenizer}: {len(different)} tokens "
            f"differ, say {different[0]!r}; a folder that --stage=export wrote from the same prepared data wanted"
        )
    how = {name: config.model[name] for name in ("dtype", "param_dtype")}
    model, found = load_pretrained(folder, shard=partial(parameter_shardings, mesh=mesh), **how)
    positions = config.prompt.max_length + config.eval.max_new_tokens
    if found.vocab_size < len(ours) or found.max_positions < positions:
        raise CheckpointError(
            f"{folder}: a model of {found.vocab_size} tokens and {found.max_positions} positions found, at least {len(ours)} "
            f"and prompt.max_length + eval.max_new_tokens = {positions} wanted"
        )
    model.config = replace(model.config, spare_rows=found.vocab_size - len(ours))
    return model


def _choose(checkpoints: Checkpoints, which: str) -> int:
    steps = checkpoints.steps()
    if not steps:
        raise CheckpointError(f"{checkpoints.folder}: no checkpoint there; add train to --stage")
    if which == "best" and checkpoints.best() is None:
        raise CheckpointError(f"{checkpoints.folder}: no checkpoint with a validation loss there, so none is the best")
    known = {"last": steps[-1], "best": checkpoints.best()} | {str(step): step for step in steps}
    if which not in known:
        raise CheckpointError(f"{checkpoints.folder}: checkpoint {which!r} found, 'last', 'best' or one of {steps} wanted")
    return known[which]


def origin(config: ConfigDict, prepared: Prepared) -> dict:
    """What a checkpoint says of its origin: settings, digests of the tokenizers and of the weights that it started from."""
    digests = {f"{name.replace('_', ' ')}": prepared.manifest.digests[name] for name in ("ecg_tokenizer", "text_tokenizer")}
    digests["base model"] = _weights_digest(config.model.pretrained)
    return {"config": json.loads(config.to_json_best_effort()), "digests": digests, "seed": config.seed}


def _weights_digest(pretrained: str) -> str:
    """SHA-256 over all files of weights, wherever their folder lies."""
    if not pretrained:
        return ""
    total = hashlib.sha256()
    for file in (f for ending in ("*.safetensors", "*.msgpack") for f in sorted(locate(pretrained).glob(ending))):
        with file.open("rb") as data:
            total.update(hashlib.file_digest(data, "sha256").digest())
    return total.hexdigest()


def check_origin(checkpoints: Checkpoints, step: int, about: dict) -> None:
    """Raises CheckpointError that names the tokenizer or base model which is not the one that the checkpoint came from."""
    found = checkpoints.about(step)["digests"]
    other = [name for name, digest in about["digests"].items() if found.get(name) != digest]
    if other:
        raise CheckpointError(
            f"{checkpoints.path(step)}: checkpoint {step} was trained with another {' and another '.join(other)}"
        )
