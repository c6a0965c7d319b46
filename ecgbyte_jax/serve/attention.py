"""Where an answer comes from, as the API tells it: the attention of the answer, and of each of its words, over the ECGs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ecgbyte_jax.asking.subject import Subject
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.errors import ConfigError, ExampleError
from ecgbyte_jax.explain.explain import look_by_word
from ecgbyte_jax.serve.answering import Answerer
from ecgbyte_jax.serve.errors import ApiError

_ABOUT = (
    "The attention of the answer's tokens to the ECG's, averaged over the model's layers and heads and spread evenly over the "
    "samples of each token; 1 is the most in this answer or word. It shows where the model looked, not why it answers so."
)
_DECIMALS = 3
_BYTES = 3  # of the sign for half a character, a token's text by itself; each may take a token


def attention_of(
    answerer: Answerer, subject: Subject, turns: Sequence[tuple[str, str]], answer: str, segment: int
) -> dict[str, Any]:
    """The response to a request; raises ApiError for an answer that is longer than any here, and for what has no attention."""
    trained, ecgs = answerer.trained, subject.segments[segment]
    if len(turns) > 1 and not answerer.familiar.conversations:
        turns = turns[-1:]
    if trained.ids.vectors and trained.places is None:
        raise ApiError(
            400, "this model reads an ECG as one vector of all samples alike, so no place in it has a weight of its own",
            "recordings", "no_attention",
        )  # fmt: skip
    tokens = trained.text_tokenizer(answer, add_special_tokens=False, split_special_tokens=True).input_ids
    most = _BYTES * answerer.settings.eval.max_new_tokens
    if len(tokens) > most:  # seconds for each thousand
        raise ApiError(400, f"answer: {len(tokens)} tokens found, {most} at most expected of this run", "answer")
    words = answerer.words(tokens)
    spans = [(word["start_token"], word["end_token"]) for word in words]
    try:
        view, by_word = look_by_word(trained, ecgs, turns, np.array(tokens, np.int32), spans, answerer.settings.attend)
    except (ExampleError, ConfigError) as error:
        raise ApiError(400, str(error), "question", "context_length_exceeded") from error
    whole = [ecg.samples["attention"] for ecg in view.ecgs]
    start = segment * subject.seconds
    cut = {
        str(number): {lead: int(row.sum()) for lead, row in zip(LEADS, ecg.seen)}
        for number, ecg in enumerate(view.ecgs)
        if not ecg.seen.all()
    }
    return {
        "words": words,
        "leads": list(LEADS),
        "rate_hz": subject.rate,
        "segment": {"start_s": start, "end_s": start + subject.seconds},
        "answer": _spell(whole),
        "by_word": [_spell(samples) for samples in by_word],
        "about": view.ecgs[0].about or _ABOUT,
        **({"seen": cut} if cut else {}),
    }


def _spell(ecgs: Sequence[np.ndarray]) -> dict[str, dict[str, list[float]]]:
    """By ECG and lead, relative to the largest weight; ecgs: float32 [12, T] each."""
    most = max(float(samples.max()) for samples in ecgs) or 1.0
    return {
        str(number): {lead: np.round(row / most, _DECIMALS).tolist() for lead, row in zip(LEADS, samples.clip(0))}
        for number, samples in enumerate(ecgs)
    }
