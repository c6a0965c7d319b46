"""Byte pair encoding over the 26 ECG letters: trained by the published counting rule, encoding by longest match.

Axes: B sequences, N symbols of a sequence, n tokens of it, M merges. Ids are compact: 0..25 the letters a..z, 26 + k merge k.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ecgbyte_jax.ecg.matching import Automaton, ranges
from ecgbyte_jax.ecg.merging import MAX_MERGES, find_merges
from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE, check_symbols
from ecgbyte_jax.errors import TokenizerError

_MAX_SPELLED = 1 << 26  # symbols of all tokens; 5,000 merges on ECGs make some 100,000
_LETTERS = [np.array([letter], np.uint8) for letter in range(ALPHABET_SIZE)]


class BPE:
    """A trained byte pair encoding.

    tokens: uint8 [n] each, the symbols of every id, the letters first. merges: int32 [M, 2], the pair of ids that merge k
    joined, and counts: int64 [M], how often that pair then stood in the corpus; both None where only the tokens are known.
    vocab_size: 26 + M. Of two tokens that are spelled alike the later id is used, as published.
    """

    def __init__(self, tokens: Sequence[np.ndarray], merges: np.ndarray | None = None, counts: np.ndarray | None = None):
        self.tokens = [check_symbols(token) for token in tokens]
        self.merges, self.counts = merges, counts
        self.vocab_size = len(self.tokens)
        if [token.tolist() for token in self.tokens[:ALPHABET_SIZE]] != [letter.tolist() for letter in _LETTERS]:
            raise TokenizerError(f"the first {ALPHABET_SIZE} tokens are not the letters a to z, one symbol each")
        self._lengths = np.array([len(token) for token in self.tokens])
        if not self._lengths.all():
            raise TokenizerError(f"token {int(self._lengths.argmin())} is empty, one symbol or more wanted")
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._symbols = np.concatenate(self.tokens)

    @classmethod
    def of_merges(cls, merges: np.ndarray, counts: np.ndarray) -> "BPE":
        """The encoding that merges [M, 2] make; raises TokenizerError where one joins ids that do not exist yet."""
        merges, counts = np.asarray(merges).reshape(-1, 2), np.asarray(counts, np.int64)
        if len(counts) != len(merges):
            raise TokenizerError(f"{len(counts)} counts found for {len(merges)} merges")
        tokens, spelled = list(_LETTERS), 0
        for merge, (left, right) in enumerate(merges.tolist()):
            if not (0 <= left < len(tokens) and 0 <= right < len(tokens)):
                raise TokenizerError(f"merge {merge} joins {left} and {right}, only {len(tokens)} ids exist then")
            spelled += len(tokens[left]) + len(tokens[right])
            if spelled > _MAX_SPELLED:
                raise TokenizerError(f"merges 0 to {merge} spell {spelled} symbols, {_MAX_SPELLED} at most wanted")
            tokens.append(np.concatenate([tokens[left], tokens[right]]))
        return cls(tokens, merges.astype(np.int32), counts)

    @classmethod
    def train(
        cls,
        symbols: np.ndarray | Iterable[np.ndarray],
        num_merges: int,
        *,
        boundary: str | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> "BPE":
        """Merges, `num_merges` times, the adjacent pair that occurs most often in the corpus.

        symbols: uint8 0..25, one array (records, leads, samples; it may be memory-mapped) or an iterable of records (leads,
        samples). boundary: None reads everything as one sequence, as published; no token crosses a record's end ("record",
        the first axis of an array) or a lead's end ("lead", its last axis). Overlapping occurrences count ('aaa' holds 'aa'
        twice); a pair is replaced left to right without overlap; ties go to the smallest left, then the smallest right id.
        `progress` is called with the number of merges made and the share of the work done. Where no pair is left it stops
        early and warns.

        Memory: about 2 bytes a symbol at the most, beside 8 (27 + M)^2 bytes of counts and what the system keeps of a
        memory-mapped file. Raises TokenizerError for other symbols, an empty corpus, another boundary, and fewer than 1 or
        more than 65,509 merges.
        """
        if not 1 <= num_merges <= MAX_MERGES:
            raise TokenizerError(f"num_merges {num_merges} found, 1 to {MAX_MERGES} wanted, so that ids fit into 16 bits")
        merges, counts = find_merges(symbols, num_merges, boundary, progress)
        if len(merges) < num_merges:
            warnings.warn(f"{len(merges)} of {num_merges} merges made: the corpus has no more pairs", stacklevel=2)
        return cls.of_merges(merges, counts)

    @cached_property
    def _automaton(self) -> Automaton:
        return Automaton.of(self.tokens)

    @cached_property
    def tokens_sha256(self) -> str:
        """SHA-256 of the tokens: encodings with the same one encode alike."""
        return hashlib.sha256(self._lengths.astype("<i8").tobytes() + self._symbols.tobytes()).hexdigest()

    def save_automaton(self, path: Path) -> None:
        """Writes what encoding needs beside the tokens, which takes longer to make than to read."""
        self._automaton.save(path, self.tokens_sha256)

    def load_automaton(self, path: Path) -> None:
        """Takes what `save_automaton` wrote of the same tokens; without it, it is made when something is encoded."""
        found = Automaton.load(path, self.tokens_sha256)
        if found is not None:
            self._automaton = found

    def encode(self, symbols: np.ndarray, *, return_offsets: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Symbols uint8 [N] to int32 ids [n]: from the left, always the longest token that fits.

        `return_offsets` gives (ids, offsets), int32 [n]: the sample at which each token starts.
        """
        symbols = np.asarray(symbols)
        if symbols.ndim != 1:
            raise TokenizerError(f"symbols of shape {symbols.shape} found, one axis wanted; use encode_batch for [B, N]")
        ids = self.encode_batch(symbols[None])[0]
        return (ids, self.offsets(ids)) if return_offsets else ids

    def encode_batch(
        self, symbols: np.ndarray, *, return_offsets: bool = False
    ) -> list[np.ndarray] | tuple[list[np.ndarray], list[np.ndarray]]:
        """`encode` of each row of symbols uint8 [B, N]: B arrays of int32 ids; with offsets, (ids, offsets), B arrays each."""
        symbols = check_symbols(symbols)
        if symbols.ndim != 2:
            raise TokenizerError(f"symbols of shape {symbols.shape} found, [B, N] wanted")
        ids = self._automaton.encode(symbols)
        return (ids, [self.offsets(row) for row in ids]) if return_offsets else ids

    def offsets(self, ids: np.ndarray) -> np.ndarray:
        """The sample at which each of the tokens [n] starts, int32 [n]."""
        lengths = self._lengths[self._check_ids(ids)]
        return (np.cumsum(lengths) - lengths).astype(np.int32)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Ids [n] to the symbols they stand for, uint8 [N]; raises TokenizerError for ids outside the vocabulary."""
        ids = self._check_ids(ids)
        return self._symbols[ranges(self._starts[ids], self._lengths[ids])]

    def token(self, id: int) -> np.ndarray:
        """The symbols that one id stands for, uint8 [n]."""
        return self.decode(np.array([id]))

    def _check_ids(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        if not ids.size:
            return ids.astype(np.int64)
        if not np.issubdtype(ids.dtype, np.integer):
            raise TokenizerError(f"token ids of type {ids.dtype} found, integers wanted")
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if wrong.size:
            raise TokenizerError(f"token id {wrong[0]} found, 0 to {self.vocab_size - 1} wanted")
        return ids
