"""Byte pair encoding over the 26 ECG letters: training by the published counting rule, encoding by longest match.

Axes: B sequences, N symbols of a sequence, M merges. Ids are compact: 0..25 the letters a..z, 26 + k merge k.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE
from ecgbyte_jax.errors import TokenizerError

_LETTERS = [np.array([letter], np.uint8) for letter in range(ALPHABET_SIZE)]
_LOCKSTEP_ROWS = 1024
_CHUNK = 1 << 22  # symbols counted at a time


class BPE:
    """A trained byte pair encoding.

    merges: int32 [M, 2], the pair of ids that merge k joined; counts: int64 [M], how often that pair then stood in
    the corpus; vocab_size: 26 + M.
    """

    def __init__(self, merges: np.ndarray, counts: np.ndarray):
        self.merges = np.asarray(merges, np.int32).reshape(-1, 2)
        self.counts = np.asarray(counts, np.int64)
        if len(self.counts) != len(self.merges):
            raise TokenizerError(f"{len(self.counts)} counts found for {len(self.merges)} merges")
        self.vocab_size = ALPHABET_SIZE + len(self.merges)
        self._tokens = _spell(self.merges)
        self._child, self._accept = _build_trie(self._tokens)

    @classmethod
    def train(cls, symbols: np.ndarray, num_merges: int, *, progress: Callable[[int], None] | None = None) -> "BPE":
        """Merges, `num_merges` times, the adjacent pair that occurs most often in `symbols`, read as one sequence.

        symbols: uint8 of any shape, 0..25. Overlapping occurrences count ('aaa' holds 'aa' twice); a pair is replaced
        left to right without overlap; ties go to the smallest left, then the smallest right id. Stops early when no
        pair is left. `progress` is called with the number of merges made. Raises TokenizerError for other symbols,
        an empty corpus, or a number of merges below 1.
        """
        stream = _check_symbols(symbols).ravel().astype(np.uint16)
        if stream.size == 0:
            raise TokenizerError("the corpus to train on is empty")
        if not 1 <= num_merges <= np.iinfo(np.uint16).max - ALPHABET_SIZE:
            raise TokenizerError(f"num_merges {num_merges} found, 1 to {np.iinfo(np.uint16).max - ALPHABET_SIZE} wanted")
        pairs = _PairCounts(stream, ALPHABET_SIZE + num_merges)
        merges, counts = [], []
        for new in range(ALPHABET_SIZE, ALPHABET_SIZE + num_merges):
            left, right, count = pairs.most_frequent()
            if count == 0:
                break
            merges.append((left, right))
            counts.append(count)
            stream = _merge(stream, left, right, new, pairs)
            if progress:
                progress(len(merges))
        return cls(np.array(merges), np.array(counts))

    def encode(self, symbols: np.ndarray) -> np.ndarray:
        """Symbols uint8 [N] to int32 ids [n]: from the left, always the longest token that fits."""
        symbols = _check_symbols(symbols)
        if symbols.ndim != 1:
            raise TokenizerError(f"symbols of shape {symbols.shape} found, one axis wanted; use encode_batch for [B, N]")
        return self.encode_batch(symbols[None])[0]

    def encode_batch(self, symbols: np.ndarray) -> list[np.ndarray]:
        """`encode` of each row of symbols uint8 [B, N]: B arrays of int32 ids, of different lengths."""
        symbols = _check_symbols(symbols)
        if symbols.ndim != 2:
            raise TokenizerError(f"symbols of shape {symbols.shape} found, [B, N] wanted")
        rows = range(0, len(symbols), _LOCKSTEP_ROWS)
        return [ids for start in rows for ids in self._lockstep(symbols[start : start + _LOCKSTEP_ROWS])]

    def _lockstep(self, symbols: np.ndarray) -> list[np.ndarray]:
        """Walks the trie for all rows at once, one symbol an iteration; symbols uint8 [B, N]."""
        rows, length = symbols.shape
        # One column of a 27th symbol behind the end: no token goes on there.
        padded = np.pad(symbols, ((0, 0), (0, 1)), constant_values=ALPHABET_SIZE).ravel()
        base = np.arange(rows) * (length + 1)
        position, node = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        match_id, match_end = np.zeros(rows, np.int32), np.zeros(rows, np.int64)
        ids, filled = np.empty((rows, length), np.int32), np.zeros(rows, np.int64)
        while True:
            below = self._child[node, padded[base + position]]  # [B], 0: no token goes on with this symbol
            stuck = below == 0
            ended = np.flatnonzero(stuck & (node != 0))
            if ended.size == 0 and stuck.all():  # every row waits at the root behind its end
                return [row[:n].copy() for row, n in zip(ids, filled)]
            position += ~stuck
            accepted = self._accept[below]  # [B], -1: not a whole token yet (the root is none)
            is_token = accepted >= 0
            np.copyto(match_id, accepted, where=is_token)
            np.copyto(match_end, position, where=is_token)
            node = below
            ids[ended, filled[ended]] = match_id[ended]
            filled[ended] += 1
            position[ended] = match_end[ended]

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Ids [n] to the symbols they stand for, uint8 [N]; raises TokenizerError for ids outside the vocabulary."""
        ids = np.asarray(ids)
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if wrong.size:
            raise TokenizerError(f"token id {wrong[0]} found, 0 to {self.vocab_size - 1} wanted")
        return np.concatenate([self._tokens[i] for i in ids]) if ids.size else np.empty(0, np.uint8)

    def token(self, id: int) -> np.ndarray:
        """The symbols that one id stands for, uint8 [n]."""
        return self.decode(np.array([id]))


class _PairCounts:
    """How often each pair of ids stands side by side, with the largest count of each row kept at hand."""

    def __init__(self, stream: np.ndarray, size: int):
        first = np.zeros(ALPHABET_SIZE**2, np.int64)
        for start in range(0, len(stream) - 1, _CHUNK):  # bincount copies what it counts to int64
            part = stream[start : start + _CHUNK + 1]
            first += np.bincount(part[:-1] * np.uint16(ALPHABET_SIZE) + part[1:], minlength=ALPHABET_SIZE**2)
        self.table = np.zeros((size, size), np.int64)  # [left, right]
        self.table[:ALPHABET_SIZE, :ALPHABET_SIZE] = first.reshape(ALPHABET_SIZE, ALPHABET_SIZE)
        self.row_max = self.table.max(axis=1)

    def add_before(self, before: np.ndarray, id: int, sign: int) -> None:
        """Adds `sign` for every pair (before[i], id)."""
        counts = np.bincount(before, minlength=len(self.table))
        self.table[:, id] += sign * counts
        rows = np.flatnonzero(counts)
        self.row_max[rows] = self.table[rows].max(axis=1)

    def add_behind(self, id: int, behind: np.ndarray, sign: int) -> None:
        """Adds `sign` for every pair (id, behind[i])."""
        self.table[id] += sign * np.bincount(behind, minlength=len(self.table))
        self.row_max[id] = self.table[id].max()

    def most_frequent(self) -> tuple[int, int, int]:
        """(left, right, count) of the largest count; argmax takes the first, so ties go to the smallest ids."""
        left = int(self.row_max.argmax())
        right = int(self.table[left].argmax())
        return left, right, int(self.table[left, right])


def _merge(stream: np.ndarray, left: int, right: int, new: int, pairs: _PairCounts) -> np.ndarray:
    """Replaces the pair by `new`, left to right without overlap, and brings `pairs` up to date by the differences.

    In x l r y the pairs (x, l), (l, r), (r, y) go, and (x, new), (new, y) come. In l r l r the middle pair (r, l) goes
    once and (new, new) comes once: it is counted as the one behind the first occurrence, not before the second.
    """
    at = np.flatnonzero((stream[:-1] == left) & (stream[1:] == right))
    if left == right:
        at = at[_even_in_run(at)]
    has_before = (np.diff(at, prepend=-2) > 2) & (at > 0)  # not at the start, not right behind another occurrence
    pairs.add_before(stream[at[has_before] - 1], left, -1)
    pairs.add_behind(left, np.full(len(at), right), -1)
    pairs.add_behind(right, stream[at[at + 2 < len(stream)] + 2], -1)
    stream[at] = new
    keep = np.ones(len(stream), bool)
    keep[at + 1] = False
    stream = stream[keep]
    at -= np.arange(len(at))  # each earlier merge moved it one place to the left
    pairs.add_before(stream[at[has_before] - 1], new, 1)
    pairs.add_behind(new, stream[at[at + 1 < len(stream)] + 1], 1)
    return stream


def _even_in_run(at: np.ndarray) -> np.ndarray:
    """Which of the sorted positions are the 1st, 3rd, ... of a run of consecutive ones (bool, as long as `at`)."""
    starts = np.flatnonzero(np.diff(at, prepend=-2) != 1)
    run = np.repeat(starts, np.diff(starts, append=len(at)))
    return (np.arange(len(at)) - run) % 2 == 0


def _spell(merges: np.ndarray) -> list[np.ndarray]:
    """The symbols of every id, letters first."""
    tokens = list(_LETTERS)
    for left, right in merges:
        if not (0 <= left < len(tokens) and 0 <= right < len(tokens)):
            raise TokenizerError(
                f"merge {len(tokens) - ALPHABET_SIZE} joins {left} and {right}, only {len(tokens)} ids exist then"
            )
        tokens.append(np.concatenate([tokens[left], tokens[right]]))
    return tokens


def _build_trie(tokens: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(child int32 [nodes, 27], accept int32 [nodes]): node 0 is the root, child 0 none, accept -1 no token."""
    children: list[list[int]] = [[0] * (ALPHABET_SIZE + 1)]
    accept = [-1]
    for id, token in enumerate(tokens):
        node = 0
        for symbol in token.tolist():
            if children[node][symbol] == 0:
                children[node][symbol] = len(children)
                children.append([0] * (ALPHABET_SIZE + 1))
                accept.append(-1)
            node = children[node][symbol]
        accept[node] = id  # of two tokens that are spelled alike the later one wins, as published
    return np.array(children, np.int32), np.array(accept, np.int32)


def _check_symbols(symbols: np.ndarray) -> np.ndarray:
    symbols = np.asarray(symbols)
    if symbols.dtype != np.uint8:
        raise TokenizerError(f"symbols of type {symbols.dtype} found, uint8 wanted; quantize the signal first")
    if symbols.size and symbols.max() >= ALPHABET_SIZE:
        raise TokenizerError(f"symbol {symbols.max()} found, 0 to {ALPHABET_SIZE - 1} wanted")
    return symbols
