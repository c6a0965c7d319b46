"""Stage `attend`: where in the ECG and in the question the answers of chosen examples come from.

Axes: P tokens of a prompt, A of the answer, n of an ECG, T samples of a segment, w words of the question.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.inputs import shards
from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prompt import PromptIds, render
from ecgbyte_jax.model.attribution import attribute
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.report.attention import draw_attention
from ecgbyte_jax.report.folder import choose_examples, first_seed, read_evaluation, read_json
from ecgbyte_jax.report.save import save_picture
from ecgbyte_jax.run import prepare, train
from ecgbyte_jax.run.corpus import Paths
from ecgbyte_jax.run.logbook import banner, progress
from ecgbyte_jax.run.restore import restore_model
from ecgbyte_jax.run.sharding import make_mesh
from ecgbyte_jax.run.stages import outputs_digest

METHODS = ("attention", "rollout", "gradient_input")


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model with what its prompts are made of."""

    model: Decoder
    mesh: Mesh
    ids: PromptIds
    text_tokenizer: PreTrainedTokenizerFast
    ecg_tokenizer: ECGTokenizer
    max_length: int


@dataclass(frozen=True, eq=False)
class EcgView:
    """One ECG of a prompt.

    signal: float32 [12, T] in mV as its tokens restore it; seen: bool [12, T], False where the prompt cut it off; offsets:
    int32 [n], where each token begins in the flattened signal; tokens and samples: of each method, float32 [n] (those seen) and
    [12, T], which have the same sum.
    """

    signal: np.ndarray
    seen: np.ndarray
    offsets: np.ndarray
    tokens: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class View:
    """Where one answer comes from, of each method: the ECGs, the question's words float32 [w], and all tokens float32 [P]."""

    ecgs: tuple[EcgView, ...]
    words: tuple[str, ...]
    word_weights: dict[str, np.ndarray]
    prompt: dict[str, np.ndarray]
    log_prob: float


def open_trained(config: ConfigDict, workdir: Path, which: str) -> Trained:
    """Restores a checkpoint: "last", "best", a step, or an exported folder.

    Raises ConfigError or CheckpointError where none was trained here with these settings.
    """
    train.describe(config, workdir).require()
    prepared = prepare.load_prepared(config, workdir)
    mesh = make_mesh(**config.mesh.to_dict())
    with jax.set_mesh(mesh):
        model, _ = restore_model(config, workdir, prepared, mesh, which)
    ecg_tokenizer = ECGTokenizer.load(Paths.of(config, workdir).ecg_tokenizer)
    return Trained(model, mesh, prepared.ids, prepared.text_tokenizer, ecg_tokenizer, config.prompt.max_length)


def answered_by(results: dict) -> str:
    """The checkpoint, or the folder, whose answers an evaluation's results are about."""
    return str(results["checkpoint"] if results["checkpoint_step"] is None else results["checkpoint_step"])


def check_evaluated(workdir: Path, results: dict) -> None:
    """Raises ConfigError where an evaluation's answers are of a checkpoint, and another training left those that lie here."""
    inputs = (read_json(workdir / "eval" / "answers.json") or {}).get("inputs")
    if results["checkpoint_step"] is not None and inputs != outputs_digest(workdir / "checkpoints" / "stage.json"):
        raise ConfigError(f"{workdir / 'eval'}: the answers are not of the training in checkpoints/; run eval again")


def look(trained: Trained, ecgs: Sequence[np.ndarray], question: str, answer: np.ndarray, config: ConfigDict) -> View:
    """Attributes an answer (text ids [A], none for an empty one) to the ECGs (compact ids [n] each) and the question.

    Of an empty answer the end of the sequence is looked at. Several answer tokens count alike; of an answer that leaves the
    model's positions the beginning counts.
    """
    encoded = trained.text_tokenizer(question, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    question_ids = np.array(encoded.input_ids, np.int32)
    prompt, _ = render(trained.ids, ecgs, question_ids, None, trained.max_length)
    # A text may take more tokens than were generated, where those were no whole characters: then its beginning is looked at.
    room = trained.model.config.max_positions - len(prompt)
    answer = answer[:room] if len(answer) else np.array([trained.ids.eos])
    with jax.set_mesh(trained.mesh):
        found = attribute(trained.model, prompt, answer, config.attend.layers, config.attend.heads)
    weights = {"attention": found.attention.mean(axis=0), "rollout": found.rollout.mean(axis=0)}
    weights["gradient_input"] = found.gradient_input
    starts = np.flatnonzero(prompt == trained.ids.sig_start)[: len(ecgs)] + 1
    ends = np.flatnonzero(prompt == trained.ids.sig_end)[: len(ecgs)]
    views = tuple(
        _view(trained.ecg_tokenizer, ecg, {name: values[a:b] for name, values in weights.items()})
        for ecg, a, b in zip(ecgs, starts, ends)
    )
    words, word_of = split_words(question, encoded.offset_mapping)
    tail = {name: values[len(prompt) - len(question_ids) :] for name, values in weights.items()}
    word_weights = {name: np.bincount(word_of, values, len(words)).astype(np.float32) for name, values in tail.items()}
    return View(views, words, word_weights, weights, float(found.log_probs.sum()))


def _view(tokenizer: ECGTokenizer, ids: np.ndarray, weights: dict[str, np.ndarray]) -> EcgView:
    signal = tokenizer.decode(ids).astype(np.float32)
    offsets = tokenizer.bpe.offsets(ids)
    lengths = np.diff(np.append(offsets, signal.size))
    kept = len(weights["attention"])
    seen = np.arange(signal.size) < lengths[:kept].sum()
    samples = {name: spread(values, lengths, signal.shape) for name, values in weights.items()}
    return EcgView(signal, seen.reshape(signal.shape), offsets, weights, samples)


def spread(weights: np.ndarray, lengths: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of an ECG's first k tokens, each evenly over its samples, float32 of the signal's `shape`; 0 behind them.

    lengths int [n]: samples of each token, n >= k. The sum stays.
    """
    kept = len(weights)
    flat = np.zeros(int(np.prod(shape)), np.float32)
    samples = np.repeat(weights.astype(np.float64) / lengths[:kept], lengths[:kept])
    flat[: len(samples)] = samples
    return flat.reshape(shape)


def split_words(text: str, spans: Iterable[tuple[int, int]]) -> tuple[tuple[str, ...], np.ndarray]:
    """(the words between a text's spaces, int [tokens]: the word that each token's last character stands in or before)."""
    found = list(re.finditer(r"\S+", text))
    ends = np.array([match.end() for match in found])
    last = np.array([end for _, end in spans], int)
    return tuple(match.group() for match in found), np.minimum(np.searchsorted(ends, last), len(found) - 1)


def attend(config: ConfigDict, workdir: Path) -> None:
    """Writes attention/<example>.npz, .png and .svg for the evaluated examples `attend.examples`, or the report's ten."""
    results, rows = read_evaluation(workdir)
    chosen = choose_rows(rows, tuple(config.attend.examples), config.seed)
    check_evaluated(workdir, results)
    trained = open_trained(config, workdir, answered_by(results))
    written = {}
    for row, view in views(trained, config, workdir, results["split"], chosen):
        file = workdir / "attention" / f"{file_stem(row)}.npz"
        for number, ecg in enumerate(view.ecgs, start=1):
            title, label = f"{row['id']}: {row['question']} {row['answer']}", "attention a sample"
            figure = draw_attention(
                ecg.signal, ecg.samples["attention"], rate_of(config), seen=ecg.seen, label=label, title=title
            )
            for kind in ("png", "svg"):
                save_picture(figure, file.with_name(f"{file.stem}{'' if number == 1 else f'_{number}'}.{kind}"))
        written[row["id"]] = file
    banner("attention", written)


def views(trained: Trained, config: ConfigDict, workdir: Path, split: str, rows: list[dict]) -> Iterable[tuple[dict, View]]:
    """Looks at the answers of rows of generations.jsonl, one after the other, and writes attention/<example>.npz for each."""
    sequences = find_sequences(config, workdir, split, rows)
    with progress("attention", len(rows)) as report:
        for done, row in enumerate(rows, start=1):
            sequence = sequences[row["id"], row["segment"]]
            view = look(trained, sequence.ecgs, sequence.question, _answer_ids(trained, row), config)
            save_view(view, row, workdir / "attention" / f"{file_stem(row)}.npz")
            report(done)
            yield row, view


def _answer_ids(trained: Trained, row: dict) -> np.ndarray:
    """The answer's tokens without the end, int32 [A], as they were generated where the row tells them."""
    tokens = row.get("tokens")
    if not isinstance(tokens, list):
        tokens = trained.text_tokenizer(row["answer"], add_special_tokens=False, split_special_tokens=True).input_ids
    return np.array([token for token in tokens if token != trained.ids.eos], np.int32)


def rate_of(config: ConfigDict) -> float:
    """Hz of the segments; where each recording keeps its own, PTB-XL's two sets say it, and others are taken for 500 Hz."""
    return float(config.signal.target_rate or config.data.sample_rate)


def choose_rows(rows: list[dict], examples: tuple[str, ...], seed: int) -> list[dict]:
    """The rows of named examples, all segments of each, or the report's; raises ConfigError for an example not evaluated."""
    if not examples:
        return [chosen.row for chosen in choose_examples(rows, seed)]
    unknown = sorted(set(examples) - {row["id"] for row in rows})
    if unknown:
        raise ConfigError(f"attend.examples: {unknown} found, ids that stand in eval/generations.jsonl wanted")
    return [row for row in first_seed(rows) if row["id"] in examples]


def find_sequences(config: ConfigDict, workdir: Path, split: str, rows: list[dict]) -> dict[tuple[str, int], shards.Sequence]:
    """The shards' sequences of evaluated rows; raises ConfigError where one is not there."""
    folder = Paths.of(config, workdir).shards
    wanted = {(row["id"], row["segment"]) for row in rows}
    found: dict[tuple[str, int], shards.Sequence] = {}
    manifest = shards.read_manifest(folder)
    if split not in manifest.splits:
        raise ConfigError(f"eval/results.json: split {split!r} found, one of {list(manifest.splits)} wanted; run eval again")
    for sequence in open_split(folder, manifest, split):
        if (sequence.id, sequence.segment) in wanted:
            found[sequence.id, sequence.segment] = sequence
            if len(found) == len(wanted):
                return found
    raise ConfigError(f"{folder}: {sorted(wanted - set(found))[:3]} of eval/generations.jsonl are not there; run eval again")


def file_stem(row: dict) -> str:
    """A file's name for an example's segment: its id with what a file system may not take replaced, and then a digest."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", row["id"]).lstrip(".")[:80]
    digest = "" if plain == row["id"] else "-" + hashlib.sha256(row["id"].encode()).hexdigest()[:6]
    return f"{plain}{digest}.s{row['segment']}"


def save_view(view: View, row: dict, path: Path) -> None:
    """One NPZ file; of a second ECG the names end in `_2`.

    attention, rollout, gradient_input float32 [12, T]; seen bool [12, T]; signal float32 [12, T] in mV; offsets int32 [n];
    tokens_<method> float32 [n seen]; words [w] and words_<method> float32 [w]; prompt_<method> float32 [P]; leads; about: the
    example as JSON.
    """
    arrays: dict[str, np.ndarray] = {}
    for number, ecg in enumerate(view.ecgs, start=1):
        end = "" if number == 1 else f"_{number}"
        parts = {"signal": ecg.signal, "seen": ecg.seen, "offsets": ecg.offsets, **ecg.samples}
        parts |= {f"tokens_{name}": values for name, values in ecg.tokens.items()}
        arrays |= {name + end: values for name, values in parts.items()}
    arrays["words"], arrays["leads"] = np.array(view.words), np.array(LEADS)
    arrays |= {f"words_{name}": values for name, values in view.word_weights.items()}
    arrays |= {f"prompt_{name}": values for name, values in view.prompt.items()}
    arrays["about"] = np.array(json.dumps({name: row[name] for name in ("id", "segment", "question", "answer")}))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path, [buffer.getvalue()])
