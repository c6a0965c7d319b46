"""Byte pair encoding over the 26 ECG letters: trained with the published counting rule, encodes by longest match.

Axes: B sequences, N symbols per sequence, n tokens per sequence, M merges. Ids are compact: 0..25 are the letters a..z, 26 + k
is merge k.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, overload

import numpy as np

from ecgbyte_jax.ecg.matching import Automaton, ranges
from ecgbyte_jax.ecg.merging import MAX_MERGES, find_merges
from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE, check_symbols
from ecgbyte_jax.errors import TokenizerError

_MAX_SPELLED = 1 << 26  # symbols of all tokens together; 5,000 merges on ECGs make about 100,000
_LETTERS = [np.array([letter], np.uint8) for letter in range(ALPHABET_SIZE)]


class BPE:
    """A trained byte pair encoding.

    tokens: uint8 [n] each, the symbols of every id, letters first. merges: int32 [M, 2], the pair of ids joined by merge k;
    counts: int64 [M], the pair's occurrences in the corpus at that point; both None if only the tokens are known.
    vocab_size: 26 + M. If two tokens have the same spelling, the later id is used, as published.
    """

    def __init__(self, tokens: Sequence[np.ndarray], merges: np.ndarray | None = None, counts: np.ndarray | None = None):
        self.tokens = [check_symbols(token) for token in tokens]
        self.merges, self.counts = merges, counts
        self.vocab_size = len(self.tokens)
        if [token.tolist() for token in self.tokens[:ALPHABET_SIZE]] != [letter.tolist() for letter in _LETTERS]:
            raise TokenizerError(f"the first {ALPHABET_SIZE} tokens are not the letters a to z, one symbol each")
        self._lengths = np.array([len(token) for token in self.tokens])
        if not self._lengths.all():
            raise TokenizerError(f"token {int(self._lengths.argmin())} is empty, at least one symbol expected")
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._symbols = np.concatenate(self.tokens)

    @classmethod
    def of_merges(cls, merges: np.ndarray, counts: np.ndarray) -> "BPE":
        """Builds the encoding from merges [M, 2], counts [M]; raises TokenizerError if one joins ids that do not exist yet."""
        merges, counts = np.asarray(merges).reshape(-1, 2), np.asarray(counts, np.int64)
        if len(counts) != len(merges):
            raise TokenizerError(f"{len(counts)} counts found, {len(merges)} expected: one per merge")
        tokens, total_symbols = list(_LETTERS), 0
        for merge, (left, right) in enumerate(merges.tolist()):
            if not (0 <= left < len(tokens) and 0 <= right < len(tokens)):
                raise TokenizerError(f"merge {merge} joins {left} and {right}, ids below {len(tokens)} expected")
            total_symbols += len(tokens[left]) + len(tokens[right])
            if total_symbols > _MAX_SPELLED:
                raise TokenizerError(f"merges 0 to {merge} spell {total_symbols} symbols, at most {_MAX_SPELLED} expected")
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
        """Merges the most frequent adjacent pair of the corpus, `num_merges` times.

        symbols: uint8 0..25, one array (records, leads, samples; may be memory-mapped) or an iterable of records (leads,
        samples). boundary: None treats everything as one sequence, as published; otherwise no token crosses the end of a record
        ("record", an array's first axis) or of a lead ("lead", its last axis). Overlapping occurrences count ('aaa' contains
        'aa' twice); a pair is replaced left to right without overlap; ties go to the smallest left, then the smallest right id.
        `progress` receives the number of merges made and the fraction of the work done. Stops early with a warning if no pair
        is left.

        Memory: at most about 2 bytes per symbol, plus 8 (27 + M)^2 bytes of counts and the page cache of a memory-mapped file.
        Raises TokenizerError for other symbols, an empty corpus, an unknown boundary, or a `num_merges` outside 1..65,509.
        """
        if not 1 <= num_merges <= MAX_MERGES:
            raise TokenizerError(f"num_merges {num_merges} found, 1 to {MAX_MERGES} expected, so that ids fit in 16 bits")
        merges, counts = find_merges(symbols, num_merges, boundary, progress)
        if len(merges) < num_merges:
            warnings.warn(f"{len(merges)} of {num_merges} merges made: the corpus has no more pairs", stacklevel=2)
        return cls.of_merges(merges, counts)

    @cached_property
    def _automaton(self) -> Automaton:
        return Automaton.of(self.tokens)

    @cached_property
    def tokens_sha256(self) -> str:
        """SHA-256 of the tokens; encodings with equal digests encode identically."""
        return hashlib.sha256(self._lengths.astype("<i8").tobytes() + self._symbols.tobytes()).hexdigest()

    def save_automaton(self, path: Path) -> None:
        """Saves the encoding tables, which take longer to build than to read."""
        self._automaton.save(path, self.tokens_sha256)

    def load_automaton(self, path: Path) -> None:
        """Loads tables that `save_automaton` wrote for the same tokens; otherwise they are built when first needed."""
        automaton = Automaton.load(path, self.tokens_sha256)
        if automaton is not None:
            self._automaton = automaton

    @overload
    def encode(self, symbols: np.ndarray, *, return_offsets: Literal[False] = False) -> np.ndarray: ...

    @overload
    def encode(self, symbols: np.ndarray, *, return_offsets: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...

    def encode(self, symbols: np.ndarray, *, return_offsets: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Encodes symbols uint8 [N] as int32 ids [n] by greedy longest match from the left.

        With `return_offsets`: (ids, offsets), offsets int32 [n] being the sample at which each token starts. Raises
        TokenizerError for other symbols or shapes.
        """
        symbols = np.asarray(symbols)
        if symbols.ndim != 1:
            raise TokenizerError(f"symbols of shape {symbols.shape} found, [N] expected; use encode_batch for [B, N]")
        ids = self.encode_batch(symbols[None])[0]
        return (ids, self.offsets(ids)) if return_offsets else ids

    @overload
    def encode_batch(self, symbols: np.ndarray, *, return_offsets: Literal[False] = False) -> list[np.ndarray]: ...

    @overload
    def encode_batch(
        self, symbols: np.ndarray, *, return_offsets: Literal[True]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]: ...

    def encode_batch(
        self, symbols: np.ndarray, *, return_offsets: bool = False
    ) -> list[np.ndarray] | tuple[list[np.ndarray], list[np.ndarray]]:
        """Encodes each row of symbols uint8 [B, N] as int32 ids: B arrays; with offsets, (ids, offsets), B arrays each."""
        symbols = check_symbols(symbols)
        if symbols.ndim != 2:
            raise TokenizerError(f"symbols of shape {symbols.shape} found, [B, N] expected")
        ids = self._automaton.encode(symbols)
        return (ids, [self.offsets(row) for row in ids]) if return_offsets else ids

    def offsets(self, ids: np.ndarray) -> np.ndarray:
        """Returns the sample at which each of the tokens [n] starts, int32 [n]."""
        lengths = self._lengths[self._check_ids(ids)]
        return (np.cumsum(lengths) - lengths).astype(np.int32)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Decodes ids [n] to symbols uint8 [N]; raises TokenizerError for ids outside the vocabulary."""
        ids = self._check_ids(ids)
        return self._symbols[ranges(self._starts[ids], self._lengths[ids])]

    def token(self, id: int) -> np.ndarray:
        """Returns the symbols of one id, uint8 [n]."""
        return self.decode(np.array([id]))

    def _check_ids(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        if not ids.size:
            return ids.astype(np.int64)
        if not np.issubdtype(ids.dtype, np.integer):
            raise TokenizerError(f"token ids of type {ids.dtype} found, integers expected")
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if wrong.size:
            raise TokenizerError(f"token id {wrong[0]} found, 0 to {self.vocab_size - 1} expected")
        return ids
