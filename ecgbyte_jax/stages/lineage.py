"""What each stage's outputs depend on: one table of settings. What a stage reads counts by its content, never by its path."""

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

from ecgbyte_jax.encoders.config import FEATURES_BY, FOLDER
from ecgbyte_jax.errors import ConfigError, ScoresError, TokenizerError
from ecgbyte_jax.files import file_digest, write_whole
from ecgbyte_jax.run.stage import Stage, content_digest, json_digest, outputs_digest
from ecgbyte_jax.run.workdir import MARKER, Workdir
from ecgbyte_jax.settings import DataSettings, ServeSettings, Settings

# The examples and signals of a run: what the symbols and the ECG tokenizer depend on.
_TOKENIZER = (
    "seed",
    "data.corpus",
    "data.measured_of",
    "data.mixture",  # its names, and its weights where they count
    "data.parts",  # but for paths
    "data.sample_rate",
    "data.question",
    "data.published_split",
    "data.question_types",
    "data.label_set",
    "data.wording",
    "data.folds",
    "data.fold",
    "data.split",
    "data.synthetic_records",
    "data.max_segments",
    "signal",
    "tokenizer.num_merges",
    "tokenizer.boundary",
    "tokenizer.sampling",
    "tokenizer.sample_records",
    "tokenizer.max_clusters",
    "tokenizer.percentile_records",
    "tokenizer.by_weight",
)
# Stages whose seed is that of the data.
_OF_THE_DATA = ("synthetic data", "tokenizer", "tokenizer report", "prepare", "answers")
# Stage -> the settings, single ones or whole parts, that its outputs depend on beside those of the stages before it.
FIELDS: dict[str, tuple[str, ...]] = {
    "synthetic data": ("seed", "data.synthetic_records"),
    "tokenizer": _TOKENIZER,
    "tokenizer report": (*_TOKENIZER, "tokenizer.merges_csv"),
    "prepare": (*_TOKENIZER, "prompt", "data.sequences_per_file", "data.questions_together", "train.turns"),
    "train": (
        "seed",
        "prompt",
        "data.mixture",
        "data.ecg",
        "data.packing",
        "data.length_buckets",
        "model.width",
        "model.layers",
        "model.heads",
        "model.kv_heads",
        "model.head_dim",
        "model.mlp_width",
        "model.rope_theta",
        "model.dtype",
        "model.param_dtype",
        "model.attention",
        "model.remat",
        "model.scan_from",
        "model.quantize",
        "model.vocab_multiple",
        "model.new_rows",
        "model.train_new_embeddings",
        "lora",
        "optim",
        "train.batch_size",
        "train.accumulate",
        "train.epochs",
        "train.patience",
        "train.patience_delta",
    ),
    "signals": (),  # those of `prepare`, whose outputs they belong to
    "reports": (),  # those of `prepare`, whose texts they are, and the text encoder's content
    "pretrain": (
        "seed",
        "encoder.kind",
        "encoder.size",
        "encoder.patch",
        "encoder.mask_share",
        "encoder.published_scaling",
        "encoder.published_crop",
        "pretrain.batch_size",
        "pretrain.epochs",
        "pretrain.patience",
        "pretrain.patience_delta",
        "pretrain_optim",
    ),
    # Parts of `train` and of answers where a model reads vectors in place of ECG tokens.
    "ecg input": ("ecg_input",),
    "encoder": tuple(f"encoder.{name}" for name in FEATURES_BY),
    "early stopping of pretrain": ("pretrain.checkpoint_every", "pretrain.valid_batches"),
    "early stopping": ("train.checkpoint_every", "train.valid_batches"),  # part of `train` where patience ends it
    "answers": (
        "seed",
        "eval.split",
        "eval.checkpoint",
        "eval.ecg",
        "eval.history",
        "eval.batch_size",
        "eval.max_new_tokens",
        "eval.max_sequences",
        "eval.temperature",
        "eval.top_k",
        "eval.top_p",
        "eval.seeds",
        "eval.perturb",
    ),
    "probabilities": ("eval.labels",),  # and those of `answers`
    "eval": ("eval.bootstrap", "eval.bertscore_model", "eval.labels"),
    "report": ("seed", "attend"),
    "export": ("export", "eval.max_new_tokens", "signal", "prompt", "data.corpus", "data.synthetic_records"),
}
# Where things are and run, what is logged, and the paths of what a stage reads, whose content counts.
CHANGES_NO_OUTPUT = (
    "data.seed",  # counts as the seed of what it is given for
    "data.root",
    "data.ecgqa_root",
    "data.translations",
    "data.conversations",
    "data.table",
    "data.max_bad_fraction",
    "tokenizer.file",
    "prepare",
    "model.pretrained",
    "encoder.text_encoder",
    "encoder.weights",
    "train.valid_answers",
    "train.keep_checkpoints",
    "train.wandb_project",
    "pretrain.keep_checkpoints",
    "pretrain.wandb_project",
    "encoder.pretrained",  # what it names counts by its content
    "eval.name",
    "mesh",
    "distributed",
    "fit",
    "headline",  # whose trainings are runs of their own
    "serve",
)
# Settings that came later, with what was so before: while it is, they do not count, so that finished runs stay finished.
_AS_BEFORE = {
    "data.ecg": "own",
    "data.label_set": "statements",
    "data.folds": 0,
    "data.fold": 0,
    "data.measured_of": "ptbxl",
    "data.mixture": {},
    "data.parts": {},
    "tokenizer.by_weight": False,
    "eval.ecg": "own",
    "encoder.published_crop": False,
    "eval.labels": 0,
}
# The parts of config.json that a stage writes: what its outputs were made with, and where and how it ran.
_KEPT = {
    "tokenizer report": ("seed", "data", "signal", "tokenizer", "prepare"),
    "prepare": ("seed", "data", "signal", "tokenizer", "prepare", "prompt"),
    "train": ("seed", "data", "signal", "tokenizer", "prepare", "prompt", "model", "lora", "ecg_input", "optim", "train",
              "mesh", "distributed"),
    "pretrain": ("seed", "encoder", "pretrain", "pretrain_optim", "mesh", "distributed"),
    "eval": ("eval",),
    "headline": ("headline", "model", "lora", "ecg_input", "encoder", "optim", "train", "pretrain", "pretrain_optim", "eval"),
    "export": ("export",),
}  # fmt: skip
# What transformers may read a text tokenizer from; config.json names its class where nothing else does.
_TEXT_FILES = ("*token*", "vocab*", "merges*", "*.model", "chat_template*", "config.json")
# Of a stage's outputs; to be raised where the same settings and inputs give others than before.
_VERSIONS = {
    "synthetic data": 1,
    "tokenizer": 4,
    "tokenizer report": 1,
    "prepare": 6,
    "signals": 1,
    "reports": 1,
    "pretrain": 1,
    "train": 4,
    "answers": 7,
    "probabilities": 1,
    "eval": 8,
    "report": 7,
    "export": 6,
}


def depends_on(stage: str, settings: Settings) -> dict:
    """The version and the settings that a stage's outputs depend on, as plain values."""
    names = FIELDS[stage]
    if stage == "train" and settings.train.patience:
        names += FIELDS["early stopping"]
    if stage == "train" and settings.ecg_input.kind != "tokens":
        names += FIELDS["ecg input"] + (FIELDS["encoder"] if settings.ecg_input.kind == "encoder" else ())
    if stage == "pretrain" and settings.pretrain.patience:
        names += FIELDS["early stopping of pretrain"]
    everything, chosen = asdict(settings), {"version": _VERSIONS[stage]}
    if stage in _OF_THE_DATA:
        everything["seed"] = settings.data_seed
    if settings.data.mixture:
        by_weight = stage == "train" or settings.tokenizer.by_weight
        everything["data"]["mixture"] = settings.data.shares if by_weight else [*settings.data.shares]
        everything["data"]["parts"] = {name: _without_paths(settings.data.parts.get(name, {})) for name in settings.data.shares}
    for name in names:
        part, _, field = name.partition(".")
        if name in _AS_BEFORE and everything[part][field] == _AS_BEFORE[name]:
            continue
        if field:
            chosen.setdefault(part, {})[field] = everything[part][field]
        else:
            chosen[part] = everything[part]
    return chosen


def _without_paths(part: dict) -> dict:
    paths = {field.name for field in fields(DataSettings) if field.metadata["is_path"]}
    return {name: value for name, value in part.items() if name not in paths}


def synthetic(settings: Settings, workdir: Workdir) -> Stage:
    """The recordings that are made where none are given."""
    return Stage("synthetic data", workdir.synthetic_marker, depends_on("synthetic data", settings), "")


def tokenizer(settings: Settings, workdir: Workdir, corpus: str) -> Stage:
    """The ECG tokenizer of a corpus with this digest; raises TokenizerError where a given one is not there."""
    inputs = json_digest([corpus, _given_tokenizer(settings.tokenizer.file)])
    return Stage("tokenizer", workdir.tokenizer_marker, depends_on("tokenizer", settings), inputs)


def tokenizer_report(settings: Settings, workdir: Workdir, corpus: str) -> Stage:
    """What --stage=tokenizer prints of it."""
    inputs = tokenizer(settings, workdir, corpus).inputs
    return Stage("tokenizer report", workdir.tokenizer_report_marker, depends_on("tokenizer report", settings), inputs)


def preparation(settings: Settings, workdir: Workdir, corpus: str) -> Stage:
    """The preparation of a corpus with this digest; raises WeightsError where a pretrained text tokenizer is not there."""
    inputs = json_digest([tokenizer(settings, workdir, corpus).inputs, _text_tokenizer(settings.model.pretrained)])
    return Stage("prepare", workdir.prepare_marker, depends_on("prepare", settings), inputs)


def prepared(settings: Settings, workdir: Workdir) -> Stage:
    """The preparation that was run here, for the stages that read its outputs alone."""
    return Stage.on_disk("prepare", workdir.prepare_marker, depends_on("prepare", settings))


def signals(settings: Settings, workdir: Workdir) -> Stage:
    """The clean segments of the recordings that preparation read; raises ConfigError where that has not finished."""
    return Stage("signals", workdir.signals_marker, depends_on("signals", settings), prepared(settings, workdir).require())


def reports(settings: Settings, workdir: Workdir) -> Stage:
    """The features of the prepared texts by a text encoder, which counts by its content: of several processes all must call.

    Raises ConfigError as `signals` does.
    """
    texts = prepared(settings, workdir).require()
    inputs = json_digest([texts, *_encoder_folder(settings.encoder.text_encoder)])
    return Stage("reports", workdir.reports_marker, depends_on("reports", settings), inputs)


def pretrained(settings: Settings, workdir: Workdir) -> Stage:
    """The training of an encoder on the segments of what was prepared, and their reports; raises ConfigError as `signals` does.

    Preparation's texts, and tokenizer where a CLIP starts from no weights, count with the segments. Of several processes all
    must call.
    """
    inputs = signals(settings, workdir).digest()
    if settings.encoder.kind == "merl":
        inputs = json_digest([inputs, reports(settings, workdir).digest()])
    elif settings.encoder.weights:
        inputs = json_digest([inputs, *_encoder_folder(settings.encoder.weights)])
    return Stage("pretrain", workdir.pretrain.train_marker, depends_on("pretrain", settings), inputs)


def trained(settings: Settings, workdir: Workdir) -> Stage:
    """The training on what preparation left here; raises ConfigError where that has not finished or had other settings.

    The pretrained weights count by their content: of several processes all must call.
    """
    return Stage("train", workdir.train_marker, depends_on("train", settings), _start_of(settings, workdir))


def _start_of(settings: Settings, workdir: Workdir) -> str:
    """Of the data that was prepared here, the pretrained weights, and the encoder that a training starts from."""
    weights = *_weights(settings.model.pretrained), *_encoder(settings, workdir)
    return json_digest([prepared(settings, workdir).require(), *weights])


def _encoder(settings: Settings, workdir: Workdir) -> tuple[str, ...]:
    """Of the encoder that a model starts from; raises ConfigError where its training has not finished."""
    pretrained = settings.encoder.pretrained
    if settings.ecg_input.kind != "encoder" or pretrained == "random":
        return () if settings.ecg_input.kind != "encoder" else ("random",)
    if settings.model.pretrained:
        from ecgbyte_jax.train.vectors import pretrained_map  # which imports JAX

        if pretrained_map(settings):  # whose bytes count with those of the language model
            return ()
    marker = (Workdir(Path(pretrained)) if pretrained else workdir).pretrain.train_marker
    digest = outputs_digest(marker)
    if not digest:
        raise ConfigError(
            f"{marker}: no encoder has finished its training there, which ecg_input.kind 'encoder' needs: add pretrain to "
            "--stage, or give encoder.pretrained, a run with one, or 'random'"
        )
    return (digest,)


def answered(settings: Settings, workdir: Workdir) -> Stage:
    """The answers to the prepared questions: of a checkpoint here, of the model before its training, or of a folder's model."""
    which, settings_of_answers = settings.eval.checkpoint, depends_on("answers", settings)
    if which in ("last", "best") or which.isdecimal():
        inputs = trained(settings, workdir).require()
    elif which == "start":
        inputs = _start_of(settings, workdir)
        start = depends_on("train", settings)
        settings_of_answers |= {part: start[part] for part in ("model", "lora", "ecg_input", "encoder") if part in start}
        if settings.seed != settings.data_seed:  # the weights are drawn by the one, the questions by the other
            settings_of_answers["seed of the weights"] = settings.seed
    else:
        # Not an export's marker and card, which follow from its evaluation, nor its example.
        files = sorted(path for path in Path(which).iterdir() if path.is_file() and path.suffix not in (".md", ".py"))
        files = [path for path in files if path.name != MARKER] + sorted(Path(which).glob(f"{FOLDER}/*"))
        inputs = json_digest([prepared(settings, workdir).require(), content_digest(files)])
        settings_of_answers["eval"]["checkpoint"] = "folder"
        settings_of_answers["model"] = {"dtype": settings.model.dtype, "param_dtype": settings.model.param_dtype}
    return Stage("answers", workdir.answers_marker, settings_of_answers, inputs)


def labelled(settings: Settings, workdir: Workdir, answers: Stage) -> Stage:
    """The probabilities of the candidate answers to the questions of these answers, by the same model."""
    settings_of_labels = depends_on("probabilities", settings)
    return Stage("probabilities", workdir.probabilities_marker, settings_of_labels, answers.digest())


def scored(settings: Settings, workdir: Workdir, answers: Stage) -> Stage:
    """The scores of these answers, and of the candidates' probabilities, with their versions; WordNet may have come since."""
    from ecgbyte_jax.evaluate.meteor import find_wordnet
    from ecgbyte_jax.evaluate.results import SCORES  # which import much that other stages do without

    try:
        wordnet = bool(find_wordnet())
    except ScoresError:
        wordnet = False
    settings_of_scores = depends_on("eval", settings) | {"wordnet": wordnet, "scores": SCORES}
    inputs = labelled(settings, workdir, answers).digest() if settings.eval.labels else answers.digest()
    return Stage("eval", workdir.scores_marker, settings_of_scores, inputs)


def exported(settings: Settings, workdir: Workdir, marker: Path) -> Stage:
    """The export of the training here, with its marker where it is written; raises ConfigError where there is no training.

    Its card has the scores of the evaluation here, so that a new evaluation leads to a new export.
    """
    evaluated = content_digest(file for file in (workdir.results, workdir.answers_marker) if file.is_file())
    inputs = json_digest([trained(settings, workdir).require(), evaluated])
    return Stage("export", marker, depends_on("export", settings), inputs)


def reported(settings: Settings, workdir: Workdir, inputs: Iterable[Path], processes: int) -> Stage:
    """The report of these files, by a number of processes."""
    files = [file if file.is_file() else None for file in inputs]
    digest = json_digest([file and content_digest([file]) for file in files])
    settings_of_report = depends_on("report", settings) | {"processes": processes}
    return Stage("report", workdir.report_marker, settings_of_report, digest)


def keep_settings(settings: Settings, workdir: Workdir, stage: str) -> None:
    """Writes the parts of the settings that this stage has worked with into config.json, and leaves the others there.

    Parts of stages that have not run yet are those of this command, so that the file by itself can continue the run; but where
    it is served, and with which token, concerns one command only. A headline leaves those of a training that was here
    before it.
    """
    try:
        kept = json.loads(workdir.config.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        kept = {}
    given = asdict(settings) | {"serve": asdict(ServeSettings())}
    parts = ("headline",) if stage == "headline" and workdir.train_marker.exists() else _KEPT[stage]
    written = given | kept | {part: given[part] for part in parts}
    if stage == "train" and settings.ecg_input.kind == "encoder":
        written["encoder"] = _with_used(written["encoder"], given["encoder"])
    write_whole(workdir.config, [json.dumps(written, indent=1).encode()])


def _with_used(kept: dict, given: dict) -> dict:
    """The encoder's settings with those that a training reads; the others are of the encoder's own training, if it was here."""
    if kept.get("kind") != given["kind"]:
        return given
    return kept | {name: given[name] for name in (*FEATURES_BY, "pretrained")}


def _given_tokenizer(file: str) -> str:
    """SHA-256 of the file `tokenizer.file`; "" where none is given. Raises TokenizerError where it is not there."""
    try:
        return file_digest(Path(file)) if file else ""
    except OSError as error:
        raise TokenizerError(f"tokenizer.file: {file}: {error.strerror}") from error


def _text_tokenizer(pretrained: str) -> str:
    """Of what a pretrained text tokenizer's files, or the metadata of GGUF, hold.

    Raises WeightsError where they are missing, before hours of work.
    """
    if not pretrained:
        return ""
    from ecgbyte_jax.model.hf import locate  # which imports JAX: it takes a second, and most preparation does without
    from ecgbyte_jax.model.weights.gguf_file import open_gguf, tokenizer_metadata

    folder = locate(pretrained)
    if folder.is_file():
        return json_digest(tokenizer_metadata(open_gguf(folder)))
    return content_digest(_text_files(folder))


def _text_files(folder: Path) -> list[Path]:
    return sorted({file for pattern in _TEXT_FILES for file in folder.glob(pattern) if file.is_file()})


def _encoder_folder(folder: str) -> tuple[str, ...]:
    """Of what an encoder's weights, config.json and tokenizer hold; () where there is none."""
    if not folder:
        return ()
    from ecgbyte_jax.train.restore import weights_digest

    return weights_digest(folder), content_digest(_text_files(Path(folder)))


def _weights(pretrained: str) -> tuple[str, ...]:
    """Of what a pretrained folder's weights and config.json hold, and whether the head is Flax's own."""
    if not pretrained:
        return ()
    from ecgbyte_jax.model.hf import has_flax_head, locate
    from ecgbyte_jax.train.restore import weights_digest

    folder = locate(pretrained)
    digests = weights_digest(pretrained), content_digest(folder.glob("config.json"))
    return (*digests, "own head") if has_flax_head(folder) else digests
