"""Several processes that work as one, on the hosts of a pod or on one machine: who leads, what they agree on, how they end."""

import faulthandler
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # the coordination service's client has no public name
from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError, EcgByteError, StoppedError
from ecgbyte_jax.run.logbook import console

_WEEK = 7 * 24 * 3600  # s
_PARTING = 15  # s that a process which has failed waits for the others to hear of it
_LOST = re.compile(r"gloo|nccl|connection|peer|socket|heartbeat|unavailable|aborted|deadline_exceeded|barrier", re.IGNORECASE)
_meetings = count()  # every process comes to the same ones in the same order


def join(config: ConfigDict) -> None:
    """Makes this process one of `distributed.processes`, before anything else asks for devices; the leader alone prints.

    Raises ConfigError where the address, the count or this process' number are neither given nor found by jax (Slurm, TPU,
    GKE), or where the others do not come.
    """
    cfg = config.distributed
    if not cfg.initialize:
        return
    try:
        jax.distributed.initialize(
            coordinator_address=cfg.address or None,
            num_processes=cfg.processes or None,
            process_id=None if cfg.process < 0 else cfg.process,
            initialization_timeout=cfg.timeout,
            heartbeat_timeout_seconds=cfg.heartbeat,
            shutdown_timeout_seconds=cfg.heartbeat,
        )
    except (ValueError, RuntimeError) as error:
        found = f"address {cfg.address!r}, processes {cfg.processes}, process {cfg.process}"
        raise ConfigError(f"distributed: {found} found; jax cannot make the processes one: {_first_line(error)}") from error
    console.quiet = not leads()
    faulthandler.disable()  # or jax's own word on a process that died stands above pages of stacks


@contextmanager
def ending_together(config: ConfigDict) -> Iterator[None]:
    """Where one process fails, all end, each with one line that says which one it was and why.

    Where the connection to another process breaks, this one ends with jax's word on which has died.
    """
    done = threading.Event()
    listener = threading.Thread(target=_listen, args=(done,), daemon=True)
    listener.start()
    try:
        yield
    except StoppedError:  # of all processes, at the same step
        raise
    except Exception as error:
        if isinstance(error, JaxRuntimeError) and _LOST.search(_first_line(error)):
            print(f"process {jax.process_index()}: the others cannot be reached ({_first_line(error)}); asking which has ended",
                  file=sys.stderr, flush=True)  # fmt: skip
            time.sleep(config.distributed.heartbeat + 15)  # by then jax, or the listener, has said it and ended this process
        done.set()
        listener.join()
        _fail(error)
    finally:
        done.set()
        listener.join()


def _listen(done: threading.Event) -> None:
    """Ends this process where another one tells that it has failed."""
    while not done.wait(1):
        with suppress(JaxRuntimeError):  # nothing is told, or the connection is lost, which jax notices by itself
            told = _client().key_value_try_get("failed")
            print(f"error: {told}", file=sys.stderr, flush=True)
            _part()


def _fail(error: Exception) -> NoReturn:
    """Tells the others why this process ends, and ends it."""
    known = isinstance(error, EcgByteError | JaxRuntimeError)
    why = _first_line(error) if known else f"{type(error).__name__}: {_first_line(error)}"
    print(f"error: {why}" if known else "".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
    with suppress(JaxRuntimeError):
        _client().key_value_set("failed", f"process {jax.process_index()} has failed: {why}", allow_overwrite=True)
    _part()


def _part() -> NoReturn:
    """Ends this process when all have heard of the failure, without jax's own goodbye, which waits for those at work."""
    with suppress(JaxRuntimeError):
        _client().wait_at_barrier("parting", _PARTING * 1000)
    if leads():
        time.sleep(1)  # the others' connections are with this process: it goes last
    console.show_cursor(True)
    os._exit(1)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _client() -> Any:
    return global_state.client


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
    """Returns when every process has come to the same point, however long the others work: no collective, which gives up
    after 30 s on CPUs and 10 minutes on GPUs.
    """
    all_come(name, _WEEK)


def all_come(name: str, seconds: int) -> bool:
    """Whether every process comes to the same point within some seconds of the first one."""
    if jax.process_count() == 1:
        return True
    try:
        _client().wait_at_barrier(f"{name} {next(_meetings)}", seconds * 1000)
    except JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return False
    return True
