"""From a checkpoint, or an exported folder, back to a model, once it belongs to the run's tokenizers and weights."""

import hashlib
import json
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.encoders.config import FOLDER
from ecgbyte_jax.encoders.places import Places
from ecgbyte_jax.errors import CheckpointError
from ecgbyte_jax.files import file_digest
from ecgbyte_jax.inputs.form import Form
from ecgbyte_jax.inputs.prepared import Prepared, load_prepared
from ecgbyte_jax.inputs.prompt import PromptIds
from ecgbyte_jax.inputs.text import load_text_tokenizer
from ecgbyte_jax.inputs.token_features import token_features
from ecgbyte_jax.model.build import Parts, build_model, left_out_targets
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.hf import load_pretrained, locate
from ecgbyte_jax.model.sharding import make_mesh, parameter_shardings
from ecgbyte_jax.model.vocabulary import Described
from ecgbyte_jax.run.console import console
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.checkpoint import Checkpoints, DamagedCheckpointError
from ecgbyte_jax.train.vectors import input_of, load_map, places_of, stored_map, vectors_of, with_stored


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model with what its prompts are made of.

    places: where what its vectors are made of lies in a segment, see `vectors.places_of`.
    """

    model: Decoder
    mesh: Mesh
    ids: PromptIds
    form: Form
    text_tokenizer: PreTrainedTokenizerFast
    ecg_tokenizer: ECGTokenizer
    max_length: int
    places: Places | None = None


def open_trained(settings: Settings, workdir: Workdir, which: str, mesh: Mesh | None = None) -> Trained:
    """Restores "last", "best", a step, "start" or an exported folder, with the run's tokenizers.

    mesh: by default that of the settings. Raises CheckpointError where there is no such checkpoint, or it was trained with
    another tokenizer or base model. The caller makes sure that the training here has finished with these settings.
    """
    prepared = load_prepared(workdir, vectors_of(settings))
    mesh = mesh or make_mesh(**asdict(settings.mesh))
    with jax.set_mesh(mesh):
        model, _ = restore_model(settings, workdir, prepared, mesh, which)
    tokenizers = prepared.text_tokenizer, prepared.ecg_tokenizer
    return Trained(model, mesh, prepared.ids, prepared.form, *tokenizers, settings.prompt.max_length, places_of(settings))


def positions(settings: Settings) -> int:
    """The positions that a prompt and its answer take."""
    return settings.prompt.max_length + settings.eval.max_new_tokens


def build_for(settings: Settings, prepared: Prepared, mesh: Mesh, *, to_restore: bool = False) -> Parts:
    """The model at its start, with a row for every token of the prepared text tokenizer; see `build_model`."""
    parts = build_model(
        settings.model,
        settings.lora,
        settings.seed,
        positions(settings),
        len(prepared.text_tokenizer),
        mesh,
        first_new_id=int(prepared.ids.ecg.min()),
        described=_described(settings, prepared),
        ecg_input=input_of(settings),
        to_restore=to_restore,
    )
    parts = with_stored(parts, settings, prepared.workdir, mesh)
    left_out = left_out_targets(settings.lora, parts.config)
    if left_out:
        console.print(f"lora.targets: {', '.join(left_out)} left out, which a {parts.config.family} does not have")
    return parts


def _described(settings: Settings, prepared: Prepared) -> Described | None:
    """The ECG tokens' features, where `model.new_rows` begins with these."""
    if settings.model.new_rows == "mean":
        return None
    features = token_features(prepared.ecg_tokenizer.bpe.tokens)
    return Described(prepared.ids.ecg, features, prepared.manifest.pretrained_tokens)


def restore_model(
    settings: Settings, workdir: Workdir, prepared: Prepared, mesh: Mesh, which: str
) -> tuple[Decoder, int | None]:
    """The model that `which` names, "last", "best", a step, "start" or a Hugging Face folder, and its step, where it has one.

    Only parameters are loaded. Raises CheckpointError where there is none, or it was trained with another tokenizer or base
    model.
    """
    if which == "start":
        parts = build_for(settings, prepared, mesh)
        return parts.model(parts.trained), None
    if which not in ("last", "best") and not which.isdecimal():
        return _load_folder(settings, workdir, prepared, mesh, which), None
    with closing(Checkpoints(workdir.checkpoints, keep=None)) as checkpoints:
        step = _choose(checkpoints, which)
        check_origin(checkpoints, step, origin(settings, prepared))
        parts = build_for(settings, prepared, mesh, to_restore=True)
        try:
            state = checkpoints.load(step, {"params": parts.trained})
        except DamagedCheckpointError as error:
            raise CheckpointError(f"{error}; remove that folder and run --stage=train to have it again") from error
    return parts.model(state["params"]), step


def origin(settings: Settings, prepared: Prepared) -> dict:
    """A checkpoint's origin: settings, digests of the tokenizers and of the weights that training started from."""
    digests = {name.replace("_", " "): prepared.manifest.digests[name] for name in ("ecg_tokenizer", "text_tokenizer")}
    digests["base model"] = weights_digest(settings.model.pretrained)
    return {"config": json.loads(json.dumps(asdict(settings))), "digests": digests, "seed": settings.seed}


def check_origin(checkpoints: Checkpoints, step: int, about: dict) -> None:
    """Raises CheckpointError that names the tokenizer or base model which differs from the checkpoint's."""
    recorded = checkpoints.about(step)["digests"]
    different = [name for name, digest in about["digests"].items() if recorded.get(name) != digest]
    if different:
        raise CheckpointError(
            f"{checkpoints.path(step)}: checkpoint {step} was trained with another {' and another '.join(different)}"
        )


def weights_digest(pretrained: str) -> str:
    """Changes with the bytes or the name of any file of weights, wherever their folder is; each host reads its share.

    A GGUF file counts by its bytes alone.
    """
    if not pretrained:
        return ""
    where = locate(pretrained)
    gguf = where.is_file()
    patterns = "*.safetensors", "*.msgpack", f"{FOLDER}/*"  # the last: of the map from signals that an export brings
    files = [where] if gguf else [file for pattern in patterns for file in sorted(where.glob(pattern))]
    own = np.zeros(32, np.uint8)
    for file in files[jax.process_index() :: jax.process_count()]:
        stat = file.stat()
        own ^= np.frombuffer(
            _file_digest(file, "" if gguf else file.relative_to(where).as_posix(), stat.st_size, stat.st_mtime_ns), np.uint8
        )
    shares = np.asarray(multihost_utils.process_allgather(own)).reshape(-1, 32)
    return np.bitwise_xor.reduce(shares).tobytes().hex()


@cache
def _file_digest(file: Path, name: str, _size: int, _time: int) -> bytes:
    """SHA-256 of a file's name and content; read once for all stages of a command."""
    return hashlib.sha256(name.encode() + bytes.fromhex(file_digest(file))).digest()


def _choose(checkpoints: Checkpoints, which: str) -> int:
    steps = checkpoints.steps()
    if not steps:
        raise CheckpointError(f"{checkpoints.folder}: no checkpoint there; add train to --stage")
    if which == "best" and checkpoints.best() is None:
        raise CheckpointError(f"{checkpoints.folder}: no checkpoint with a validation loss there, so none is the best")
    known = {"last": steps[-1], "best": checkpoints.best()} | {str(step): step for step in steps}
    if which not in known:
        raise CheckpointError(f"{checkpoints.folder}: checkpoint {which!r} found, 'last', 'best' or one of {steps} expected")
    return known[which]


def _load_folder(settings: Settings, workdir: Workdir, prepared: Prepared, mesh: Mesh, folder: str) -> Decoder:
    path = stored_map(settings, Path(folder))
    if prepared.ids.vectors and path is None:
        raise CheckpointError(
            f"{folder}: no {FOLDER} there, the map from signals to vectors, with ecg_input.kind '{settings.ecg_input.kind}'; a "
            "folder that --stage=export wrote from such a run expected"
        )
    theirs, ours = load_text_tokenizer(folder).get_vocab(), prepared.text_tokenizer.get_vocab()
    if theirs != ours:
        different = sorted(word for word in theirs.keys() | ours.keys() if theirs.get(word) != ours.get(word))
        raise CheckpointError(
            f"{folder}: its tokenizer is not the one of {workdir.text_tokenizer}: {len(different)} tokens differ, for example "
            f"{different[0]!r}; a folder that --stage=export wrote from the same prepared data expected"
        )
    if path is None:
        _check_ecg_tokenizer(Path(folder) / workdir.ecg_tokenizer.name, workdir.ecg_tokenizer)
    types = {"dtype": settings.model.dtype, "param_dtype": settings.model.param_dtype}
    model, decoder = load_pretrained(folder, shard=partial(parameter_shardings, mesh=mesh), **types)
    if decoder.vocab_size < len(ours) or decoder.max_positions < positions(settings):
        raise CheckpointError(
            f"{folder}: a model of {decoder.vocab_size} tokens and {decoder.max_positions} positions found, at least "
            f"{len(ours)} and prompt.max_length + eval.max_new_tokens = {positions(settings)} expected"
        )
    model.config = replace(model.config, spare_rows=decoder.vocab_size - len(ours))
    if path:
        model.ecg_input, model.vector_id = load_map(path, decoder.width, mesh), prepared.ids.place
    return model


def _check_ecg_tokenizer(theirs: Path, ours: Path) -> None:
    """Raises CheckpointError where a folder's model reads the ids of another ECG tokenizer, or has none beside it."""
    if not theirs.is_file():
        raise CheckpointError(
            f"{theirs}: no such file, so it is unknown whose ECG tokens the model reads; copy {ours.parent.name}/{ours.name} "
            "from the run that trained the model, or export it again"
        )
    if not ECGTokenizer.load(theirs).encodes_like(ECGTokenizer.load(ours)):
        raise CheckpointError(
            f"{theirs}: another ECG tokenizer than {ours}, so the same ids are other signals; a folder that --stage=export "
            "wrote from the same prepared data expected"
        )
