"""Training a byte pair encoding: finding the pairs to merge, exactly, on one core and in bounded memory.

A merge touches few places of a long stream, so pairs are counted once and the counts updated by what each merge changes. A
long stream is scanned chunk by chunk, at one byte per token; once it is short, each pair's places are indexed instead
(`_Index`).

Ids here: 0..25 are letters, 26 is no token (the ends, and boundaries that no token crosses), 27 + k is merge k.
Axes: N tokens of the stream, P places of a pair, V ids.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ecgbyte_jax.ecg.symbols import ALPHABET_SIZE, check_symbols
from ecgbyte_jax.errors import TokenizerError

NO_TOKEN = ALPHABET_SIZE
FIRST_MERGE = NO_TOKEN + 1
MAX_MERGES = np.iinfo(np.uint16).max + 1 - FIRST_MERGE
_ROW = 256  # ids that fit in a byte, as long as the stream is scanned
_SCAN_MERGES = _ROW - FIRST_MERGE
_PAIR_KEYS = _ROW * _ROW
_CHUNK = 1 << 18  # tokens scanned at a time, few enough for the cache
_SHRINK = 7  # the stream is indexed once it is this many times shorter than at first
_SCAN_SHARE = 0.9  # of the time, as measured on ECGs


def find_merges(
    symbols: np.ndarray | Iterable[np.ndarray],
    num_merges: int,
    boundary: str | None = None,
    progress: Callable[[int, float], None] | None = None,
    chunk: int = _CHUNK,
    shrink: float = _SHRINK,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (merges int32 [M, 2], compact ids; counts int64 [M]), see `BPE.train`; `chunk`, `shrink` affect only speed."""
    stream = read_stream(symbols, boundary, chunk)
    pairs = _Pairs(stream, FIRST_MERGE + num_merges, chunk)
    index, first_length, share = None, len(stream), 0.0
    merges: list[tuple[int, int]] = []
    counts: list[int] = []
    for new in range(FIRST_MERGE, FIRST_MERGE + num_merges):
        left, right, count = pairs.most_frequent()
        if count == 0:
            break
        if index is None and (len(merges) == _SCAN_MERGES or len(stream) * shrink <= first_length):
            stream = stream.copy()  # frees the memory of the long one
            index = _Index(stream, pairs.size, new, chunk)
        if index is None:
            stream, before, after = _scan(stream, left, right, new, chunk)
            share = _SCAN_SHARE * min(1.0, math.log(first_length / len(stream), max(shrink, 2)))
        else:
            before, after = index.merge(left, right, new)
        pairs.replace(left, right, new, before, after)
        merges.append((left, right))
        counts.append(count)
        if progress:
            progress(len(merges), max(share, len(merges) / num_merges))
    joined = np.array(merges, np.int32).reshape(-1, 2)
    return joined - (joined > NO_TOKEN), np.array(counts, np.int64)


def read_stream(symbols: np.ndarray | Iterable[np.ndarray], boundary: str | None, chunk: int = _CHUNK) -> np.ndarray:
    """Reads all symbols into one uint8 [N], with boundaries and both ends marked by NO_TOKEN.

    Raises TokenizerError for symbols outside 0..25, an unknown boundary, or an empty corpus.
    """
    stream, length, symbols_read = np.full(chunk + 2, NO_TOKEN, np.uint8), 1, 0
    for part in _parts(symbols, boundary):
        for start in range(0, len(part), chunk):
            piece = check_symbols(part[start : start + chunk])
            if length + len(piece) + 2 > len(stream):
                stream.resize(len(stream) + len(stream) // 8 + chunk, refcheck=False)  # in place if the stream is long
            stream[length : length + len(piece)] = piece
            length += len(piece)
            symbols_read += len(piece)
        if boundary and stream[length - 1] != NO_TOKEN:
            stream[length] = NO_TOKEN
            length += 1
    if symbols_read == 0:
        raise TokenizerError("the corpus to train on is empty")
    stream[length] = NO_TOKEN
    return stream[: length + 1]


def _parts(symbols: np.ndarray | Iterable[np.ndarray], boundary: str | None) -> Iterator[np.ndarray]:
    """uint8 [n] each: the symbols between two boundaries, or per record if there are none."""
    if boundary not in (None, "record", "lead"):
        raise TokenizerError(f"boundary {boundary!r} found, None, 'record' or 'lead' expected")
    if isinstance(symbols, np.ndarray) and (symbols.ndim < 2 or boundary is None):
        symbols = [symbols]
    for record in symbols:
        record = np.atleast_1d(record)
        if not record.size:
            continue
        if boundary == "lead":
            yield from record.reshape(-1, record.shape[-1])
        else:
            yield record.reshape(-1)


class _Pairs:
    """The number of occurrences of each pair in the stream; table int64 [V, V].

    bounds [V] are upper bounds of each row's largest count. Counts only fall, except those of the newest id, so a row is
    revisited only when its bound is the largest.
    """

    def __init__(self, stream: np.ndarray, size: int, chunk: int):
        counts = np.zeros(FIRST_MERGE * _ROW, np.int64)
        for _, keys in _pair_keys(stream, chunk):
            counts += np.bincount(keys, minlength=len(counts))
        self.size = size
        self.table = np.zeros((size, size), np.int64)  # [left, right]
        self.table[:NO_TOKEN, :NO_TOKEN] = counts.reshape(FIRST_MERGE, _ROW)[:NO_TOKEN, :NO_TOKEN]
        self.bounds = self.table.max(axis=1)

    def most_frequent(self) -> tuple[int, int, int]:
        """(left, right, count) of the largest count; argmax returns the first, so ties go to the smallest ids."""
        while True:
            left = int(self.bounds.argmax())
            right = int(self.table[left].argmax())
            count = int(self.table[left, right])
            if count == self.bounds[left]:
                return left, right, count
            self.bounds[left] = count

    def replace(self, left: int, right: int, new: int, before: np.ndarray, after: np.ndarray) -> None:
        """Updates the counts after a merge; before, after int64 [V]: how often each token now precedes and follows `new`.

        Where x now precedes `new`, (x, left) became (x, new); likewise after it; between two of `new`, (right, left)
        disappeared.
        """
        table = self.table
        table[right, left] -= before[new]
        table[new, new] = before[new]
        before[[new, NO_TOKEN]] = after[[new, NO_TOKEN]] = 0
        x, y = np.flatnonzero(before), np.flatnonzero(after)
        table[x, new] = before[x]
        table[x, left] -= before[x]
        table[new, y] = after[y]
        table[right, y] -= after[y]
        table[left, right] = 0
        self.bounds[new] = table[new].max()  # the other bounds hold: (x, new) does not exceed the old (x, left)


def _scan(stream: np.ndarray, left: int, right: int, new: int, chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merges a pair in the stream uint8 [N], in place: (the shorter stream, tokens before `new` [V], after it [V])."""
    before, after = np.zeros((2, _ROW), np.int64)
    read = written = 1  # the stream starts with NO_TOKEN
    while read < len(stream):
        tokens = stream[read : read + chunk]
        at = np.flatnonzero((tokens[:-1] == left) & (tokens[1:] == right))
        if left == right:
            at = _odd_in_run(at, 1)
        read += len(tokens)
        if read < len(stream) and tokens[-1] == left and not (at.size and at[-1] == len(tokens) - 2):
            tokens = tokens[:-1]  # it may begin a pair with the next chunk
            read -= 1
        if at.size:
            keep = np.ones(len(tokens), bool)
            keep[at + 1] = False
            tokens[at] = new
            tokens = np.compress(keep, tokens)  # faster than tokens[keep]
            at -= np.arange(len(at))  # each earlier merge moved it by one place
        end = written + len(tokens)
        stream[written:end] = tokens
        before += np.bincount(stream[written + at - 1], minlength=_ROW)
        if at.size and at[-1] == len(tokens) - 1:
            at = at[:-1]  # its successor comes with the next chunk
        after += np.bincount(stream[written + at + 1], minlength=_ROW)
        if stream[written - 1] == new and len(tokens):
            after[stream[written]] += 1
        written = end
    return stream[:written], before, after


def _odd_in_run(at: np.ndarray, step: int) -> np.ndarray:
    """Of the sorted places, the 1st, 3rd, ... of each run of places `step` apart."""
    starts = np.flatnonzero(np.diff(at, prepend=-step - 1) != step)
    run = np.repeat(starts, np.diff(starts, append=len(at)))
    run -= np.arange(len(at))
    return np.compress(run & 1 == 0, at)


def _pair_keys(stream: np.ndarray, chunk: int) -> Iterator[tuple[int, np.ndarray]]:
    """(where the chunk starts, left * 256 + right of each adjacent pair as uint16)."""
    for start in range(0, len(stream) - 1, chunk):
        part = stream[start : start + chunk + 1]
        yield start, part[:-1] * np.uint16(_ROW) + part[1:]


class _Index:
    """The places of every pair, in a stream that is merged without moving a token.

    ids uint16 [N]: an id is at the first and last place of its token, NO_TOKEN between them, so that the neighbours of a token
    can be found. A pair can only appear when the newer of its two ids is made; all its places are then stored, sorted, and
    later only checked.
    """

    def __init__(self, stream: np.ndarray, size: int, first_new: int, chunk: int):
        self.ids = stream.astype(np.uint16)
        self.spans = np.ones(size, np.int64)  # places per token of an id
        self.first_new = first_new
        self.place = np.uint32 if len(stream) <= 1 << 32 else np.int64
        self.ends, self.places = self._sort_pairs(stream, chunk)
        self.lists: dict[int, tuple[np.ndarray, ...]] = {}

    def _sort_pairs(self, stream: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """(ends [first_new^2], places [N - 1]): pair (l, r) begins at the places from the previous pair's end to its own."""
        counts = np.zeros(_PAIR_KEYS, np.int64)
        for _, keys in _pair_keys(stream, chunk):
            counts += np.bincount(keys, minlength=_PAIR_KEYS)
        ends = np.cumsum(counts) - counts
        places = np.empty(len(stream) - 1, self.place)
        for start, keys in _pair_keys(stream, chunk):
            order = np.argsort(keys, kind="stable")
            counts = np.bincount(keys, minlength=_PAIR_KEYS)
            shift = ends - (np.cumsum(counts) - counts)
            places[np.arange(len(keys)) + shift[keys[order]]] = order + start
            ends += counts
        return ends, places

    def _places(self, left: int, right: int) -> np.ndarray:
        if max(left, right) < self.first_new:
            key = left * _ROW + right
            return self.places[self.ends[key - 1] if key else 0 : self.ends[key]]
        before_ids, before_places, after_ids, after_places = self.lists[max(left, right)]
        sides, places, id = (after_ids, after_places, right) if left >= right else (before_ids, before_places, left)
        first, last = np.searchsorted(sides, [id, id + 1])
        return places[first:last]

    def merge(self, left: int, right: int, new: int) -> tuple[np.ndarray, np.ndarray]:
        """Merges a pair: (how often each token is before `new` now, int64 [V], and after it)."""
        ids, spans = self.ids, self.spans
        at = self._places(left, right).astype(np.int64)
        at = at[(ids[at] == left) & (ids[at + spans[left]] == right)]
        if left == right:
            at = _odd_in_run(at, spans[left])
        spans[new] = spans[left] + spans[right]
        middle, end = at + spans[left], at + spans[new]
        ids[middle - 1] = NO_TOKEN
        ids[middle] = NO_TOKEN
        ids[at] = new
        ids[end - 1] = new
        before, after = ids[at - 1], ids[end]
        by_before, by_after = np.argsort(before, kind="stable"), np.argsort(after, kind="stable")
        before_ids, before_places = before[by_before], at[by_before] - spans[before[by_before]]
        self.lists[new] = before_ids, before_places.astype(self.place), after[by_after], at[by_after].astype(self.place)
        return np.bincount(before, minlength=len(spans)), np.bincount(after, minlength=len(spans))
