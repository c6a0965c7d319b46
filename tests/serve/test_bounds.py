"""What could grow without end, or wait without end, in a server."""

import asyncio
import signal
import socket
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ecgbyte_jax.errors import ConfigError, SettingsError
from ecgbyte_jax.model.sharding import make_mesh
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.serve import engine, reader, serve, store
from ecgbyte_jax.serve.app import Server
from ecgbyte_jax.serve.connection import set_options
from ecgbyte_jax.serve.engine import Engine, Job, Row
from ecgbyte_jax.serve.errors import ApiError
from ecgbyte_jax.serve.guard import Guard
from ecgbyte_jax.serve.store import Store
from ecgbyte_jax.settings import ServeSettings, Settings


def test_requests_at_a_time_have_a_bound_together():
    async def ask(release: asyncio.Event) -> None:
        async def app(scope, receive, send) -> None:
            await receive()
            await release.wait()

        guard = Guard(app, ServeSettings(upload_mb=1, incoming_mb=2))
        scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost")]}

        async def receive() -> dict:
            return {"type": "http.request", "body": bytes(900_000), "more_body": False}

        running = [asyncio.ensure_future(guard(scope, receive, None)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(ApiError, match="at a time") as refused:
            await guard(scope, receive, None)
        assert refused.value.status == 503 and refused.value.response().headers["retry-after"] == "1"
        release.set()
        await asyncio.gather(*running, guard(scope, receive, None))

    asyncio.run(ask(asyncio.Event()))
    with pytest.raises(SettingsError, match="incoming_mb: 1 found, at least upload_mb 2 expected"):
        ServeSettings(upload_mb=2, incoming_mb=1)


def test_a_client_that_takes_nothing_of_its_answer_is_dropped():
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this system has no such time")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        set_options(listener, 0.3)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as answering:
            answering.settimeout(30)
            with pytest.raises(OSError, match="Connection timed out"):
                answering.sendall(bytes(50_000_000))


def test_an_answer_does_not_wait_for_its_beginning_to_be_acknowledged():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        set_options(listener, 30.0)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as answering:
            assert answering.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def started(monkeypatch, tmp_path, code: str) -> reader._Process:
    """A reader's process that runs this code instead, with room for 1 MB."""
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\n{code}")
    program.chmod(0o755)
    monkeypatch.setattr(reader.sys, "executable", str(program))
    return reader._Process(1)


def test_what_a_reader_writes_in_pieces_is_put_together(monkeypatch, tmp_path):
    code = """
import struct, sys, time
answer = b'ready\\n' + b'{"shape": [1, 1, 2]}\\n' + struct.pack('<2d', 1.5, 2.5) + b'{"error": "none"}\\n'
for place in range(0, len(answer), 5):
    sys.stdout.buffer.write(answer[place : place + 5])
    sys.stdout.buffer.flush()
    time.sleep(0.005)
sys.stdin.read()
"""
    process = started(monkeypatch, tmp_path, code)
    about, segments = process.ask({}, 30.0)
    assert about == {"shape": [1, 1, 2]} and segments.tolist() == [[[1.5, 2.5]]]
    assert process.ask({}, 30.0)[0] == {"error": "none"}
    process.kill()


@pytest.mark.parametrize("piece", [1 << 16, 1])
def test_a_reader_that_never_ends_a_line_is_given_up(monkeypatch, tmp_path, piece):
    code = f"import sys\nprint('ready', flush=True)\nwhile True: sys.stdout.buffer.write(bytes({piece})); sys.stdout.flush()"
    process, start = started(monkeypatch, tmp_path, code), time.monotonic()
    with pytest.raises(reader._EndedError, match="takes too"):
        process.ask({}, 60.0 if piece > 1 else 1.0)
    assert time.monotonic() - start < 50 and len(process._received) <= 2_100_000
    process.kill()


def test_pairs_of_recordings_stay_within_the_bytes_of_recordings(monkeypatch):
    encoded = SimpleNamespace(segments=[[np.zeros(10)]])
    monkeypatch.setattr(store, "Subject", SimpleNamespace(of=lambda trained, group: SimpleNamespace(**vars(encoded))))
    kept = Store(None, 1000, [])
    ids = [kept.add(SimpleNamespace(segments=np.zeros(1), clean_rate=250.0)) for _ in range(10)]
    other_rate = kept.add(SimpleNamespace(segments=np.zeros(1), clean_rate=500.0))
    with pytest.raises(ApiError, match="recordings at 250 and 500 Hz found"):
        kept.subject((ids[0], other_rate))
    first = kept.subject((ids[0], ids[0]))
    for id in ids:
        for other in ids:
            kept.subject((id, other))
            assert kept.subject((id, other)) is kept.subject((id, other))
    assert len(kept._subjects) == 1000 // 80 and kept.subject((ids[0], ids[0])) is not first
    kept.remove(ids[0])
    assert not any(ids[0] in pair for pair in kept._subjects)


def test_what_ends_the_engine_ends_every_wait_for_it(monkeypatch):
    class Full:
        def __init__(self, *_: object) -> None: ...

        def warm(self) -> None:
            time.sleep(0.1)
            raise MemoryError("no room for the slots")

    monkeypatch.setattr(engine, "Slots", Full)
    model = SimpleNamespace(config=SimpleNamespace(rope_scaling=None))
    heard, mesh = threading.Event(), make_mesh(1, 1, 1, jax.devices()[:1])
    with Engine(model, mesh, SimpleNamespace(vectors=0), (7,), 60, 6, 3, 10, 0) as answering:
        job = Job([Row(np.zeros(3, np.int32), 1, None, 2)], heard.set)
        answering.submit(job)
        assert heard.wait(30) and isinstance(job.failure, MemoryError)
        with pytest.raises(MemoryError):
            answering.submit(job)
        assert answering.ended
        server = SimpleNamespace(answerer=SimpleNamespace(engine=answering))
        with pytest.raises(ApiError, match="start it again"):
            asyncio.run(Server.healthz(server, None))


def test_a_start_can_be_interrupted(monkeypatch, tmp_path):
    def opened(*_: object) -> None:
        assert signal.getsignal(signal.SIGINT) is before[0] and signal.getsignal(signal.SIGTERM) is before[1]
        raise ConfigError("seen")

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(serve, "opened", opened)
    with pytest.raises(ConfigError, match="seen"):
        serve.serve(Settings(serve=ServeSettings(port=0)), Workdir(tmp_path))
