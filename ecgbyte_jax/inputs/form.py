"""The form of a run's prompts, plain or chat, and how long dialogues are made to fit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from tokenizers import Tokenizer

from ecgbyte_jax.errors import ExampleError
from ecgbyte_jax.inputs.chat import Chat
from ecgbyte_jax.inputs.plain import Plain
from ecgbyte_jax.inputs.prompt import Dialogue, PromptIds, Text, ecg_room
from ecgbyte_jax.inputs.text import load_encoder, load_run_tokenizer

Form = Plain | Chat
Encoded = TypeVar("Encoded", Text, np.ndarray)


def open_form(format: str, system: str, folder: Path, ids: PromptIds, digest: str = "") -> Form:
    """The form "plain" or "chat" with the text tokenizer saved in `folder`; what was loaded for a digest is kept for it.

    Raises TokenizerError where the folder's chat template cannot be used.
    """
    return _chat(folder, system, digest) if format == "chat" else Plain.of(_encoder(folder, digest), ids)


@lru_cache(maxsize=1)
def _chat(folder: Path, system: str, digest: str) -> Chat:
    return Chat.of(load_run_tokenizer(folder), system)


@lru_cache(maxsize=1)
def _encoder(folder: Path, digest: str) -> Tokenizer:
    return load_encoder(folder / "tokenizer.json")


def fit(
    encode: Callable[[list[Dialogue]], Sequence[Encoded | ExampleError]],
    dialogues: Sequence[Dialogue],
    max_length: int,
    fewest: int = 1,
) -> list[tuple[Encoded | ExampleError, int]]:
    """Encodes dialogues; where one leaves no room for `fewest` tokens of each of its ECGs, its oldest turns are left out.

    Returns for each what `encode` returned, or ExampleError where even the last turn is too long, and how many turns were left
    out.
    """
    fitting: list[tuple[Encoded | ExampleError, int]] = []
    for dialogue, text in zip(dialogues, encode(list(dialogues))):
        left_out, most = 0, len(dialogue.turns) - 1
        if most and _too_long(text, dialogue, max_length, fewest):
            left_out = 1
            while left_out < most:  # between the least number that may do and one that does, or all but the last turn
                middle = (left_out + most) // 2
                (shorter,) = encode([_later(dialogue, middle)])
                left_out, most = (middle + 1, most) if _too_long(shorter, dialogue, max_length, fewest) else (left_out, middle)
            (text,) = encode([_later(dialogue, left_out)])
        fitting.append((_too_long(text, dialogue, max_length, fewest) or text, left_out))
    return fitting


def _later(dialogue: Dialogue, left_out: int) -> Dialogue:
    return replace(dialogue, turns=dialogue.turns[left_out:])


def _too_long(text: Text | np.ndarray | ExampleError, dialogue: Dialogue, max_length: int, fewest: int) -> ExampleError | None:
    if isinstance(text, ExampleError):
        return None
    try:
        ecg_room(len(text), max_length, dialogue.ecgs, fewest)
    except ExampleError as error:
        return error
    return None
