"""A server in this process, on a thread, and a client of it."""

import asyncio
import base64
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn

from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.serve.app import Server
from ecgbyte_jax.serve.connection import patient_for
from ecgbyte_jax.serve.serve import opened
from ecgbyte_jax.settings import Settings, stored_config


@dataclass
class Client:
    port: int
    server: Server

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        received = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        connection.close()
        return received

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
        status, _, body = self.send(method, path, **headers)
        return status, json.loads(body) if body else None

    def post(self, path: str, value: Any, **headers: str) -> tuple[int, Any]:
        status, _, body = self.send("POST", path, json.dumps(value).encode(), Content_Type="application/json", **headers)
        return status, json.loads(body)

    def upload(self, *files: tuple[str, bytes], **fields: str) -> tuple[int, Any]:
        parts = [(f'name="file"; filename="{name}"', data) for name, data in files]
        parts += [(f'name="{name}"', value.encode()) for name, value in fields.items()]
        head = "--part\r\nContent-Disposition: form-data; {}\r\n\r\n"
        body = b"".join(head.format(about).encode() + data + b"\r\n" for about, data in parts) + b"--part--\r\n"
        status, _, answer = self.send("POST", "/v1/recordings", body, Content_Type="multipart/form-data; boundary=part")
        return status, json.loads(answer)

    def chat(self, question: str, *recordings: str, **more: Any) -> dict[str, Any]:
        """The JSON of a request about recordings by id."""
        files = [{"type": "file", "file": {"file_id": id}} for id in recordings]
        content = [{"type": "text", "text": question}, *files]
        return {"model": self.server.model, "messages": [{"role": "user", "content": content}]} | more

    def ask(self, question: str, *recordings: str, **more: Any) -> dict[str, Any]:
        status, answer = self.post("/v1/chat/completions", self.chat(question, *recordings, **more))
        assert status == 200, answer
        return answer


@contextmanager
def served(folder: Path, **limits: Any) -> Iterator[Client]:
    """The run's server with these settings `serve.*`."""
    workdir = Workdir(folder)
    settings = Settings.of(stored_config(workdir.config))
    settings = replace(settings, serve=replace(settings.serve, **limits))
    with opened(settings, workdir) as server, listening(server) as port:
        yield Client(port, server)


@contextmanager
def listening(server: Server) -> Iterator[int]:
    """The port where it listens."""
    listener = socket.create_server(("127.0.0.1", 0))
    http = patient_for(server.limits.upload_seconds)
    config = uvicorn.Config(
        server.app(), http=http, log_level="critical", lifespan="off", timeout_graceful_shutdown=5, ws="none"
    )
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(runner.serve([listener])))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        runner.should_exit = True
        thread.join()


def in_base64(data: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()
