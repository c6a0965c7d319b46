"""What strangers send: each is refused in one form, without a path of the server, and the next request is answered."""

import io
import json
import re
import signal
import socket
import struct
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from ecgbyte_jax.ecg.records import LEADS, read_record
from ecgbyte_jax.errors import RecordError
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.serve.reader import Reader
from ecgbyte_jax.settings import ServeSettings, Settings, stored_config
from tests.serve.service import Client, in_base64, served

QUESTION = "Is the heart rate above 90 beats per minute?"
BOMB = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">%s]><RestingECG>&j;</RestingECG>' % b"".join(
    b'<!ENTITY %c "%s">' % (after, b"&%c;" % before * 10) for before, after in zip(b"abcdefghi", b"bcdefghij")
)


@pytest.fixture(scope="module")
def client(finished) -> Client:
    with served(finished[0], slots=4, upload_mb=4, upload_seconds=1.0, read_seconds=10.0, read_mb=768) as client:
        yield client


@pytest.fixture(scope="module")
def header(finished) -> Path:
    return min((finished[0] / "synthetic/ptbxl").rglob("*_hr.hea"))


@pytest.fixture(scope="module")
def good(client, header) -> str:
    status, recording = client.upload((header.name, header.read_bytes()), (f"{header.stem}.dat", signals_of(header)))
    assert status == 201, recording
    return recording["id"]


@pytest.fixture(autouse=True)
def still_answering(client, good):
    yield
    assert client.ask(QUESTION, good)["choices"][0]["finish_reason"] in ("stop", "length")


def signals_of(header: Path) -> bytes:
    return header.with_suffix(".dat").read_bytes()


def npy(signal: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, signal)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ecg.csv", bytes(10_000_000))
    return buffer.getvalue()


def inflating() -> bytes:
    """A MATLAB file whose one element is 600 MB of zeros."""
    packer = zlib.compressobj(9)
    size = 600_000_000
    head = struct.pack("<2I", 14, size)
    parts = [packer.compress(head), *(packer.compress(bytes(1 << 24)) for _ in range(size >> 24)), packer.flush()]
    packed = b"".join(parts)
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<2I", 15, len(packed)) + packed


def picture() -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.7"), generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", Dataset(), file_meta=meta, preamble=bytes(128))
    dataset.Modality, dataset.PatientName = "OT", "Mustermann"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def wave(header: Path) -> np.ndarray:
    return read_record(header).signal


REFUSED = {
    "a PDF": (lambda h: ("ecg.pdf", b"%PDF-1.7\n"), "a PDF found"),
    "an empty file": (lambda h: ("ecg.csv", b""), "an empty file found"),
    "an XML bomb": (lambda h: ("ecg.xml", BOMB), "XML with entities found"),
    "a DICOM image": (lambda h: ("ecg.dcm", picture()), "without a waveform found"),
    "3 leads": (lambda h: ("ecg.npy", npy(wave(h)[:3]), "I,II,III"), r"leads .* are missing"),
    "40 Hz": (lambda h: ("ecg.npy", npy(wave(h)[:, ::12]), "", "40"), "at 40 Hz"),
    "300 mV": (lambda h: ("ecg.npy", npy(wave(h) * 300)), "looks like microvolts: give units "),
    "NaN": (lambda h: ("ecg.npy", npy(np.full_like(wave(h), np.nan))), "NaN"),
    "a ZIP bomb": (lambda h: ("ecg.zip", zipped()), "a ZIP archive found"),
    "a bomb in a MATLAB file": (lambda h: ("ecg.mat", inflating()), "memory|not readable"),
    "a day": (lambda h: ("ecg.npy", npy(np.tile(wave(h)[:, ::10].astype(np.float16), 35)), "", "50"), "at most 300 s expected"),
    "text with quotes": (lambda h: ("ecg.hea", b"O'Mustermann \"E'\" 1\n"), r"ecg\.hea: a text found"),
    "text with one quote": (lambda h: ("ecg.csv", b"I,II\nMustermann,E'rika\n"), r"ecg\.csv, row 2: a text found"),
    "text in place of samples": (lambda h: ("ecg.csv", b"I,II\nMustermann,Erika\n"), r"ecg\.csv, row 2: a text found"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unusable_file_is_refused_by_its_own_name(client, header, case):
    make, message = REFUSED[case]
    name, data, *more = make(header)
    leads, rate = (*more, "", "")[:2] if len(more) > 1 else ((more or [""])[0], "")
    fields = {"leads": leads or ",".join(LEADS), "sample_rate": rate or "500"} if name.endswith((".npy", ".mat")) else {}
    status, error = client.upload((name, data), **fields)
    assert status == 422 and set(error) == {"error"} and set(error["error"]) == {"message", "type", "param", "code"}
    assert re.search(message, error["error"]["message"]), error
    told = json.dumps(error)
    assert name in told and not any(word in told for word in ("/tmp", "/dev", "ecgbyte-", "Mustermann", "--units"))


def test_names_are_labels_and_never_paths(client, header):
    data = npy(wave(header))
    for name in ("../../etc/passwd.npy", "/etc/cron.d/x.npy", "..\\..\\x.npy", "a\x00b.npy", "x" * 5000 + ".npy", ".."):
        status, answer = client.upload((name.replace("\x00", "%00"), data), leads=",".join(LEADS), sample_rate="500")
        if len(name) > 100 and status == 400:
            continue
        assert status == 201 and "/" not in answer["name"] and "\\" not in answer["name"] and len(answer["name"]) <= 100
    text = header.read_text()
    for inside in ("/etc/passwd", "../../etc/passwd"):
        wild = text.replace(f"{header.stem}.dat", inside)
        status, answer = client.upload((header.name, wild.encode()), (f"{header.stem}.dat", signals_of(header)))
        assert status == 422 and "root:" not in json.dumps(answer)
    status, answer = client.upload(("../a.hea", header.read_bytes()), ("b c.dat", b""))
    assert status == 422 and not list(Path("/dev/shm").glob("ecgbyte-*"))


def test_large_and_slow_requests_are_cut_short(client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        head = "POST /v1/recordings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000000\r\n\r\n"
        connection.sendall(head.encode() + bytes(1000))
        assert b" 413 " in connection.recv(1 << 16)
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(OSError), ThreadPoolExecutor(1) as pool:
            answer = pool.submit(connection.recv, 1 << 16)
            for _ in range(100):
                connection.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        assert b" 413 " in answer.result()
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/attention HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in connection.recv(1 << 16)
    for begun in (b"", b"GET / HTTP/1.1\r\nHost: loc", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /"):
        with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection, suppress(ConnectionResetError):
            connection.sendall(begun)
            while connection.recv(1 << 16):
                pass


def test_files_that_take_long_keep_no_question_waiting(client, good, monkeypatch):
    read, go_on = Reader.read, threading.Event()
    monkeypatch.setattr(Reader, "read", lambda *task: go_on.wait(60) and read(*task))
    with ThreadPoolExecutor(33) as pool:  # more than the threads of any machine
        waiting = [pool.submit(client.upload, ("a.csv", b"x")) for _ in range(33)]
        try:
            assert client.ask(QUESTION, good)["choices"]
            assert not any(upload.done() for upload in waiting)
        finally:
            go_on.set()
        assert {upload.result()[0] for upload in waiting} == {422}


def test_malformed_requests_name_what_is_wrong(client, good):
    part = {"type": "file", "file": {"file_id": good}}
    user = {"role": "user", "content": [{"type": "text", "text": QUESTION}, part]}
    model, chat = client.server.model, "/v1/chat/completions"
    base = {"model": model, "messages": [user]}
    for change, status, param in (
        ({"model": "gpt"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [user] * 10_000}, 400, "messages"),
        ({"messages": [{"role": "user", "content": QUESTION}]}, 400, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [part]}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 3000}, part]}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}, part]}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content"),
        ({"messages": 3}, 400, "messages"),
        ({"n": 2}, 400, "n"),
        ({"stream": "yes"}, 400, "stream"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"ecg": {"segment": 99}}, 400, "ecg.segment"),
        ({"unknown": 1}, 400, "unknown"),
    ):
        found, error = client.post(chat, base | change)
        assert (found, error["error"]["param"]) == (status, param), error
    for body in (b"", b"{", b"[" * 100_000, b"\xff", b"null", b"3"):
        status, _, answer = client.send("POST", chat, body)
        assert status == 400 and json.loads(answer)["error"]["message"]
    status, _, answer = client.send("POST", chat, b"[" + b"[]," * 300_000 + b"[]]")
    assert status == 400 and json.loads(answer)["error"]["code"] == "too_many_values"
    assert client.post(chat, client.chat(QUESTION, "rec-unknown"))[0] == 404
    file = {"type": "file", "file": {"filename": "x.npy", "file_data": "!"}}
    assert client.post(chat, base | {"messages": [{"role": "user", "content": [file]}]})[0] == 400
    assert client.upload()[0] == 400 and client.post("/v1/recordings", {})[0] == 415
    assert client.upload(("x.npy", b"1"), sample_rate="fast")[0] == 400
    assert client.get("/v1/nowhere")[0] == 404 and client.get("/v1/run", "POST")[0] == 405
    assert client.get("/static/..%2f..%2fsettings.py")[0] == 404
    about = {"recordings": [good], "question": QUESTION, "answer": "no", "segment": 0}
    for change, param in (
        ({"segment": 99}, "segment"),
        ({"segment": -1}, "segment"),
        ({"answer": "\ud800"}, "answer"),
        ({"answer": "x " * 900}, "answer"),
        ({"history": [[QUESTION, "no"]] * 17}, "history"),
        ({"recordings": [good] * 3}, "recordings"),
    ):
        found, error = client.post("/v1/attention", about | change)
        assert (found, error["error"]["param"]) == (400, param), error
    assert client.post("/v1/controls", about | {"segment": 99})[0] == 400


def test_many_files_in_a_question_are_counted_once_each_and_at_once(client, good):
    parts = [{"type": "file", "file": {"file_id": f"{number}"}} for number in range(30_000)]
    asked = [{"role": role, "content": [{"type": "text", "text": QUESTION}]} for role in ("user", "assistant", "user")]
    asked[0]["content"] += parts[:15_000]
    asked[2]["content"] += parts[15_000:]
    begun = time.monotonic()
    status, error = client.post("/v1/chat/completions", {"model": client.server.model, "messages": asked})
    assert status == 400 and "30000 recordings found" in error["error"]["message"] and time.monotonic() - begun < 5
    assert client.ask(QUESTION, good, good)["usage"] == client.ask(QUESTION, good, stop=[])["usage"]


def test_a_file_in_the_question_is_read_like_one_that_was_sent(client, header):
    data = npy(1000 * wave(header))
    file = {"filename": "ecg.npy", "file_data": in_base64(data)}
    content = [{"type": "text", "text": QUESTION}, {"type": "file", "file": file}]
    status, error = client.post(
        "/v1/chat/completions", {"model": client.server.model, "messages": [{"role": "user", "content": content}]}
    )
    assert status == 422 and "missing; give them in the file's order, leads I,II" in error["error"]["message"]


def test_more_questions_than_may_wait_are_told_to_come_back(client, good, monkeypatch):
    monkeypatch.setattr(client.server.answerer.engine, "_queue", 0)
    body = json.dumps(client.chat(QUESTION, good)).encode()
    status, headers, answer = client.send("POST", "/v1/chat/completions", body)
    assert status == 429 and int(headers["retry-after"]) >= 1 and json.loads(answer)["error"]["code"] == "busy"
    monkeypatch.undo()


def test_a_file_that_takes_too_long_ends_its_reader_alone(finished, header):
    settings = Settings.of(stored_config(Workdir(finished[0]).config))
    with Reader(settings.signal, ServeSettings(read_seconds=5.0)) as reader:
        assert [reader.read_file(header, "a.hea").name for _ in range(2)] == ["a", "a"]
        process = reader._idle.queue[0]._process
        process.send_signal(signal.SIGSTOP)
        reader._limits = ServeSettings(read_seconds=0.2)
        with pytest.raises(RecordError, match=r"^a\.hea: reading it takes too long"):
            reader.read_file(header, "a.hea")
        reader._limits = ServeSettings(read_seconds=5.0)
        assert process.poll() == -signal.SIGKILL
        assert [reader.read_file(header, "a.hea").segments.shape for _ in range(2)] == [(5, 12, 100)] * 2
