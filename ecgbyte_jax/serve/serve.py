"""Stage `serve`: a trained model in the browser and over an API, until SIGTERM or Ctrl-C."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from ecgbyte_jax.asking.worth import Worth
from ecgbyte_jax.corpora.example import Example
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.errors import ConfigError, EcgByteError
from ecgbyte_jax.evaluate.familiar import Familiar
from ecgbyte_jax.inputs.shards import read_manifest
from ecgbyte_jax.model.sharding import make_mesh
from ecgbyte_jax.prepare.corpus import read_examples
from ecgbyte_jax.run.console import console
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.train.restore import open_trained

if TYPE_CHECKING:
    from ecgbyte_jax.serve.app import Server
    from ecgbyte_jax.serve.reader import Reader
    from ecgbyte_jax.serve.store import Demo

_DEMOS = 6


def serve(settings: Settings, workdir: Workdir) -> None:
    """Answers requests until SIGTERM or Ctrl-C, after which it finishes those under way.

    Raises ConfigError where the extra `serve` is not installed or the address cannot be listened on.
    """
    try:
        import python_multipart  # noqa: F401  which Starlette asks for at the first form
        import starlette  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise ConfigError(f"--stage=serve needs {error.name}, not installed: pip install 'ecgbyte-jax[serve]'") from error
    limits = settings.serve
    listener = _listen(limits.host, limits.port)
    with opened(settings, workdir) as server:
        from ecgbyte_jax.serve.connection import patient_for, set_options

        set_options(listener, limits.upload_seconds)
        config = uvicorn.Config(
            server.app(), http=patient_for(limits.upload_seconds), log_level="warning", access_log=False, server_header=False,
            date_header=False, lifespan="off", timeout_graceful_shutdown=round(limits.closing_seconds), proxy_headers=False,
            ws="none",
        )  # fmt: skip
        host, port = listener.getsockname()[:2]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # uvicorn's own handlers hand on what they caught to these
        console.print(f"run        {workdir.root}: {server.answerer.worth.sentence}")
        console.print(f"serving    http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C ends)")
        asyncio.run(uvicorn.Server(config).serve([listener]))


@contextmanager
def opened(settings: Settings, workdir: Workdir) -> "Iterator[Server]":
    """The server of a run with its model, its engine and the processes that read files, which end with the context."""
    from ecgbyte_jax.serve.answering import Answerer
    from ecgbyte_jax.serve.app import Server
    from ecgbyte_jax.serve.engine import Engine
    from ecgbyte_jax.serve.reader import Reader
    from ecgbyte_jax.serve.static import Static
    from ecgbyte_jax.serve.store import Store

    limits = settings.serve
    lineage.trained(settings, workdir).require()
    tensor = len(jax.devices()) if settings.mesh.tensor == -1 else settings.mesh.tensor
    mesh = make_mesh(1, 1, tensor, jax.devices()[:tensor])
    with Reader(settings.signal, limits) as reader:
        trained = open_trained(settings, workdir, settings.eval.checkpoint, mesh)
        longest, most = settings.prompt.max_length, settings.eval.max_new_tokens
        sizes = longest, most, limits.slots, limits.queue, limits.cache_mb * 1_000_000
        with Engine(trained.model, mesh, trained.ids, trained.form.stops, *sizes) as engine:
            worth, familiar = Worth.of(settings, workdir), Familiar.of(workdir.shards, settings.seed)
            answerer = Answerer(settings, trained, engine, familiar, worth, read_manifest(workdir.shards).commonest)
            answerer.warm()
            store = Store(trained, limits.recordings_mb * 1_000_000, [*_demos(settings, workdir, reader)])
            name, foreign = workdir.root.resolve().name, bool(settings.data.synthetic_records)
            yield Server(name, answerer, reader, store, Static(), limits, foreign)


def _demos(settings: Settings, workdir: Workdir, reader: "Reader") -> Iterator["Demo"]:
    """A few recordings of the run's test split, each of another patient, where they are WFDB records that are still there."""
    from ecgbyte_jax.serve.store import Demo

    patients: set[str] = set()
    try:
        for example in read_examples(settings, workdir):
            record = example.records[0] if isinstance(example, Example) and example.split == "test" else None
            if not isinstance(record, WfdbRecord) or example.patient in patients or not Path(f"{record}.hea").is_file():
                continue
            patients.add(example.patient)
            name = Path(record.name).name
            yield Demo(f"demo-{len(patients)}", name, partial(reader.read_file, Path(f"{record}.hea"), f"{name}.hea"))
            if len(patients) == _DEMOS:
                return
    except (EcgByteError, OSError):  # the corpus is not, or no longer, where it was
        return


def _listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError where another process listens there."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512)
    except OSError as error:
        raise ConfigError(f"serve.port: {host}:{port} cannot be listened on: {error.strerror}; give another") from error
