"""Continuous batching: the questions of all users share the steps of one model, and join and leave it between two of them.

One thread owns the model. The keys and values of the ECGs that were read last are kept for the next question about them.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from ecgbyte_jax.inputs.prompt import PromptIds
from ecgbyte_jax.model.config import LongScaling
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.serve.slots import Read, Slots

_BETWEEN = 2048  # tokens of prompts that may be read between two steps, so that nobody waits long for the next token


@dataclass(eq=False)
class Row:
    """One prompt int32 [n], at least one token, and what has been generated after it.

    ecg: how many of its first tokens are kept for the next question; signals: float32 [1, E, 12, L] of its ECGs, where a model
    reads vectors; most: new tokens; ended: by a stop id, `stopped`, or by `most`.
    """

    prompt: np.ndarray
    ecg: int
    signals: np.ndarray | None
    most: int
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    ended: bool = False
    stopped: bool = False


@dataclass(eq=False)
class Job:
    """The rows of one question. heard: called in the engine's thread after a step that changed a row, and after a failure."""

    rows: Sequence[Row]
    heard: Callable[[], None]
    cancelled: bool = False
    failure: Exception | None = None
    waiting: deque[Row] = field(default_factory=deque)


class BusyError(Exception):
    """More questions wait than may."""


class Engine:
    """The thread that answers jobs; `with` it, jobs may be given by any thread."""

    def __init__(
        self, model: Decoder, mesh: Mesh, ids: PromptIds, stops: tuple[int, ...], longest: int, most: int, slots: int,
        queue: int, cache_bytes: int
    ):  # fmt: skip
        """longest: tokens of a prompt; most: new tokens; queue: jobs that may wait; cache_bytes: of ECGs kept."""
        with jax.set_mesh(mesh):
            self._slots = Slots(model, slots, longest, most, ids.vectors > 0)
        self._mesh, self._stops, self._queue = mesh, frozenset(stops), queue
        # Rotary frequencies that depend on the length of the prompt make keys that no other prompt shares.
        self._by_length = isinstance(model.config.rope_scaling, LongScaling)
        self._kept = _Kept(cache_bytes)
        self._last, self._lengths = np.zeros(slots, np.int32), np.zeros(slots, np.int32)
        self._rows: list[tuple[Job, Row] | None] = [None] * slots
        self._jobs: deque[Job] = deque()  # with rows that wait for a slot
        self._changed = threading.Condition()
        self._closing = False
        self._failure: Exception | None = None  # that ended the thread
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> "Engine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Lets a job wait for slots; raises BusyError where too many wait, and what ended the thread, if it has."""
        with self._changed:
            if self._failure:
                raise self._failure
            if len(self._jobs) >= self._queue:
                raise BusyError
            job.waiting.extend(job.rows)
            self._jobs.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Frees the slots of a job that nobody waits for any more."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Jobs with rows that have no slot yet."""
        return len(self._jobs)

    @property
    def ended(self) -> bool:
        """Whether a fault has ended the thread."""
        return self._failure is not None

    def _run(self) -> None:
        try:
            with jax.set_mesh(self._mesh):
                self._slots.warm()
                while self._wait():
                    self._drop_cancelled()
                    for job in {id(job): job for job in (*self._fill(), *self._step())}.values():
                        job.heard()
        except Exception as error:  # the thread ends, and all who wait are told, or they would wait for ever
            self._end(error)

    def _end(self, error: Exception) -> None:
        """Gives up all jobs, and those that come."""
        with self._changed:
            self._failure = error
            jobs = {id(job): job for job in (*self._jobs, *(held[0] for held in self._rows if held))}.values()
        for job in jobs:
            job.failure = error
            job.heard()

    def _wait(self) -> bool:
        """Whether there is something to do; waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or any(self._rows) or self._closing)
            return not self._closing

    def _drop_cancelled(self) -> None:
        with self._changed:
            for job in [job for job in self._jobs if job.cancelled]:
                self._jobs.remove(job)
        for slot, held in enumerate(self._rows):
            if held and held[0].cancelled:
                self._rows[slot] = None

    def _next(self) -> tuple[Job, Row] | None:
        """A row of the job whose turn it is: jobs take turns, so that a long recording does not keep the others waiting."""
        with self._changed:
            if not self._jobs:
                return None
            job = self._jobs.popleft()
            row = job.waiting.popleft()
            if job.waiting:
                self._jobs.append(job)
            return job, row

    def _fill(self) -> list[Job]:
        """Fills empty slots with waiting rows; returns the jobs that failed."""
        failed, tokens = [], 0
        for slot, held in enumerate(self._rows):
            if held is not None or tokens > _BETWEEN:
                continue
            if (taken := self._next()) is None:
                break
            job, row = taken
            try:
                tokens += self._read(slot, row)
                self._rows[slot] = taken
            except JaxRuntimeError as error:  # such as no memory for one prompt: the others go on
                job.failure = error
                job.cancelled = True
                failed.append(job)
        return failed

    def _read(self, slot: int, row: Row) -> int:
        """Reads a prompt into a slot; returns how many tokens were read."""
        length, read = len(row.prompt), 0
        ecg = min(row.ecg, length - 1)
        key = (row.prompt[:ecg].tobytes(), b"" if row.signals is None else row.signals.tobytes(), self._by_length and length)
        prompt = self._kept.get(key)
        if prompt is None:
            prompt, read = self._slots.read(row.prompt[:ecg], length, signals=row.signals), ecg
            self._kept.put(key, prompt)
        rest = row.prompt[ecg:-1]
        if len(rest):
            prompt, read = self._slots.read(rest, length, prompt), read + len(rest)
        self._slots.fill(slot, prompt)
        self._last[slot], self._lengths[slot] = row.prompt[-1], length
        return read

    def _step(self) -> list[Job]:
        """One token for every slot that is filled; returns the jobs of them."""
        running = np.array([held is not None for held in self._rows])
        if not running.any():
            return []
        try:
            tokens, log_probs = self._slots.step(self._last, running, self._lengths)
        except JaxRuntimeError as error:
            return self._fail(error)
        heard = []
        for slot, held in enumerate(self._rows):
            if held is None:
                continue
            job, row = held
            token = int(tokens[slot])
            row.tokens.append(token)
            row.log_probs.append(float(log_probs[slot]))
            self._last[slot] = token
            row.stopped = token in self._stops
            if row.stopped or len(row.tokens) >= row.most:
                row.ended, self._rows[slot] = True, None
            heard.append(job)
        return heard

    def _fail(self, error: Exception) -> list[Job]:
        """Gives up all running jobs; the next ones find empty slots."""
        failed = [held[0] for held in self._rows if held is not None]
        for job in failed:
            job.failure, job.cancelled = error, True
        self._rows = [None] * len(self._rows)
        self._slots.clear()
        return failed


class _Kept:
    """What was read of the latest ECGs, within a number of bytes."""

    def __init__(self, most: int):
        self._most, self._bytes = most, 0
        self._reads: OrderedDict[tuple, Read] = OrderedDict()

    def get(self, key: tuple) -> Read | None:
        if key in self._reads:
            self._reads.move_to_end(key)
        return self._reads.get(key)

    def put(self, key: tuple, read: Read) -> None:
        self._reads[key] = read
        self._bytes += read.bytes
        while self._bytes > self._most and self._reads:
            self._bytes -= self._reads.popitem(last=False)[1].bytes
