"""The tokenizers published with ECG-Byte: their pickles, read without executing them, and their ids.

A pickle holds (vocab, merges): dict id -> string, and a list of (bytes of the new token, its id). Ids 0..255 are single
bytes, of which only 97..122, the letters, occur in an ECG; 256 + k is merge k. Which two tokens a merge joined is not
stored, and a string can be split in several ways.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE, parse
from ecgbyte_jax.errors import TokenizerError

_FIRST_LETTER, _FIRST_MERGE = ord("a"), 256
# What the unpickler raises for files that are not pickles or are damaged.
_UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)


def published_id(ids: np.ndarray) -> np.ndarray:
    """Maps compact ids to published ones: 97 + letter ('a' is 97), 256 + merge."""
    ids = np.asarray(ids)
    return np.where(ids < ALPHABET_SIZE, ids + _FIRST_LETTER, ids - ALPHABET_SIZE + _FIRST_MERGE)


def compact_id(published: np.ndarray) -> np.ndarray:
    """Maps published ids to compact ones; raises TokenizerError for a byte that is not a letter a to z."""
    published = np.asarray(published)
    is_letter = (published >= _FIRST_LETTER) & (published < _FIRST_LETTER + ALPHABET_SIZE)
    wrong = published[~is_letter & (published < _FIRST_MERGE)]
    if wrong.size:
        raise TokenizerError(f"published id {wrong[0]} found, 97 to 122 or at least 256 expected")
    return np.where(is_letter, published - _FIRST_LETTER, published - _FIRST_MERGE + ALPHABET_SIZE)


def ecg_names(vocab_size: int) -> list[str]:
    """The names of the ECG tokens among a text tokenizer's, by compact id: `signal_<published id>`."""
    return [f"signal_{id}" for id in published_id(np.arange(vocab_size))]


def ecg_text_ids(text_tokenizer: Any, vocab_size: int) -> np.ndarray:
    """Returns the text tokenizer's id of every ECG token, int32 [vocab_size]; raises TokenizerError if some are missing."""
    ids = text_tokenizer.convert_tokens_to_ids(ecg_names(vocab_size))
    if None in ids or text_tokenizer.unk_token_id in ids:
        raise TokenizerError("the text tokenizer lacks some of the ECG tokens; run --stage=prepare again")
    return np.array(ids, np.int32)


def read_published(path: str | Path) -> list[np.ndarray]:
    """Reads the tokens of a published pickle by compact id, uint8 [n] each.

    Raises TokenizerError, naming the file, for a pickle that needs anything but dicts, lists, tuples, ints and strings, or
    does not hold a published tokenizer.
    """
    try:
        with open(path, "rb") as file:
            content = _PlainUnpickler(file).load()
    except _UNREADABLE as error:
        raise TokenizerError(f"{path}: not readable as a pickle, or truncated: {error!r}") from error
    except (OSError, TokenizerError) as error:
        raise TokenizerError(f"{path}: {error}") from error
    return _check(content, path)


class _PlainUnpickler(pickle.Unpickler):
    """Refuses to look up classes and functions; plain containers, ints and strings need none."""

    def find_class(self, module: str, name: str) -> None:
        """Raises TokenizerError."""
        raise TokenizerError(f"the pickle needs {module}.{name}; only dict, list, tuple, int and str are allowed")


def _check(content: Any, path: str | Path) -> list[np.ndarray]:
    """The symbols of every token by compact id."""
    try:
        vocab, merges = content
        spelled = {merge: "".join(map(chr, bytes_)) for bytes_, merge in merges}
        numbers = published_id(np.arange(ALPHABET_SIZE + len(merges))).tolist()
        strings = [vocab[number] for number in numbers]
        rest = max(vocab) - max(numbers)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise TokenizerError(f"{path}: not a published tokenizer, (vocab, merges) expected: {error!r}") from error
    if rest > 0:
        raise TokenizerError(f"{path}: token {max(vocab)} found, {max(numbers)} expected as the last of {len(merges)} merges")
    tokens = []
    for number, string in zip(numbers, strings):
        try:
            tokens.append(parse(string))
        except TokenizerError as error:
            raise TokenizerError(f"{path}: token {number} is {error}") from error
        if string != (chr(number) if number < _FIRST_MERGE else spelled.get(number)):
            raise TokenizerError(f"{path}: token {number} is {string!r} in the vocabulary, a different string in the merges")
    return tokens
