"""Several processes that work as one: who leads, what they agree on, and how they end, by a failure or by a signal."""

import faulthandler
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # the coordination service's client has no public name
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

from ecgbyte_jax.errors import ConfigError, EcgByteError, StoppedError
from ecgbyte_jax.run.console import console

_WEEK = 7 * 24 * 3600  # s
_PARTING = 15  # s that a process which has failed waits until the others know of it
_LOST = re.compile(r"gloo|nccl|connection|peer|socket|heartbeat|unavailable|aborted|deadline_exceeded|barrier", re.IGNORECASE)
_meetings = count()  # every process takes part in the same ones in the same order


def join(*, address: str, processes: int, process: int, timeout: int, heartbeat: int) -> None:
    """Makes this process one of several, before anything else asks for devices; only the leader prints.

    Raises ConfigError where the address, the count or this process' number are neither given nor found by jax (Slurm, TPU,
    GKE), or where the other processes do not join.
    """
    try:
        jax.distributed.initialize(
            coordinator_address=address or None,
            num_processes=processes or None,
            process_id=None if process < 0 else process,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except (ValueError, RuntimeError) as error:
        given = f"address {address!r}, processes {processes}, process {process}"
        raise ConfigError(f"distributed: {given} found; jax cannot connect the processes: {_first_line(error)}") from error
    console.quiet = not leads()
    faulthandler.disable()  # or pages of stacks follow jax's own message about a process that died


def leads() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def agree(value: int) -> int:
    """The leader's value, in every process; all must ask, and wait for the leader for as long as it takes."""
    if jax.process_count() == 1:
        return value
    name = f"agreed {next(_meetings)}"
    if leads():
        _client().key_value_set(name, str(int(value)))
        return value
    return int(_client().blocking_key_value_get(name, _WEEK * 1000))


def wait_for_all(name: str) -> None:
    """Returns when every process has come to the same point, however long the others work.

    It is no collective: those give up after 30 s on CPUs and 10 minutes on GPUs.
    """
    all_come(name, _WEEK)


def all_come(name: str, seconds: int) -> bool:
    """Whether every process comes to the same point within `seconds` of the first one."""
    if jax.process_count() == 1:
        return True
    try:
        _client().wait_at_barrier(f"{name} {next(_meetings)}", seconds * 1000)
    except JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return False
    return True


# The end by a failure.


@contextmanager
def ending_together(heartbeat: int) -> Iterator[None]:
    """Where one process fails, all end, each with one line that says which process it was and why.

    Where the connection to another process breaks, this one ends with jax's message about the one that has died.
    """
    done = threading.Event()
    listener = threading.Thread(target=_listen, args=(done,), daemon=True)
    listener.start()
    try:
        yield
    except StoppedError:  # raised by all processes, at the same step
        raise
    except Exception as error:
        if isinstance(error, JaxRuntimeError | ValueError) and _LOST.search(_first_line(error)):  # CPUs raise both kinds
            lost = f"the others cannot be reached ({_first_line(error)}); asking which has ended"
            print(f"process {jax.process_index()}: {lost}", file=sys.stderr, flush=True)
            time.sleep(heartbeat + 15)  # by then jax, or the listener, has reported it and ended this process
        done.set()
        listener.join()
        _fail(error)
    finally:
        done.set()
        listener.join()


def _listen(done: threading.Event) -> None:
    """Ends this process where another one reports that it has failed."""
    while not done.wait(1):
        with suppress(JaxRuntimeError):  # nothing was reported, or the connection is lost, which jax notices itself
            failure = _client().key_value_try_get("failed")
            print(f"error: {failure}", file=sys.stderr, flush=True)
            _part()


def _fail(error: Exception) -> NoReturn:
    """Reports to the others why this process ends, and ends it."""
    known = isinstance(error, EcgByteError | JaxRuntimeError)
    why = _first_line(error) if known else f"{type(error).__name__}: {_first_line(error)}"
    print(f"error: {why}" if known else "".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
    with suppress(JaxRuntimeError):
        _client().key_value_set("failed", f"process {jax.process_index()} has failed: {why}", allow_overwrite=True)
    _part()


def _part() -> NoReturn:
    """Ends this process once all know of the failure, without jax's own shutdown, which waits for those at work."""
    with suppress(JaxRuntimeError):
        _client().wait_at_barrier("parting", _PARTING * 1000)
    if leads():
        time.sleep(1)  # the others are connected to this process, so it ends last
    console.show_cursor(True)
    os._exit(1)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _client() -> Any:
    return global_state.client


# The end by SIGTERM, as schedulers send it before they take a machine away, or by Ctrl-C.


@contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Yields `requested(step)`: whether the run is to end after this step. All processes get the same answer at a step.

    The first Ctrl-C counts as SIGTERM, the second one ends this process at once.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as shells set it for background jobs
        signal.signal(signal.SIGINT, _on_first_interrupt)
    try:
        with _terminations() as requested:
            yield requested
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _terminations() -> Iterator[Callable[[int], bool]]:
    if jax.process_count() > 1:  # where jax itself listens for SIGTERM
        yield multihost_utils.reached_preemption_sync_point
        return
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield lambda step: received.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def _on_first_interrupt(*_: object) -> None:
    signal.signal(signal.SIGINT, _on_second_interrupt)
    if not console.quiet:
        _write_unbuffered("\nfinishing this step and saving a checkpoint; Ctrl-C again ends at once, without one")
    signal.raise_signal(signal.SIGTERM)


def _on_second_interrupt(*_: object) -> None:
    """Does not wait for a checkpoint that is being written: it gets its name only when it is whole."""
    _write_unbuffered("\nerror: stopped at once; the same command goes on from the last whole checkpoint")
    try:
        console.show_cursor(True)
    finally:
        os._exit(1)


def _write_unbuffered(text: str) -> None:
    """Python's own buffers may be in use at the moment of the signal."""
    os.write(sys.stderr.fileno(), f"{text}\n".encode())
