"""Training a byte pair encoding: which pairs to merge, exact at every step, on one core and in bounded memory.

A merge touches few places of a long stream, so pairs are counted once and then kept up to date by what each merge changes.
While the stream is long it is scanned chunk by chunk, in one byte a token; when it has become short, each pair's places are
looked up instead (`_Index`).

Ids here: 0..25 the letters, 26 no token (the ends, and boundaries that no token crosses), 27 + k merge k.
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
_ROW = 256  # ids while the stream is scanned, as bytes
_SCAN_MERGES = _ROW - FIRST_MERGE
_PAIR_KEYS = _ROW * _ROW
_CHUNK = 1 << 18  # tokens scanned at a time: they stay in the cache
_SHRINK = 7  # the stream is indexed when so many times shorter than at first
_SCAN_SHARE = 0.9  # of the time, as seen on ECGs


def find_merges(
    symbols: np.ndarray | Iterable[np.ndarray],
    num_merges: int,
    boundary: str | None = None,
    progress: Callable[[int, float], None] | None = None,
    chunk: int = _CHUNK,
    shrink: float = _SHRINK,
) -> tuple[np.ndarray, np.ndarray]:
    """(merges int32 [M, 2] in compact ids, counts int64 [M]): see `BPE.train`. `chunk` and `shrink` only change the time."""
    stream = read_stream(symbols, boundary, chunk)
    pairs = _Pairs(stream, FIRST_MERGE + num_merges, chunk)
    index, first_length, share = None, len(stream), 0.0
    merges, counts = [], []
    for new in range(FIRST_MERGE, FIRST_MERGE + num_merges):
        left, right, count = pairs.most_frequent()
        if count == 0:
            break
        if index is None and (len(merges) == _SCAN_MERGES or len(stream) * shrink <= first_length):
            stream = stream.copy()  # lets the memory of the long one go
            index = _Index(stream, pairs.size, new, chunk)
        if index is None:
            stream, before, behind = _scan(stream, left, right, new, chunk)
            share = _SCAN_SHARE * min(1.0, math.log(first_length / len(stream), max(shrink, 2)))
        else:
            before, behind = index.merge(left, right, new)
        pairs.replace(left, right, new, before, behind)
        merges.append((left, right))
        counts.append(count)
        if progress:
            progress(len(merges), max(share, len(merges) / num_merges))
    found = np.array(merges, np.int32).reshape(-1, 2)
    return found - (found > NO_TOKEN), np.array(counts, np.int64)


def read_stream(symbols: np.ndarray | Iterable[np.ndarray], boundary: str | None, chunk: int = _CHUNK) -> np.ndarray:
    """All symbols in one uint8 [N], boundaries and both ends marked by NO_TOKEN; one byte a symbol is held.

    Raises TokenizerError for other symbols than 0..25, another boundary, and an empty corpus.
    """
    stream, length, symbols_read = np.full(chunk + 2, NO_TOKEN, np.uint8), 1, 0
    for part in _parts(symbols, boundary):
        for start in range(0, len(part), chunk):
            some = check_symbols(part[start : start + chunk])
            if length + len(some) + 2 > len(stream):
                stream.resize(len(stream) + len(stream) // 8 + chunk, refcheck=False)  # moves no byte of a long one
            stream[length : length + len(some)] = some
            length += len(some)
            symbols_read += len(some)
        if boundary and stream[length - 1] != NO_TOKEN:
            stream[length] = NO_TOKEN
            length += 1
    if symbols_read == 0:
        raise TokenizerError("the corpus to train on is empty")
    stream[length] = NO_TOKEN
    return stream[: length + 1]


def _parts(symbols: np.ndarray | Iterable[np.ndarray], boundary: str | None) -> Iterator[np.ndarray]:
    """uint8 [n] each: what stands between two boundaries, or less where there are none."""
    if boundary not in (None, "record", "lead"):
        raise TokenizerError(f"boundary {boundary!r} found, None, 'record' or 'lead' wanted")
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
    """How often each pair stands in the stream; table int64 [V, V].

    bounds [V] is never below the largest count of a row. Counts only fall, but for those of the newest id, so a row is looked
    at again only when its bound comes to the top.
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
        """(left, right, count) of the largest count; argmax takes the first, so ties go to the smallest ids."""
        while True:
            left = int(self.bounds.argmax())
            right = int(self.table[left].argmax())
            count = int(self.table[left, right])
            if count == self.bounds[left]:
                return left, right, count
            self.bounds[left] = count

    def replace(self, left: int, right: int, new: int, before: np.ndarray, behind: np.ndarray) -> None:
        """Counts what a merge changed; before, behind int64 [V]: how often each token now stands at `new`'s sides.

        Where x now stands before `new`, (x, left) went and (x, new) came; likewise behind; between two of `new`, (right,
        left) went.
        """
        table = self.table
        table[right, left] -= before[new]
        table[new, new] = before[new]
        before[[new, NO_TOKEN]] = behind[[new, NO_TOKEN]] = 0
        x, y = np.flatnonzero(before), np.flatnonzero(behind)
        table[x, new] = before[x]
        table[x, left] -= before[x]
        table[new, y] = behind[y]
        table[right, y] -= behind[y]
        table[left, right] = 0
        self.bounds[new] = table[new].max()  # the other bounds hold: (x, new) is not more than (x, left) was


def _scan(stream: np.ndarray, left: int, right: int, new: int, chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merges a pair in the stream uint8 [N], in place: (the shorter stream, tokens before `new` [V], behind it [V])."""
    before, behind = np.zeros((2, _ROW), np.int64)
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
            at -= np.arange(len(at))  # each merge before it moved it by one place
        end = written + len(tokens)
        stream[written:end] = tokens
        before += np.bincount(stream[written + at - 1], minlength=_ROW)
        if at.size and at[-1] == len(tokens) - 1:
            at = at[:-1]  # what stands behind it comes with the next chunk
        behind += np.bincount(stream[written + at + 1], minlength=_ROW)
        if stream[written - 1] == new and len(tokens):
            behind[stream[written]] += 1
        written = end
    return stream[:written], before, behind


def _odd_in_run(at: np.ndarray, step: int) -> np.ndarray:
    """Of the sorted places, the 1st, 3rd, ... of each run of places that stand `step` apart."""
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

    ids uint16 [N]: an id stands at the first and at the last place of its token, NO_TOKEN between them, so that the
    neighbours of a token are found. A pair can only appear when the newer of its two ids is made; then all its places are
    written down, sorted, and from there on only checked.
    """

    def __init__(self, stream: np.ndarray, size: int, first_new: int, chunk: int):
        self.ids = stream.astype(np.uint16)
        self.spans = np.ones(size, np.int64)  # places that an id's tokens take
        self.first_new = first_new
        self.place = np.uint32 if len(stream) <= 1 << 32 else np.int64
        self.ends, self.places = self._sort_pairs(stream, chunk)
        self.lists: dict[int, tuple[np.ndarray, ...]] = {}

    def _sort_pairs(self, stream: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """(ends [first_new^2], places [N - 1]): pair (l, r) begins at the places before its end and behind the last pair's."""
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
        befores, before_places, behinds, behind_places = self.lists[max(left, right)]
        sides, places, id = (behinds, behind_places, right) if left >= right else (befores, before_places, left)
        first, last = np.searchsorted(sides, [id, id + 1])
        return places[first:last]

    def merge(self, left: int, right: int, new: int) -> tuple[np.ndarray, np.ndarray]:
        """Merges a pair: (how often each token stands before `new` now, int64 [V], and behind it)."""
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
        before, behind = ids[at - 1], ids[end]
        by_before, by_behind = np.argsort(before, kind="stable"), np.argsort(behind, kind="stable")
        befores, before_places = before[by_before], at[by_before] - spans[before[by_before]]
        self.lists[new] = befores, before_places.astype(self.place), behind[by_behind], at[by_behind].astype(self.place)
        return np.bincount(before, minlength=len(spans)), np.bincount(behind, minlength=len(spans))
