"""Longest-match encoding: an automaton over runs of equal symbols, walked in NumPy.

A backtracking trie reads symbols twice. As in Fast WordPiece (Song et al. 2021, LinMaxMatch), each node instead stores the
tokens that are final when no edge continues, and the node of the remaining text, so that every symbol is read once. Nine in
ten ECG symbols repeat the previous one, so a whole run takes two steps: one enters a node with the run's symbol, the other
follows its repeats.

Axes: B rows, N symbols per row, K keys per row (two per run), V nodes of the trie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE
from ecgbyte_jax.files import read_arrays, write_arrays

_VERSION = 1  # of the table file
_END = ALPHABET_SIZE  # follows a row's last symbol: no token contains it, so all pending tokens are emitted
_SHIFT = 5
_WIDTH = 1 << _SHIFT  # of the table: keys are smaller; longer runs are split
_BLOCK = 64  # rows whose runs are found at once
_LANES = 1024  # rows walked in parallel: enough to amortise NumPy's calls, few enough for the cache
_STEPS = 128  # keys between two emissions of ids
_FEW_ROWS = 24  # up to this number a plain loop is faster


@dataclass(frozen=True)
class Automaton:
    """Longest match over the tokens of a vocabulary, as one table walked key by key.

    Each run is two keys: its symbol and its repeat count. A state s, a row of the table, is a node awaiting a symbol (0..V-1),
    or V + a node awaiting a count. go int64 [2V * 32]: the next state, times 32 (at 32 s + key). Each step emits
    counts [2V * 32] tokens, which begin at `starts` [2V] of the state in `ids` int32.
    """

    go: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    ids: np.ndarray

    @classmethod
    def of(cls, tokens: Sequence[np.ndarray]) -> "Automaton":
        """Builds the automaton of tokens uint8 [n] by id, which include every letter; of equal spellings the later id wins."""
        children, symbols, accepted = _trie(tokens)
        enter, enter_counts, leftovers = _close(children, accepted)
        ids, starts = _join(leftovers)
        follow, follow_counts, follow_lists = _follow_runs(enter, enter_counts, starts, symbols)
        followed = ids[ranges(follow_lists.ravel(), follow_counts.ravel())]
        follow_counts = follow_counts.cumsum(axis=1)
        follow_starts = len(ids) + follow_counts[:, -1].cumsum() - follow_counts[:, -1]
        counts = np.concatenate([enter_counts, follow_counts])
        return cls(
            go=np.concatenate([len(enter) + enter, follow]).ravel() * _WIDTH,
            counts=counts.ravel().astype(np.min_scalar_type(counts.max())),
            starts=np.concatenate([starts, follow_starts]),
            ids=np.concatenate([ids, followed]),
        )

    def save(self, path: Path, vocabulary: str) -> None:
        """Writes the tables with `vocabulary`, a digest of their tokens."""
        tables = {"go": self.go.astype(np.int32), "counts": self.counts, "starts": self.starts, "ids": self.ids}
        write_arrays(path, of=_made_of(vocabulary), **tables)

    @classmethod
    def load(cls, path: Path, vocabulary: str) -> "Automaton | None":
        """Reads what `save` wrote; None if it is missing, damaged, or of another version or vocabulary."""
        tables = read_arrays(path)
        if tables is None or not np.array_equal(tables["of"], _made_of(vocabulary)):
            return None
        return cls(tables["go"].astype(np.int64), tables["counts"], tables["starts"], tables["ids"])

    def encode(self, symbols: np.ndarray) -> list[np.ndarray]:
        """Encodes symbols uint8 [B, N] as B arrays of int32 ids."""
        if not symbols.size:
            return [np.empty(0, np.int32) for _ in symbols]
        rows = [keys for start in range(0, len(symbols), _BLOCK) for keys in _keys(symbols[start : start + _BLOCK])]
        if len(rows) <= _FEW_ROWS:
            return [self._walk(keys) for keys in rows]
        encoded: list[np.ndarray] = [np.empty(0, np.int32)] * len(rows)
        order = np.argsort([len(keys) for keys in rows], kind="stable").tolist()  # rows of similar length are walked together
        for start in range(0, len(rows), _LANES):
            lanes = order[start : start + _LANES]
            for row, ids in zip(lanes, self._walk_side_by_side([rows[row] for row in lanes])):
                encoded[row] = ids
        return encoded

    def _walk(self, keys: np.ndarray) -> np.ndarray:
        """The ids of one row."""
        go, places, state = self.go.data, [], 0
        for key in keys.tolist():
            places.append(state + key)
            state = go[state + key]
        return self._emit(np.array(places, np.int64))[0]

    def _walk_side_by_side(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        """The ids of each row, one key of all rows at a time. A row that has ended waits in the root, which emits no ids."""
        steps = max(len(keys) for keys in rows)
        padded = np.tile(np.array([_END, 0], np.uint8), (len(rows), steps // 2))
        for lane, keys in zip(padded, rows):
            lane[: len(keys)] = keys
        padded = np.ascontiguousarray(padded.T)  # [K, B]
        places, state = np.empty((_STEPS, len(rows)), np.int64), np.zeros(len(rows), np.int64)
        emitted = []
        for start in range(0, steps, _STEPS):
            block = padded[start : start + _STEPS]
            for keys, place in zip(block, places):
                np.add(state, keys, out=place)
                np.take(self.go, place, out=state, mode="clip")  # "clip" is the fastest; all places are in range
            ids, step = self._emit(places[: len(block)].ravel())
            emitted.append((ids, (step % len(rows)).astype(np.uint16)))
        ids, row = (np.concatenate(parts) for parts in zip(*emitted))
        ids = ids[np.argsort(row, kind="stable")]
        ends = np.cumsum(np.bincount(row, minlength=len(rows))).tolist()
        return [ids[start:end] for start, end in zip([0, *ends], ends)]

    def _emit(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the ids emitted by steps at these places of the table, the step that emitted each)."""
        counts = self.counts[places]
        steps = np.flatnonzero(counts != 0)
        counts = counts[steps].astype(np.int64)
        return self.ids[ranges(self.starts[places[steps] >> _SHIFT], counts)], np.repeat(steps, counts)


def _made_of(vocabulary: str) -> np.ndarray:
    return np.array([str(_VERSION), vocabulary])


def _keys(symbols: np.ndarray) -> list[np.ndarray]:
    """The keys uint8 [K] of each row of symbols uint8 [B, N], including its end."""
    rows, length = symbols.shape
    text = np.full((rows, length + 1), _END, np.uint8)
    text[:, :length] = symbols
    text = text.ravel()
    ends = np.flatnonzero(text[1:] != text[:-1])
    ends = np.append(ends, len(text) - 1)
    repeats = np.diff(ends, prepend=-1) - 1
    pieces = (repeats >> _SHIFT) + 1
    last = np.cumsum(pieces) - 1
    keys = np.full((last[-1] + 1, 2), _WIDTH - 1, np.uint8)
    keys[:, 0] = np.repeat(text[ends], pieces)
    keys[last, 1] = repeats & (_WIDTH - 1)
    row_ends = last[np.searchsorted(ends, np.arange(1, rows + 1) * (length + 1) - 1)] + 1
    keys, row_ends = keys.ravel(), (2 * row_ends).tolist()
    return [keys[start:end] for start, end in zip([0, *row_ends], row_ends)]


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Concatenates start, start + 1, ... (`counts` [n] values each) over `starts` [n]: int64."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())


def _trie(tokens: Sequence[np.ndarray]) -> tuple[list[list[int]], np.ndarray, list[int]]:
    """(children [V][32], the symbol that leads to each node [V], the token that ends there [V] or -1)."""
    children, symbols, accepted = [[0] * _WIDTH], [_END], [-1]
    for id, token in enumerate(tokens):
        node = 0
        for symbol in token.tolist():
            if not children[node][symbol]:
                children[node][symbol] = len(children)
                children.append([0] * _WIDTH)
                symbols.append(symbol)
                accepted.append(-1)
            node = children[node][symbol]
        accepted[node] = id
    return children, np.array(symbols), accepted


def _close(children: list[list[int]], accepted: list[int]) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """(node entered [V, 32], tokens final by then [V, 32], all tokens of the node's own text [V]).

    Shorter texts come first: without its final tokens a text is a shorter one.
    """
    enter, counts = [list(row) for row in children], [[0] * _WIDTH for _ in children]
    final: list[tuple[int, ...]] = [()] * len(children)  # the tokens emitted when no edge continues
    left = [0] * len(children)  # the node of the text left then
    leftovers: list[tuple[int, ...]] = [()] * len(children)  # the tokens of the whole text
    queue = [0]
    for parent in queue:
        for symbol, node in enumerate(children[parent]):
            if not node:
                continue
            queue.append(node)
            if accepted[node] >= 0:
                final[node] = (accepted[node],)
            else:
                back = left[parent]
                final[node] = final[parent] + leftovers[back][: counts[back][symbol]]
                left[node] = enter[back][symbol]
            back, taken = left[node], len(final[node])
            leftovers[node] = final[node] + leftovers[back]
            enter[node] = [own or other for own, other in zip(children[node], enter[back])]
            counts[node] = [0 if own else taken + other for own, other in zip(children[node], counts[back])]
    return np.array(enter), np.array(counts), leftovers


def _join(lists: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """(all ids int32, where each list starts)."""
    sizes = np.array([len(ids) for ids in lists])
    return np.array([id for ids in lists for id in ids], np.int32), np.cumsum(sizes) - sizes


def _follow_runs(
    enter: np.ndarray, counts: np.ndarray, starts: np.ndarray, symbols: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Follows each node's own symbol, all [V, 32]: (node reached, ids emitted by the last step, where they start)."""
    follow, made, lists = np.zeros((3, len(enter), _WIDTH), np.int64)
    follow[:, 0] = np.arange(len(enter))
    for repeats in range(1, _WIDTH):
        node = follow[:, repeats - 1]
        follow[:, repeats], made[:, repeats], lists[:, repeats] = enter[node, symbols], counts[node, symbols], starts[node]
    return follow, made, lists
