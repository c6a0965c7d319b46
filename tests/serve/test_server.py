"""The API over a small run: what is answered, in which form, and to whom."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from openai import BadRequestError, OpenAI

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.errors import SettingsError
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.serve.serve import _demos
from ecgbyte_jax.settings import ServeSettings, Settings, default_config, stored_config
from tests.launch import ROOT
from tests.serve.service import Client, in_base64, listening, served
from tests.stages.asked import asked

QUESTION = "Is the heart rate above 90 beats per minute?"


@pytest.fixture(scope="module")
def client(finished) -> Client:
    with served(finished[0], slots=4) as client:
        yield client


@pytest.fixture(scope="module")
def files(finished) -> list[Path]:
    return sorted((finished[0] / "synthetic/ptbxl").rglob("*_hr.hea"))[:6]


@pytest.fixture(scope="module")
def ids(client, files) -> list[str]:
    return [send(client, file) for file in files]


def send(client: Client, header: Path) -> str:
    signals = header.with_suffix(".dat")
    status, recording = client.upload((header.name, header.read_bytes()), (signals.name, signals.read_bytes()))
    assert status == 201, recording
    return recording["id"]


def events(body: bytes) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_answers_equal_those_of_ask_while_others_are_served(client, finished, files, ids):
    questions = list(client.server.answerer.familiar.questions)
    config = stored_config(finished[0] / "config.json")
    expected = asked(config, finished[0], [str(file.with_suffix("")) for file in files], questions)
    pairs = [(question, id) for question in questions for id in ids]
    with ThreadPoolExecutor(12) as pool:
        answers = [*pool.map(lambda pair: client.ask(*pair), pairs)]
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == [text for row in expected for text in row]
    assert {len(answer["ecg"]["segments"]) for answer in answers} == {5}


def test_openais_client_is_answered_at_once_and_token_by_token(client, files, ids):
    openai = OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="none", max_retries=0)
    assert [model.id for model in openai.models.list()] == [client.server.model]
    request = client.chat(QUESTION, ids[0], logprobs=True)
    whole = openai.chat.completions.create(**request)
    chunks = [*openai.chat.completions.create(**request, stream=True, extra_body={"ecg": {"segment": whole.ecg["segment"]}})]
    text = whole.choices[0].message.content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text == chunks[-1].ecg["answer"]
    tokens = [entry.logprob for entry in whole.choices[0].logprobs.content]
    assert [chunk.choices[0].logprobs.content[0].logprob for chunk in chunks if chunk.choices[0].logprobs] == tokens
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    table = {"filename": "ecg.npy", "file_data": in_base64(b"not an array")}
    content = [{"type": "text", "text": QUESTION}, {"type": "file", "file": table}]
    with pytest.raises(Exception, match=r"ecg\.npy: .*") as refused:
        openai.chat.completions.create(model=client.server.model, messages=[{"role": "user", "content": content}])
    assert refused.value.status_code == 422
    with pytest.raises(BadRequestError, match=r"temperature: 0\.7 found, 0 expected"):
        openai.chat.completions.create(**request, temperature=0.7)


def test_a_streams_last_event_tells_how_the_answer_was_elected(client, ids):
    whole = client.ask(QUESTION, ids[0])
    options = {"stream": True, "stream_options": {"include_usage": True}}
    status, headers, body = client.send(
        "POST", "/v1/chat/completions", json.dumps(client.chat(QUESTION, ids[0], **options)).encode()
    )
    *chunks, last, usage = events(body)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    assert last["ecg"] == whole["ecg"] and usage["usage"] == whole["usage"] and usage["choices"] == []
    first = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert first == whole["ecg"]["segments"][0]["answer"]
    words = whole["ecg"]["words"]
    assert " ".join(word["text"] for word in words) == whole["ecg"]["answer"]


def test_attention_is_relative_to_its_largest_and_of_two_recordings_for_both(client, ids):
    answer = client.ask(QUESTION, *ids[:2])["ecg"]["answer"] or "yes no"
    request = {"recordings": ids[:2], "question": QUESTION, "answer": "yes or no", "segment": 1}
    status, found = client.post("/v1/attention", request)
    assert status == 200, (found, answer)
    weights = [weight for ecg in found["answer"].values() for lead in ecg.values() for weight in lead]
    assert set(found["answer"]) == {"0", "1"} and max(weights) == 1 and min(weights) >= 0
    assert len(found["by_word"]) == len(found["words"]) == 3 and found["leads"][0] == "I"
    assert len(found["answer"]["0"]["V6"]) == found["rate_hz"] * 2 and found["segment"] == {"start_s": 2, "end_s": 4}
    status, found = client.post("/v1/controls", request)
    assert status == 200 and set(found) == {"commonest", "other"}
    assert found["other"]["recording"] and 0 < found["other"]["probability"] <= 1


def test_a_run_tells_what_it_accepts_and_a_recording_what_was_read(client, ids):
    status, run = client.get("/v1/run")
    assert status == 200 and run["note"] == "research software, not a medical device" and run["model"] == client.server.model
    assert 0 < len(run["questions"]) == run["questions_total"] and run["limits"]["seconds"] == 300
    status, recording = client.get(f"/v1/recordings/{ids[0]}")
    assert recording["seconds"] == 10 and recording["rate_hz"] == 500 and len(recording["segments"]) == 5
    assert set(recording["signal"]["microvolts"]) == {*recording["signal"]["leads"]}
    status, demos = client.get("/v1/recordings")
    assert all(demo["demo"] for demo in demos["data"]) and client.get(f"/v1/recordings/{demos['data'][0]['id']}")[0] == 200
    sent = send_again = client.get(f"/v1/recordings/{ids[5]}")[1]["id"]
    assert (
        client.get(f"/v1/recordings/{sent}", "DELETE") == (204, None) and client.get(f"/v1/recordings/{send_again}")[0] == 404
    )


def test_the_api_is_described_without_anything_from_elsewhere(client):
    status, described = client.get("/openapi.json")
    assert status == 200 and {"/v1/chat/completions", "/v1/attention"} <= set(described["paths"])
    _, headers, page = client.send("GET", "/docs")
    assert b"http" not in page.replace(b"HTTP", b"") and b"/v1/chat/completions" in page
    assert "frame-ancestors 'none'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer" and "access-control-allow-origin" not in headers


def test_a_vanished_client_frees_its_slots_and_costs_nobody_an_answer(client, ids):
    rows = client.server.answerer.engine._rows
    request = json.dumps(client.chat(QUESTION, ids[1], stream=True)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(request)}\r\n\r\n".encode()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(head + request)
    with socket.create_connection(("127.0.0.1", client.port)) as half:
        half.sendall(head + request[:10])
        half.shutdown(socket.SHUT_WR)
        assert client.ask(QUESTION, ids[1])["choices"]
    until = time.monotonic() + 10
    while any(rows) or client.server.answerer.engine.waiting:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_hosts_sites_and_tokens_that_are_not_ours_are_refused(client, finished):
    assert client.get("/v1/run", Host="evil.example")[0] == 403
    assert client.get("/v1/run", Host=f"localhost:{client.port}")[0] == 200
    for origin in ("http://evil.example", "null", "http://[", f"http://127.0.0.1:{client.port}@evil.example"):
        assert client.get("/v1/run", Origin=origin)[0] == 403
    assert client.get("/v1/run", Origin=f"http://127.0.0.1:{client.port}")[0] == 200
    server = replace(client.server, limits=replace(client.server.limits, token="secret"))
    with listening(server) as port:
        guarded = Client(port, server)
        for headers in ({}, {"Authorization": "secret"}, {"Authorization": "Bearer other"}, {"Authorization": "Bearer \xff"}):
            status, error = guarded.get("/v1/run", **headers)
            assert status == 401 and error["error"]["code"] == "invalid_api_key"
        assert guarded.get("/v1/run", Authorization="Bearer secret")[0] == 200 and guarded.get("/healthz")[0] == 200


def test_other_machines_are_served_only_with_a_token():
    with pytest.raises(SettingsError, match=r"host: '0\.0\.0\.0' found without serve\.token"):
        ServeSettings(host="0.0.0.0")
    assert ServeSettings(host="0.0.0.0", token="x").token == "x" and ServeSettings(host="::", insecure=True).insecure


def test_a_server_that_is_told_to_end_finishes_its_answers(finished):
    command = [sys.executable, "main.py", f"--run={finished[0]}", "--stage=serve", "--config.serve.port=0"]
    environment = os.environ | {"XLA_FLAGS": ""}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = next(line for line in process.stdout if line.startswith("serving"))
    port = int(line.split(":")[2].split()[0])
    model = Path(finished[0]).name
    content = [{"type": "text", "text": QUESTION}, {"type": "file", "file": {"file_id": "demo-1"}}]
    request = json.dumps({"model": model, "messages": [{"role": "user", "content": content}], "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(request)}\r\n\r\n"
        connection.sendall(head.encode() + request)
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert b"data: [DONE]" in received
    assert process.wait(60) == 0 and process.stderr.read() == ""


def test_a_run_on_a_mixture_offers_recordings_of_its_test_split(tmp_path):
    config = default_config()
    config.data.corpus, config.data.mixture, config.data.root = (
        "mixture",
        {"ptbxl": 1.0, "ecg_qa": 1.0},
        str(tmp_path / "ptbxl"),
    )
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 40, 0)
    demos = [*_demos(Settings.of(config), Workdir(tmp_path), SimpleNamespace(read_file=print))]
    assert [demo.id for demo in demos] == [f"demo-{n + 1}" for n in range(len(demos))] and len({d.name for d in demos}) > 1
