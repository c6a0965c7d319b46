"""Where tasks run: in this process, on a local cluster of processes, or on a Dask scheduler elsewhere.

A task is a function of one picklable value that writes its result to a file, atomically, and returns little. It may therefore
run twice, or anywhere that shares the files.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.settings import PrepareSettings

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[int, Any]]]
_AHEAD = 3  # tasks per worker queued at the scheduler
_DEATHS = 20  # of workers per task before it fails
_STARTS = 5
_PATIENCE = 120  # s, for a scheduler to answer and a worker to connect
# Dask makes workers return freed memory at once, so that every array's pages are allocated again: a third of their time.
_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": 2**31 - 1,
    "MALLOC_MMAP_THRESHOLD_": 2**30,
    "OMP_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
}


@contextmanager
def open_workers(prepare: PrepareSettings) -> Iterator[Run]:
    """Yields `run(function, tasks)`, which yields (task number, result) as tasks end, in any order.

    Tasks of a worker that died are run again elsewhere. Raises ConfigError if Dask is needed but missing, or the scheduler
    does not answer.
    """
    if prepare.workers == 1 and not prepare.scheduler:
        yield lambda function, tasks: ((number, function(task)) for number, task in enumerate(tasks))
        return
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ConfigError(
            "prepare.workers above 1 and prepare.scheduler need Dask: install the extra, pip install -e '.[cluster]'"
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # a worker that dies only costs time
    overrides = {"distributed.scheduler.allowed-failures": _DEATHS, "distributed.nanny.pre-spawn-environ": _ENVIRONMENT}
    with dask.config.set(overrides):
        if prepare.scheduler:
            with _connect(Client, prepare.scheduler) as client:
                yield lambda function, tasks: _run(client, function, tasks)
            return
        local = {"n_workers": prepare.workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
        with _start(LocalCluster, **local, silence_logs=logging.CRITICAL, memory_limit=0) as cluster, Client(cluster) as client:
            yield lambda function, tasks: _run(client, function, tasks)


def _start(cluster: Callable, **settings: Any) -> Any:
    """Starts a cluster; a worker that dies while starting fails it with a RuntimeError, so it is retried."""
    for _ in range(_STARTS - 1):
        try:
            return cluster(**settings)
        except RuntimeError:
            continue
    return cluster(**settings)


def _connect(client: Callable, address: str) -> Any:
    try:
        connected = client(address, timeout=_PATIENCE)
        connected.wait_for_workers(1, timeout=_PATIENCE)
    except (OSError, ValueError, TimeoutError) as error:  # ValueError: an invalid address
        raise ConfigError(f"prepare.scheduler: no Dask scheduler with workers at '{address}': {error}") from error
    return connected


def _run(client: Any, function: Callable, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Keeps a few tasks per worker at the scheduler, so that a long list does not pile up there."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    waiting, sent, deaths = enumerate(tasks), {}, {}
    ended = as_completed()

    def send(number: int, task: Any) -> None:
        future = client.submit(function, task, pure=False, retries=0)
        sent[future.key] = (number, task)
        ended.add(future)

    def fill() -> None:
        room = _AHEAD * max(len(client.scheduler_info(n_workers=-1)["workers"]), 1)
        while len(sent) < room and (following := next(waiting, None)):
            send(*following)

    fill()
    while sent:
        future = next(ended)
        number, task = sent.pop(future.key)
        try:
            result = future.result()
        except KilledWorker:
            deaths[number] = deaths.get(number, 0) + 1
            if deaths[number] >= _DEATHS:
                raise
            send(number, task)
            continue
        future.release()
        yield number, result
        fill()
