"""The tokenizers that ECG-Byte publishes: their pickles, read without running anything in them, and their ids.

A pickle holds (vocab, merges): dict id -> string, and a list of (bytes of the new token, its id). Ids 0..255 are single
bytes, of which only 97..122, the letters, can stand in an ECG; 256 + k is merge k. Which two tokens a merge joined is not
said, and a string can be split in several ways.
"""

import pickle
from pathlib import Path

import numpy as np

from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE, parse
from ecgbyte_jax.errors import TokenizerError

_FIRST_LETTER, _FIRST_MERGE = ord("a"), 256
# What a file that is no pickle, or a damaged one, makes the unpickler raise.
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
    """The published ids of compact ones: 97 + letter ('a' is 97), 256 + merge."""
    ids = np.asarray(ids)
    return np.where(ids < ALPHABET_SIZE, ids + _FIRST_LETTER, ids - ALPHABET_SIZE + _FIRST_MERGE)


def compact_id(published: np.ndarray) -> np.ndarray:
    """The compact ids of published ones; raises TokenizerError for a byte that is no letter a to z."""
    published = np.asarray(published)
    is_letter = (published >= _FIRST_LETTER) & (published < _FIRST_LETTER + ALPHABET_SIZE)
    wrong = published[~is_letter & (published < _FIRST_MERGE)]
    if wrong.size:
        raise TokenizerError(f"published id {wrong[0]} found, 97 to 122 or 256 and more wanted")
    return np.where(is_letter, published - _FIRST_LETTER, published - _FIRST_MERGE + ALPHABET_SIZE)


def read_published(path: str | Path) -> list[np.ndarray]:
    """The tokens of a published pickle by compact id, uint8 [n] each.

    Raises TokenizerError, naming the file, for a pickle that asks for anything but dicts, lists, tuples, ints and strings,
    and for one that holds something else than a published tokenizer does.
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
    """Plain containers, ints and strings need no class and no function, so that none is looked up."""

    def find_class(self, module: str, name: str) -> None:
        raise TokenizerError(f"the pickle asks for {module}.{name}; only dict, list, tuple, int and str are admitted")


def _check(content: object, path: str | Path) -> list[np.ndarray]:
    """The symbols of every token by compact id."""
    try:
        vocab, merges = content
        spelled = {merge: "".join(map(chr, bytes_)) for bytes_, merge in merges}
        numbers = published_id(np.arange(ALPHABET_SIZE + len(merges))).tolist()
        strings = [vocab[number] for number in numbers]
        rest = max(vocab) - max(numbers)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise TokenizerError(f"{path}: not a published tokenizer, (vocab, merges) wanted: {error!r}") from error
    if rest > 0:
        raise TokenizerError(f"{path}: token {max(vocab)} found, but only {len(merges)} merges")
    tokens = []
    for number, string in zip(numbers, strings):
        try:
            tokens.append(parse(string))
        except TokenizerError as error:
            raise TokenizerError(f"{path}: token {number} is {error}") from error
        if string != (chr(number) if number < _FIRST_MERGE else spelled.get(number)):
            raise TokenizerError(f"{path}: token {number} is {string!r} in the vocabulary, otherwise in the merges")
    return tokens
