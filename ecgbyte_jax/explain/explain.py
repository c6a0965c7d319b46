"""The explanation of an answer: from a trained model's attributions to views of its ECGs and its question.

Axes: P tokens of a prompt, A of the answer, n of an ECG, N vectors of one, T features of which they are made, L samples.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import numpy as np
from flax import nnx

from ecgbyte_jax.errors import ExampleError
from ecgbyte_jax.evaluate.questions import find_sequences
from ecgbyte_jax.explain.views import EcgView, View, file_stem, save_view, split_words, spread
from ecgbyte_jax.inputs.prompt import Dialogue, render_prompt
from ecgbyte_jax.model.attribution import attribute
from ecgbyte_jax.run.console import progress
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import AttendSettings, Settings
from ecgbyte_jax.train.restore import Trained


def look(
    trained: Trained, ecgs: Sequence[np.ndarray], turns: Sequence[tuple[str, str]], answer: np.ndarray, attend: AttendSettings
) -> View:
    """Attributes an answer (text ids [A], with or without its end token) to the ECGs and the question.

    ecgs: what the model reads of each, see `PromptIds.spell`.

    turns: the last one's question is answered, those before it are its history.

    Several answer tokens count alike. For an empty answer the end of the sequence is attributed, and for an answer that exceeds
    the model's positions its beginning.
    """
    return look_by_word(trained, ecgs, turns, answer, (), attend)[0]


def look_by_word(
    trained: Trained,
    ecgs: Sequence[np.ndarray],
    turns: Sequence[tuple[str, str]],
    answer: np.ndarray,
    words: Sequence[tuple[int, int]],
    attend: AttendSettings,
) -> tuple[View, list[list[np.ndarray]]]:
    """As `look`; and for each of the answer's words, its first token and the one after its last, the attention of it alone.

    That is float32 [12, L] for each ECG; zeros for a word that exceeds the model's positions.
    """
    dialogue = Dialogue(len(ecgs), tuple(turns))
    (text,) = trained.form.prompts([dialogue])
    if isinstance(text, ExampleError):
        raise text
    prompt = render_prompt(trained.ids, text, ecgs, trained.max_length)
    # A text may take more tokens than were generated, where those were no whole characters.
    room = trained.model.config.max_positions - len(prompt)
    answer = answer[~np.isin(answer, trained.form.stops)][:room]
    answer = answer if len(answer) else np.array(trained.form.stops[:1])
    with jax.set_mesh(trained.mesh):
        signals = np.stack(ecgs).astype(np.float32) if trained.ids.vectors else None
        attribution = attribute(trained.model, prompt, answer, attend.layers, attend.heads, signals)
    weights = {"attention": attribution.attention.mean(axis=0), "rollout": attribution.rollout.mean(axis=0)}
    weights["gradient_input"] = attribution.gradient_input
    starts = np.flatnonzero(prompt == trained.ids.sig_start)[: len(ecgs)] + 1
    ends = np.flatnonzero(prompt == trained.ids.sig_end)[: len(ecgs)]

    def ecg_views(weights: dict[str, np.ndarray]) -> tuple[EcgView, ...]:
        view_of = _view_of_signal if trained.ids.vectors else _view
        spans = zip(ecgs, starts, ends)
        return tuple(
            view_of(trained, ecg, {name: row[start:end] for name, row in weights.items()}) for ecg, start, end in spans
        )

    parts = [attribution.attention[first:last] for first, last in words]
    summed = [part.sum(axis=0) / max(len(part), 1) for part in parts]
    by_word = [[ecg.samples["attention"] for ecg in ecg_views({"attention": weight})] for weight in summed]
    question, places, offsets = trained.form.locate(dialogue)
    words_asked, word_of = split_words(question, offsets)
    places = places + len(prompt) - len(text)  # the ECGs' tokens are in front of the question
    word_weights = {
        name: np.bincount(word_of, values[places], len(words_asked)).astype(np.float32) for name, values in weights.items()
    }
    return View(ecg_views(weights), words_asked, word_weights, weights, float(attribution.log_probs.sum())), by_word


def _view(trained: Trained, ids: np.ndarray, weights: dict[str, np.ndarray]) -> EcgView:
    signal = trained.ecg_tokenizer.decode(ids).astype(np.float32)
    offsets = trained.ecg_tokenizer.bpe.offsets(ids)
    lengths = np.diff(np.append(offsets, signal.size))
    kept = len(weights["attention"])
    seen = np.arange(signal.size) < lengths[:kept].sum()
    samples = {name: spread(values, lengths, signal.shape) for name, values in weights.items()}
    return EcgView(signal, seen.reshape(signal.shape), offsets, weights, samples)


def _view_of_signal(trained: Trained, signal: np.ndarray, weights: dict[str, np.ndarray]) -> EcgView:
    """weights: of its vectors, which are spread over what each is made of."""
    places, samples, about = trained.places, {}, "One vector of all samples alike, so no place in it has a weight of its own."
    if places is not None:
        shares = np.asarray(_shares(*nnx.split(trained.model.ecg_input), signal))  # [N, T]
        samples, about = {name: places.spread(values @ shares) for name, values in weights.items()}, places.about
    return EcgView(signal, np.ones(signal.shape, bool), np.empty(0, np.int32), weights, samples, about)


@partial(jax.jit, static_argnums=0)
def _shares(graphdef: nnx.GraphDef, state: nnx.State, signal: jax.Array) -> jax.Array:
    """Of how much of each feature a vector of the signal [12, L] is made, [N, T]."""
    return nnx.merge(graphdef, state).shares(signal[None])[0]


def views(
    trained: Trained, attend: AttendSettings, workdir: Workdir, split: str, rows: list[dict]
) -> Iterable[tuple[dict, View]]:
    """Attributes the answers of rows of generations one by one, and writes `Workdir.attention`/<example>.npz for each."""
    sequences = find_sequences(workdir, split, rows, signals=trained.ids.vectors > 0)
    with progress("attention", len(rows)) as report:
        for done, row in enumerate(rows, start=1):
            sequence = sequences[row["id"], row["segment"]]
            turns = (*row.get("history", ()), (sequence.question, ""))
            view = look(trained, sequence.ecgs, turns, _answer_ids(trained, row), attend)
            save_view(view, row, workdir.attention / f"{file_stem(row)}.npz")
            report(done)
            yield row, view


def _answer_ids(trained: Trained, row: dict) -> np.ndarray:
    """The answer's tokens int32 [A]: those that were generated, where the row has them."""
    tokens = row.get("tokens")
    if not isinstance(tokens, list):
        tokens = trained.text_tokenizer(row["answer"], add_special_tokens=False, split_special_tokens=True).input_ids
    return np.array(tokens, np.int32)


def rate_of(settings: Settings) -> float:
    """Hz of the segments; where each recording keeps its own rate, that of PTB-XL's set, whatever the corpus."""
    return float(settings.signal.target_rate or settings.data.sample_rate)
