"""What a server of a run takes: `python -m benchmarks.serve runs/demo` (several minutes; `--minutes=10` for the load test).

It starts `main.py --stage=serve` in a process of its own, and measures as a client: the time from the upload of an ECG to its
first answer, and to the next one about it; 32 clients at once, each with ECGs of its own, that ask about one ECG many times,
or send another after every four questions, beside others that vanish or send half a request; and the server's memory over many
requests. Tokens of all segments count. Batched evaluation is `evaluate.answers.Answerer` in this process, before the server
runs; its ECGs have been cleaned and encoded, which a server does with every ECG that is sent.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from benchmarks.peers import machine
from ecgbyte_jax.evaluate.answers import Answerer
from ecgbyte_jax.evaluate.questions import choose, in_batches
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings, stored_config
from ecgbyte_jax.train.restore import open_trained
from ecgbyte_jax.train.vectors import vectors_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=1.0, help="of the load test")
    parser.add_argument("--requests", type=int, default=10_000, help="over which memory is measured")
    arguments = parser.parse_args()
    print(f"{machine()}; {arguments.run}\n")
    batched = tokens_of_evaluation(arguments.run)
    print("| measure | value |\n| --- | ---: |")
    with Server(arguments.run) as server:
        first, following = zip(*(server.first_and_next(number) for number in range(5)))
        show("first answer, from the upload: median of 5", f"{np.median(first):.2f} s")
        show("next answer about the same ECG: median of 5", f"{np.median(following):.3f} s")
        for what, questions, disturb in (
            (", 100 questions an ECG", 100, False),
            (", 4 an ECG, beside vanished and slow ones", 4, True),
        ):
            load = server.load(arguments.clients, 60 * arguments.minutes, questions, disturb)
            show(f"{arguments.clients} clients{what}: answers, errors", f"{load.answers}, {load.errors}")
            show(f"{arguments.clients} clients{what}: tokens/s", f"{load.rate:.0f}")
            show("... as a share of batched evaluation's", f"{load.rate / batched:.2f} of {batched:.0f}")
            median, high = np.percentile(load.first, [50, 95])
            show("... first token, p50, p95", f"{median:.3f} s, {high:.3f} s, ratio {high / median:.1f}")
        server.load(arguments.clients, float("inf"), 4, most=arguments.requests // 5)  # until what is kept has its full size
        before = server.resident()
        done = server.load(arguments.clients, float("inf"), 4, most=arguments.requests)
        after = server.resident()
        show(f"memory before and after {done.answers} requests", f"{before:.0f} MB, {after:.0f} MB")


def show(what: str, value: str) -> None:
    print(f"| {what} | {value} |", flush=True)


def tokens_of_evaluation(run: Path) -> float:
    """Tokens per second of batched evaluation, each question about its own ECG alone."""
    workdir = Workdir(run)
    settings = Settings.of(stored_config(workdir.config))
    settings = replace(settings, eval=replace(settings.eval, perturb=(), max_sequences=640))
    prepared = load_prepared(workdir, vectors_of(settings))
    trained = open_trained(settings, workdir, settings.eval.checkpoint)
    answerer = Answerer(settings, prepared, trained.ecg_tokenizer, trained.model, trained.mesh)
    batches = in_batches(choose(settings, prepared), settings.eval.batch_size, 1)
    rates = []
    with jax.set_mesh(trained.mesh):
        for _ in range(2):
            start, tokens = time.perf_counter(), 0
            for batch in batches:
                prompts = [(item.sequence.ecgs, item.sequence.prompt) for item in batch.items]
                tokens += sum(len(answer.tokens) for answer in answerer.answer(prompts, each=batch.each))
            rates.append(tokens / (time.perf_counter() - start))
    return rates[-1]


class Load:
    """What a load test has seen: seconds to each first token, answers, errors, tokens of all segments."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.answers = self.errors = self.tokens = 0
        self.start = time.perf_counter()
        self.rate = 0.0
        self.lock = threading.Lock()


class Server:
    """A server in a process of its own, and its clients."""

    def __init__(self, run: Path):
        self.run = run
        self.headers = sorted((run / "synthetic/ptbxl").rglob("*_hr.hea"))

    def __enter__(self) -> "Server":
        command = [sys.executable, "main.py", f"--run={self.run}", "--stage=serve", "--config.serve.port=0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = next(line for line in self.process.stdout if line.startswith("serving"))
        self.port = int(line.split(":")[2].split()[0])
        self.model, self.questions = (self.get("/v1/run")[key] for key in ("model", "questions"))
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0

    def get(self, path: str) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())

    def resident(self) -> float:
        """MB of memory in use by the server's own process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def upload(self, connection: http.client.HTTPConnection, number: int) -> str:
        header = self.headers[number % len(self.headers)]
        parts = [(path.name, path.read_bytes()) for path in (header, header.with_suffix(".dat"))]
        head = '--part\r\nContent-Disposition: form-data; name="file"; filename="{}"\r\n\r\n'
        body = b"".join(head.format(name).encode() + data + b"\r\n" for name, data in parts) + b"--part--\r\n"
        connection.request("POST", "/v1/recordings", body, {"Content-Type": "multipart/form-data; boundary=part"})
        return json.loads(connection.getresponse().read())["id"]

    def chat(self, recording: str, number: int) -> bytes:
        question = self.questions[number % len(self.questions)]
        content = [{"type": "text", "text": question}, {"type": "file", "file": {"file_id": recording}}]
        fields = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(fields | {"messages": [{"role": "user", "content": content}]}).encode()

    def ask(self, connection: http.client.HTTPConnection, recording: str, number: int) -> tuple[float, int, int]:
        """(s to the first token, status, tokens of all segments)."""
        start = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", self.chat(recording, number))
        response = connection.getresponse()
        line = response.readline()
        first = time.perf_counter() - start
        body = line + response.read()
        used = [json.loads(event[6:]).get("usage") for event in body.split(b"\n\n") if event.startswith(b"data: {")]
        return first, response.status, sum(usage["completion_tokens"] for usage in used if usage)

    def first_and_next(self, number: int) -> tuple[float, float]:
        """Seconds from the upload to the end of the first answer, and those of the next answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        start = time.perf_counter()
        recording = self.upload(connection, number)
        self.ask(connection, recording, 0)
        between = time.perf_counter()
        self.ask(connection, recording, 1)
        return between - start, time.perf_counter() - between

    def load(self, clients: int, seconds: float, questions: int, disturb: bool = False, most: int = sys.maxsize) -> Load:
        """Clients that each send an ECG and ask `questions` questions about it, again and again."""
        load = Load()

        def work(client: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            asked, recording = 0, ""
            while time.perf_counter() - load.start < seconds and load.answers < most:
                if asked % questions == 0:
                    recording = self.upload(connection, client + asked // questions * clients)
                first, status, tokens = self.ask(connection, recording, client + asked)
                with load.lock:
                    load.first.append(first)
                    load.answers += status == 200
                    load.errors += status != 200
                    load.tokens += tokens
                asked += 1

        def be_bad(client: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
            body = self.chat(self.upload(connection, client), client)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            idle = []
            while time.perf_counter() - load.start < seconds:
                with socket.create_connection(("127.0.0.1", self.port)) as gone:
                    gone.sendall(head + body)
                idle = [*idle[-8:], socket.create_connection(("127.0.0.1", self.port))]
                idle[-1].sendall((head + body)[: len(head) + client % 2 * len(body)])
                time.sleep(0.5)

        threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
        threads += [threading.Thread(target=be_bad, args=(client,)) for client in range(4 if disturb else 0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        load.rate = load.tokens / (time.perf_counter() - load.start)
        return load


if __name__ == "__main__":
    main()
