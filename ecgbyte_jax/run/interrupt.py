"""SIGTERM, as schedulers send it before they take a machine away, and Ctrl-C: end the run after the step under way."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

from ecgbyte_jax.run.logbook import console


@contextmanager
def listening() -> Iterator[Callable[[int], bool]]:
    """Yields `asked(step)`: whether the run is to end here. Of several processes all get the same answer at the same step.

    A first Ctrl-C counts as SIGTERM, a second one ends this process at once.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as a shell has it for what runs in the background
        signal.signal(signal.SIGINT, _first)
    try:
        with _terminated() as asked:
            yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _terminated() -> Iterator[Callable[[int], bool]]:
    if jax.process_count() > 1:  # where jax itself listens for SIGTERM
        yield multihost_utils.reached_preemption_sync_point
        return
    seen = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: seen.set())
    try:
        yield lambda step: seen.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def _first(*_) -> None:
    signal.signal(signal.SIGINT, _second)
    if not console.quiet:
        _say("\nfinishing this step and saving a checkpoint; Ctrl-C again ends at once, without one")
    signal.raise_signal(signal.SIGTERM)


def _second(*_) -> None:
    """Without waiting for a checkpoint that is being written: it appears under its name only when it is whole."""
    _say("\nerror: stopped at once; the same command goes on from the last whole checkpoint")
    try:
        console.show_cursor(True)
    finally:
        os._exit(1)


def _say(text: str) -> None:
    """Past Python's own buffers, which may be in use at the moment of the signal."""
    os.write(sys.stderr.fileno(), f"{text}\n".encode())
