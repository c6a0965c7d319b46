"""Which sequences are in which row of which step, planned in NumPy from the seed and the lengths alone.

A plan needs neither data nor state: step n is the same after any interruption and for any number of hosts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ecgbyte_jax.errors import ShardsError

_WINDOW = 64  # steps within which rows are sorted by length


class TooFewRowsError(ShardsError):
    """The sequences do not fill a batch."""


@dataclass(frozen=True)
class Layout:
    """How sequences become rows of at most `max_length` tokens.

    packing: as many per row as fit. buckets: rising lengths; the rows of a step have the length of the shortest bucket that
    fits. Neither: every row has length max_length.
    """

    max_length: int
    packing: bool = False
    buckets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """The sequence numbers of each row of a step, and the rows' length in tokens."""

    rows: tuple[np.ndarray, ...]
    length: int


class Mixture:
    """Several corpora of sequences, of which each epoch draws a share.

    A corpus is drawn from in shuffled passes over all of it, which go on from epoch to epoch. An epoch draws as many sequences
    as the corpora have together, up to rounding, and at least one of each.
    parts: the corpus int [sequences] of each sequence; shares: of each corpus in what is drawn, in sum 1; 0: none of it.
    Raises ShardsError for a share of a corpus without sequences.
    """

    def __init__(self, parts: np.ndarray, shares: Sequence[float], seed: int):
        self._members = [np.flatnonzero(parts == part) if share else np.empty(0, int) for part, share in enumerate(shares)]
        self._seed, total = seed, sum(map(len, self._members))
        self.counts = [max(1, round(total * share)) if share else 0 for share in shares]  # drawn in an epoch
        empty = [part for part, count in enumerate(self.counts) if count and not len(self._members[part])]
        if empty:
            raise ShardsError(
                f"corpus {empty[0]} of {len(shares)} has no sequences, at least one expected of each in a mixture"
            )

    @property
    def passes(self) -> list[float]:
        """How often an epoch shows each sequence of each corpus, in the mean."""
        return [count / max(len(members), 1) for count, members in zip(self.counts, self._members)]

    def draw(self, epoch: int) -> np.ndarray:
        """The sequence numbers of an epoch, corpus by corpus, int64 [sum(counts)]."""
        return np.concatenate([self._draw(part, epoch * count, (epoch + 1) * count) for part, count in enumerate(self.counts)])

    def _draw(self, part: int, start: int, end: int) -> np.ndarray:
        """The draws from `start` to `end`, counted from the first of all, of one corpus."""
        members = self._members[part]
        passes = range(start // len(members), -(-end // len(members))) if end > start else range(0)
        shuffled = [np.random.default_rng([self._seed, number, 3, part]).permutation(members) for number in passes]
        first = passes.start * len(members)
        return np.concatenate([np.empty(0, int), *shuffled])[start - first : end - first]


class Plan:
    """All steps of a training over `epochs` shuffled epochs; plan[n] is step n + 1.

    lengths: int32 [sequences, 2], tokens and answer tokens of each; mixture: what an epoch draws of them, None: each once.
    Raises TooFewRowsError if the epochs do not fill a batch.
    """

    def __init__(
        self, lengths: np.ndarray, layout: Layout, batch_size: int, epochs: float, seed: int, mixture: Mixture | None = None
    ):
        self._lengths, self._tokens, self._answers = lengths, lengths[:, 0], lengths[:, 1]
        self._layout, self._batch, self._epochs, self._seed, self.mixture = layout, batch_size, epochs, seed, mixture
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)
        self._window = lru_cache(maxsize=2)(self._plan_window)
        self._ends = self._count_rows() if len(lengths) else np.zeros(1, int)
        rows = self._ends[0] * epochs
        if mixture and layout.packing:
            rows = np.interp(epochs, np.arange(len(self._ends) + 1), [0, *self._ends])
        self._steps = int(rows) // batch_size
        if not self._steps:
            raise TooFewRowsError(
                f"{len(lengths)} sequences in {self._ends[0]} rows and {epochs} epochs found for train.batch_size "
                f"{batch_size}: at least one batch expected"
            )
        # One number for the entire training, so that the step is not recompiled for every batch.
        self.answer_tokens = -(-self.most(self._answers) // 8) * 8

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Step:
        if self._layout.buckets:
            rows = self._window(step // _WINDOW)[step % _WINDOW]
            longest = max(self._tokens[row].sum() for row in rows)
            fitting = [size for size in self._layout.buckets if longest <= size < self._layout.max_length]
            return Step(rows, min(fitting, default=self._layout.max_length))
        first = step * self._batch
        return Step(tuple(self._row(row) for row in range(first, first + self._batch)), self._layout.max_length)

    def lengths(self, step: int) -> np.ndarray:
        """Returns (tokens, answer tokens) of every sequence of a step, int32 [n, 2]."""
        return self._lengths[np.concatenate(self[step].rows)]

    def _row(self, row: int) -> np.ndarray:
        epoch = int(np.searchsorted(self._ends, row, "right"))
        order, starts = self._epoch(epoch)
        row -= self._ends[epoch - 1] if epoch else 0
        return order[starts[row] : starts[row + 1]]

    def _count_rows(self) -> np.ndarray:
        """The rows of the epochs up to each one, int [epochs]; where all have the same sequences, they have as many rows."""
        epochs = int(np.ceil(self._epochs))
        if self.mixture and self._layout.packing:
            return np.cumsum([len(self._plan_epoch(epoch)[1]) - 1 for epoch in range(epochs)])
        return np.arange(1, epochs + 1) * (len(self._epoch(0)[1]) - 1)

    def _plan_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence numbers row by row, where each row starts and the last ends): 16 bytes per sequence."""
        drawn = self.mixture.draw(epoch) if self.mixture else len(self._tokens)
        order = np.random.default_rng([self._seed, epoch]).permutation(drawn)
        if not self._layout.packing:
            return order, np.arange(len(order) + 1)
        rows_of = pack(self._tokens[order], self._layout.max_length)
        shuffled = np.random.default_rng([self._seed, epoch, 1]).permutation(rows_of.max() + 1)[rows_of]
        return order[np.argsort(shuffled, kind="stable")], np.append(0, np.cumsum(np.bincount(shuffled)))

    def _plan_window(self, window: int) -> list[tuple[np.ndarray, ...]]:
        """The rows of a window of steps: sorted by length, cut into batches, the batches shuffled."""
        first = window * _WINDOW
        steps = min(_WINDOW, self._steps - first)
        rows = [self._row(row) for row in range(first * self._batch, (first + steps) * self._batch)]
        order = np.argsort([self._tokens[row].sum() for row in rows], kind="stable").reshape(steps, self._batch)
        shuffled = np.random.default_rng([self._seed, window, 2]).permutation(steps)
        return [tuple(rows[row] for row in order[step]) for step in shuffled]

    def most(self, counts: np.ndarray) -> int:
        """The largest sum, over the sequences of a row, of what each has: int [sequences]."""
        if not self._layout.packing:
            return int(counts.max())
        epochs_planned = (self._plan_epoch(epoch) for epoch in range(int(np.ceil(self._epochs))))
        return int(max(np.add.reduceat(counts[order], starts[:-1]).max() for order, starts in epochs_planned))


def pack(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Assigns items to rows of total length at most `capacity`: best fit, longest items first; int64 [n], the row of each item.

    All items of one length are placed at once, in the order of `lengths`, so it needs a few thousand NumPy steps for any
    number of items.
    """
    order = np.argsort(-lengths, kind="stable")
    rows_of, room = np.empty(len(lengths), np.int64), np.empty(0, np.int64)  # remaining in each row
    first = 0
    for length in np.unique(lengths)[::-1]:
        items = order[first : first + np.count_nonzero(lengths == length)]
        first += len(items)
        fitting = np.flatnonzero(room >= length)
        fitting = fitting[np.argsort(room[fitting], kind="stable")]  # tightest first
        new = np.arange(len(room), len(room) + len(items))
        room = np.append(room, np.full(len(items), capacity))
        places = np.repeat(np.append(fitting, new), room[np.append(fitting, new)] // length)[: len(items)]
        rows_of[items] = places
        np.subtract.at(room, places, length)
        room = room[: int(places.max()) + 1 if places.max() >= new[0] else new[0]]
    return rows_of
