"""The one sequence that a model sees: [pad...] bos <sig_start> ECG <sig_end> question answer eos.

Axes: T places of a row (`max_length`), A answer tokens with the eos.
"""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from ecgbyte_jax.errors import ExampleError
from ecgbyte_jax.inputs.text import SIG_END, SIG_START, ecg_text_ids

# bos, <sig_start>, <sig_end> and eos.
_MARKERS = 4


@dataclass(frozen=True, eq=False)
class PromptIds:
    """The ids that a prompt is made of beside the texts; ecg int32 [ECG vocabulary] maps compact ids to text ids."""

    bos: int
    eos: int
    pad: int
    sig_start: int
    sig_end: int
    ecg: np.ndarray

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, ecg_vocab_size: int) -> "PromptIds":
        """Those of a tokenizer that `text.add_ecg_tokens` has extended."""
        start, end = tokenizer.convert_tokens_to_ids([SIG_START, SIG_END])
        ecg = ecg_text_ids(tokenizer, ecg_vocab_size)
        return cls(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, start, end, ecg)


def ecg_room(question: np.ndarray, answer: np.ndarray, max_length: int) -> int:
    """How many ECG tokens fit beside the texts; raises ExampleError where not even one does."""
    room = max_length - _MARKERS - len(question) - len(answer)
    if room < 1:
        raise ExampleError(
            f"question and answer have {len(question)} and {len(answer)} tokens: no room for an ECG in "
            f"prompt.max_length {max_length}"
        )
    return room


def render(
    ids: PromptIds, ecg: np.ndarray, question: np.ndarray, answer: np.ndarray | None, max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(token ids int32 [n], loss mask bool [n]) of one sequence, unpadded, n <= max_length.

    ecg: compact ids; the ECG is cut at its end where it does not fit. The loss falls on the answer and the eos.
    answer None gives the prompt alone, for generation.
    """
    tail = np.empty(0, np.int32) if answer is None else np.append(answer, ids.eos)
    room = ecg_room(question, tail[:-1], max_length)
    head = np.concatenate([[ids.bos, ids.sig_start], ids.ecg[ecg[:room]], [ids.sig_end], question])
    sequence = np.concatenate([head, tail]).astype(np.int32)
    return sequence, np.arange(len(sequence)) >= len(head)


def pad_left(sequence: np.ndarray, loss_mask: np.ndarray, max_length: int, pad: int) -> dict[str, np.ndarray]:
    """One row of a batch: input_ids, positions int32 [T], attention_mask, loss_mask bool [T]; positions count tokens."""
    empty = max_length - len(sequence)
    return {
        "input_ids": np.pad(sequence, (empty, 0), constant_values=pad),
        "attention_mask": np.arange(max_length) >= empty,
        "positions": np.maximum(np.arange(max_length, dtype=np.int32) - empty, 0),
        "loss_mask": np.pad(loss_mask, (empty, 0)),
    }
