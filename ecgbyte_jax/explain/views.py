"""Views of an answer as plain arrays: the weight of every sample and word, and the file that holds them.

Axes: T samples of a segment, n tokens of an ECG, k of them in the prompt, w words of the question, P tokens of the prompt.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.files import write_whole

METHODS = ("attention", "rollout", "gradient_input")


@dataclass(frozen=True, eq=False)
class EcgView:
    """One ECG of a prompt.

    signal: float32 [12, T] in mV as its tokens restore it; seen: bool [12, T], False where the prompt cut it off; offsets:
    int32 [n], where each token begins in the flattened signal; tokens and samples: of each method, float32 [k] and [12, T],
    which have the same sum.

    Of a model that reads vectors, signal is what they were made of, all of it is seen, tokens are the vectors, offsets is
    empty, and so is samples where one vector is of all samples alike. about: what the vectors stand for, "" for tokens.
    """

    signal: np.ndarray
    seen: np.ndarray
    offsets: np.ndarray
    tokens: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]
    about: str = ""


@dataclass(frozen=True, eq=False)
class View:
    """Where one answer comes from, by each method: the ECGs, the question's words float32 [w], and all tokens float32 [P]."""

    ecgs: tuple[EcgView, ...]
    words: tuple[str, ...]
    word_weights: dict[str, np.ndarray]
    prompt: dict[str, np.ndarray]
    log_prob: float


def spread(weights: np.ndarray, lengths: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The weights [k] of an ECG's first tokens, each spread evenly over its samples, float32 of the signal's `shape`.

    lengths int [n]: samples of each token. The sum stays the same; samples after those tokens get 0.
    """
    kept = len(weights)
    flat = np.zeros(int(np.prod(shape)), np.float32)
    samples = np.repeat(weights.astype(np.float64) / lengths[:kept], lengths[:kept])
    flat[: len(samples)] = samples
    return flat.reshape(shape)


def split_words(text: str, spans: Iterable[tuple[int, int]]) -> tuple[tuple[str, ...], np.ndarray]:
    """(the words between a text's spaces, int [tokens]: the word that holds, or follows, each token's last character)."""
    words = list(re.finditer(r"\S+", text))
    ends = np.array([word.end() for word in words])
    last = np.array([end for _, end in spans], int)
    return tuple(word.group() for word in words), np.minimum(np.searchsorted(ends, last), len(words) - 1)


def file_stem(row: dict) -> str:
    """A file name for an example's segment: its id, and a digest of it where characters had to be replaced."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", row["id"]).lstrip(".")[:80]
    digest = "" if plain == row["id"] else "-" + hashlib.sha256(row["id"].encode()).hexdigest()[:6]
    return f"{plain}{digest}.s{row['segment']}"


def save_view(view: View, row: dict, path: Path) -> None:
    """Writes one NPZ file; the names for a second ECG end in `_2`.

    attention, rollout, gradient_input float32 [12, T]; seen bool [12, T]; signal float32 [12, T] in mV; offsets int32 [n];
    tokens_<method> float32 [k], of vectors where the model reads these; words [w] and words_<method> float32 [w];
    prompt_<method> float32 [P]; leads; about: the example as JSON.
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
