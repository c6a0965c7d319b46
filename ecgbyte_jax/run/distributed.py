"""Several processes that work as one, on the hosts of a pod or on one machine: who leads, and what they agree on."""

import faulthandler
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError, LockedError
from ecgbyte_jax.run.lock import holding
from ecgbyte_jax.run.logbook import console


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
        raise ConfigError(f"distributed: {found} found; jax cannot make the processes one: {error}") from error
    console.quiet = not leads()
    faulthandler.disable()  # or jax's own word on a process that died stands above pages of stacks


@contextmanager
def ending_with_the_others(config: ConfigDict) -> Iterator[None]:
    """Where the connection to another process breaks, this one ends too, with jax's word on which has died."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        why = str(error).splitlines()[0]
        print(f"process {jax.process_index()}: another process has ended ({why}); asking which", file=sys.stderr, flush=True)
        time.sleep(config.distributed.heartbeat + 15)  # by then jax has said it and ended this process
        os._exit(1)  # without waiting for the others


@contextmanager
def holding_together(workdir: Path) -> Iterator[None]:
    """The leader holds the run folder's lock for all; where it is refused all raise LockedError, or they would wait."""
    refused = None
    with ExitStack() as held:
        if leads():
            try:
                held.enter_context(holding(workdir))
            except LockedError as error:
                refused = error
        if agree(int(refused is not None)):
            raise refused or LockedError(f"{workdir}: another command is at work in this run folder; process 0 names it")
        yield


def leads() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def agree(value: int) -> int:
    """The leader's value, in every process; all must ask."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def wait_for_all(name: str) -> None:
    """Returns when every process has come to the same point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
