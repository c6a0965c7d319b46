"""The sequence that a model sees: texts' ids with the ECGs' tokens between their <sig_start> and <sig_end>.

A model that reads vectors of an ECG in place of its tokens is given as many ids of a token of their own, over which these
are laid, and the ECG itself.

Plainly [pad...] bos <sig_start> ECG <sig_end> question answer eos (`inputs/plain.py`), or as a chat (`inputs/chat.py`). A
question that compares two ECGs follows both: <sig_start> ECG <sig_end> <sig_start> ECG <sig_end> question ...

Axes: T places per row, A answer tokens per row including the end of each answer, n ids of a text without its ECGs' tokens, L
samples of an ECG.
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


@dataclass(frozen=True, eq=False)
class PromptIds:
    """The ids of a prompt other than its texts'; ecg int32 [ECG vocabulary] maps compact ids to text ids; bos may be None.

    vectors: how many a model reads in place of an ECG's tokens; 0: it reads the tokens.
    """

    bos: int | None
    eos: int
    pad: int
    sig_start: int
    sig_end: int
    ecg: np.ndarray
    vectors: int = 0

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast", ecg_vocab_size: int, vectors: int = 0) -> "PromptIds":
        """Looks up the ids in a tokenizer with ECG tokens (`text.add_ecg_tokens`); raises TokenizerError without them."""
        markers: Any = tokenizer.convert_tokens_to_ids([SIG_START, SIG_END])
        start, end = markers
        ecg = ecg_text_ids(tokenizer, ecg_vocab_size)
        return cls(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, start, end, ecg, vectors)

    @property
    def place(self) -> int:
        """The id over which vectors are laid: the first of the ECG tokens', which a tokenizer may have in any order."""
        return int(self.ecg.min())

    def spell(self, ecg: np.ndarray) -> np.ndarray:
        """The ids int32 [m] of an ECG: those of its compact ids int32 [m], or `vectors` of a signal float32 [12, L], L > 0."""
        if not self.vectors:
            return self.ecg[ecg]
        return np.full(self.vectors if ecg.shape[-1] else 0, self.place, np.int32)

    def fewest(self, ecgs: Sequence[np.ndarray]) -> int:
        """How many ids of each of these ECGs a prompt must have room for: one, for tokens are cut, or its vectors."""
        return len(self.spell(ecgs[0])) if self.vectors else 1


@dataclass(frozen=True)
class Dialogue:
    """Questions about the same ECGs, each with its answer; that of the last question may still be unknown, ""."""

    ecgs: int
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Text:
    """A dialogue's ids int32 [n], with <sig_start> <sig_end> where each ECG's tokens belong.

    answers: bool [n], where the loss is taken; prompt: how many of the ids a model is given to answer the last question.
    """

    ids: np.ndarray
    answers: np.ndarray
    prompt: int

    def __len__(self) -> int:
        return len(self.ids)


def ecg_room(text: int, max_length: int, ecgs: int, fewest: int = 1) -> int:
    """Returns how many tokens of all ECGs fit beside `text` other ones; raises ExampleError if not `fewest` of each do."""
    room = max_length - text
    if room < fewest * ecgs:
        of = f" of ecg_input.vectors {fewest}" if fewest > 1 else ""
        raise ExampleError(f"its texts take {text} of prompt.max_length {max_length} tokens: no room for {ecgs} ECG{of}")
    return room


def share_room(room: int, lengths: Sequence[int]) -> list[int]:
    """Returns how many tokens each ECG keeps: equal shares, with what shorter ones leave going to longer ones."""
    kept = [0] * len(lengths)
    for left, place in zip(range(len(lengths), 0, -1), np.argsort(lengths, kind="stable")):
        kept[place] = min(int(lengths[place]), room // left)
        room -= kept[place]
    return kept


def render(ids: PromptIds, text: Text, ecgs: Sequence[np.ndarray], max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts the ECGs' tokens into their text, unpadded: (token ids int32 [m], loss mask bool [m]), m <= max_length.

    ecgs: see `PromptIds.spell`; tokens are truncated at the end if they do not fit. Raises ExampleError if the text leaves no
    room, or too little for vectors.
    """
    (places,) = np.nonzero(text.ids == ids.sig_end)
    if len(places) != len(ecgs):
        raise ExampleError(f"a text for {len(places)} ECG found, for {len(ecgs)} expected; run --stage=prepare again")
    spelt, room = [ids.spell(ecg) for ecg in ecgs], ecg_room(len(text), max_length, len(ecgs), ids.fewest(ecgs))
    kept = share_room(room, [len(ecg) for ecg in spelt])
    tokens = [ecg[:count] for ecg, count in zip(spelt, kept)]
    where = np.repeat(places, kept)
    return np.insert(text.ids, where, np.concatenate(tokens)).astype(np.int32), np.insert(text.answers, where, False)


def render_prompt(ids: PromptIds, prompt: np.ndarray, ecgs: Sequence[np.ndarray], max_length: int) -> np.ndarray:
    """Puts the ECGs' tokens into the ids [n] of a prompt, int32 [m], m < max_length: a place is left for the answer."""
    return render(ids, Text(prompt, np.zeros(len(prompt), bool), len(prompt)), ecgs, max_length - 1)[0]


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
