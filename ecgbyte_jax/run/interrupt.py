"""SIGTERM, as schedulers send it before they take a machine away: end the run behind the step under way."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


@contextmanager
def listening() -> Iterator[Callable[[int], bool]]:
    """Yields `asked(step)`: whether the run is to end here. Of several processes all get the same answer at the same step."""
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    seen = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: seen.set())
    try:
        yield lambda step: seen.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
