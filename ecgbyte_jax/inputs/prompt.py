"""The sequence that a model sees: [pad...] bos <sig_start> ECG <sig_end> question answer eos.

A question that compares two ECGs follows both: bos <sig_start> ECG <sig_end> <sig_start> ECG <sig_end> question ...
Where the text tokenizer has no bos token (Qwen), the sequence begins with <sig_start>.

Axes: T places per row, A answer tokens per row including eos.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgbyte_jax.ecg.published import ecg_text_ids
from ecgbyte_jax.errors import ExampleError
from ecgbyte_jax.inputs.text import SIG_END, SIG_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MARKERS = 2  # <sig_start> and <sig_end> of each ECG


@dataclass(frozen=True, eq=False)
class PromptIds:
    """The ids of a prompt other than its texts'; ecg int32 [ECG vocabulary] maps compact ids to text ids; bos may be None."""

    bos: int | None
    eos: int
    pad: int
    sig_start: int
    sig_end: int
    ecg: np.ndarray

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast", ecg_vocab_size: int) -> "PromptIds":
        """Looks up the ids in a tokenizer with ECG tokens (`text.add_ecg_tokens`); raises TokenizerError without them."""
        markers: Any = tokenizer.convert_tokens_to_ids([SIG_START, SIG_END])
        start, end = markers
        ecg = ecg_text_ids(tokenizer, ecg_vocab_size)
        return cls(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, start, end, ecg)

    @property
    def ends(self) -> int:
        """The number of tokens at the ends of a sequence: eos, and bos where there is one."""
        return 1 if self.bos is None else 2


def ecg_room(question: np.ndarray, answer: np.ndarray, max_length: int, ends: int, ecgs: int) -> int:
    """Returns how many tokens of all ECGs fit beside the texts; raises ExampleError if not even one of each does.

    ends: as in `PromptIds`.
    """
    room = max_length - ends - _MARKERS * ecgs - len(question) - len(answer)
    if room < ecgs:
        raise ExampleError(
            f"question and answer have {len(question)} and {len(answer)} tokens: no room for {ecgs} ECG in "
            f"prompt.max_length {max_length}"
        )
    return room


def share_room(room: int, lengths: Sequence[int]) -> list[int]:
    """Returns how many tokens each ECG keeps: equal shares, with what shorter ones leave going to longer ones."""
    kept = [0] * len(lengths)
    for left, place in zip(range(len(lengths), 0, -1), np.argsort(lengths, kind="stable")):
        kept[place] = min(int(lengths[place]), room // left)
        room -= kept[place]
    return kept


def render(
    ids: PromptIds, ecgs: Sequence[np.ndarray], question: np.ndarray, answer: np.ndarray | None, max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Renders one sequence, unpadded: (token ids int32 [n], loss mask bool [n]), n <= max_length.

    ecgs: compact ids of each ECG, truncated at the end if they do not fit. The loss covers the answer and eos. answer None
    renders only the prompt, for generation. Raises ExampleError if the texts leave no room.
    """
    tail = np.empty(0, np.int32) if answer is None else np.append(answer, ids.eos)
    room = ecg_room(question, tail[:-1], max_length, ids.ends, len(ecgs))
    head = [] if ids.bos is None else [[ids.bos]]
    for ecg, kept in zip(ecgs, share_room(room, [len(ecg) for ecg in ecgs])):
        head += [[ids.sig_start], ids.ecg[ecg[:kept]], [ids.sig_end]]
    sequence = np.concatenate([*head, question, tail]).astype(np.int32)
    return sequence, np.arange(len(sequence)) >= len(sequence) - len(tail)


def lay_out(
    rendered: Sequence[tuple[np.ndarray, np.ndarray]], length: int, answer_tokens: int, pad: int
) -> dict[str, np.ndarray]:
    """Lays out one or more examples from `render` as one row of a batch, padded on the left.

    Returns input_ids, positions int32 [T]; segment_ids int32 [T], 0 on padding, 1, 2, ... on the examples, each with its own
    positions from 0; and the fields of `supervise`.
    """
    ids = np.concatenate([ids for ids, _ in rendered])
    empty, lengths = length - len(ids), [len(ids) for ids, _ in rendered]
    row = {
        "input_ids": ids,
        "positions": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        "segment_ids": np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths),
        "loss_mask": np.concatenate([mask for _, mask in rendered]),
    }
    fill = {"input_ids": pad}
    row = {name: np.pad(values, (empty, 0), constant_values=fill.get(name, 0)) for name, values in row.items()}
    return row | supervise(row["input_ids"], row.pop("loss_mask"), answer_tokens)


def supervise(input_ids: np.ndarray, loss_mask: np.ndarray, answer_tokens: int) -> dict[str, np.ndarray]:
    """Returns where a row [T] is supervised, so that logits are computed only there.

    answer_places int32 [A]: the places whose next token belongs to an answer; targets int32 [A]: that token; answer_mask
    bool [A]: False on padding.
    """
    (places,) = np.nonzero(loss_mask)
    fill = (0, answer_tokens - len(places))
    return {
        "answer_places": np.pad(places - 1, fill).astype(np.int32),
        "targets": np.pad(input_ids[places], fill).astype(np.int32),
        "answer_mask": np.arange(answer_tokens) < len(places),
    }
