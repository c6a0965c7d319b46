"""The page in a headless browser, with a stub for a server, whose answers the tests choose."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from ecgbyte_jax.ecg.records import LEADS
from tests.browser import open_browser, set_width

pytestmark = pytest.mark.slow
QUESTION = "Is it <b>regular</b>?"
SAID = ["yes <img src=x onerror=alert(1)>", "no"]  # of the two segments; the first is elected


def event(content: str = "", **more) -> bytes:
    choice = {"index": 0, "delta": {"content": content} if content else {}, "logprobs": None}
    return f"data: {json.dumps({'choices': [choice]} | more)}\n\n".encode()


def recording(id: str) -> dict:
    wave = base64.b64encode(np.zeros(200, "<i2").tobytes()).decode()
    return {
        "id": id, "name": f"<i>{id}</i>", "rate_hz": 333.3, "seconds": 4.0, "beats_per_minute": None, "notes": ["<b>note</b>"],
        "warnings": ["<script>alert(1)</script>"], "segment_seconds": 2.0,
        "signal": {"rate_hz": 50.0, "leads": list(LEADS), "microvolts": dict.fromkeys(LEADS, wave)},
        "segments": [{"start_s": 0.0, "end_s": 2.0}, {"start_s": 2.0, "end_s": 4.0}],
    }  # fmt: skip


def answer() -> dict:
    words = [{"text": word, "start_token": number, "end_token": number + 1} for number, word in enumerate(SAID[0].split())]
    return {
        "segment": 0, "answer": SAID[0], "probability": 0.9, "majority": False, "segments_agreeing": 1, "warnings": [],
        "segments": [{"start_s": 2.0 * i, "answer": said, "probability": 0.9} for i, said in enumerate(SAID)],
        "words": words, "tokens": [{"token": f" {word['text']}", "logprob": -0.1} for word in words],
    }  # fmt: skip


@pytest.fixture(scope="module")
def stub() -> Iterator[tuple[str, dict]]:
    """The address, and what is done: `chats` are counted, `broken` breaks answers off, `token` asks for one."""
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[test]'")
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    from ecgbyte_jax.serve.guard import Guard
    from ecgbyte_jax.serve.static import Static
    from ecgbyte_jax.settings import ServeSettings

    static, state = Static(), {"chats": 0, "broken": False}

    async def page(request):
        return static.response(request.path_params.get("name", "index.html"))

    async def run(request):
        about = {
            "run": "<u>run</u>",
            "worth": "",
            "verdict": None,
            "warnings": [],
            "questions": [QUESTION],
            "questions_total": 1,
        }
        return JSONResponse(about | {"accepts": "", "limits": {"bytes": 10**6}, "model": "run"})

    async def demos(request):
        return JSONResponse({"data": [{"id": f"demo-{number}", "name": f"demo {number}", "demo": True} for number in (1, 2)]})

    async def demo(request):
        time.sleep(0.3)
        return JSONResponse(recording(request.path_params["id"]))

    async def chat(request):
        import asyncio

        state["chats"] += 1

        async def parts():
            yield event("yes ")
            await asyncio.sleep(0.7)
            if not state["broken"]:
                yield event(SAID[0][4:])
                yield event(ecg=answer())
                yield b"data: [DONE]\n\n"

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def attention(request):
        body = await request.json()
        words = body["answer"].split()
        weights = {"0": {lead: [0.5] * 100 for lead in LEADS}}
        about = {
            "words": [],
            "leads": list(LEADS),
            "rate_hz": 50.0,
            "answer": weights,
            "about": "",
            "by_word": [weights] * len(words),
        }
        return JSONResponse(about | {"segment": {"start_s": 2.0 * body["segment"], "end_s": 2.0 * body["segment"] + 2}})

    routes = [
        Route("/", page), Route("/static/{name}", page), Route("/v1/run", run), Route("/v1/recordings", demos),
        Route("/v1/recordings/{id}", demo), Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/attention", attention, methods=["POST"]),
    ]  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0))
    app = Guard(Starlette(routes=routes), ServeSettings())
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: server.run([listener]))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", state
    server.should_exit = True
    thread.join()


@pytest.fixture
def browser(tmp_path):
    yield from open_browser(tmp_path)


def test_two_clicks_do_one_thing_and_words_stay_with_their_answer(browser, stub):
    from selenium.webdriver.common.action_chains import ActionChains

    url, state = stub

    def all(selector: str) -> list:
        return browser.find_elements("css selector", selector)

    def wait(selector: str) -> list:
        until = time.monotonic() + 60
        while not (found := all(selector)):
            assert time.monotonic() < until, (selector, all("body")[0].text)
            time.sleep(0.05)
        return found

    set_width(browser, 1280)
    browser.get(url)
    ActionChains(browser).double_click(wait("#demos button")[0]).perform()
    wait(".recording")
    time.sleep(0.8)
    assert len(all(".recording")) == 1

    all("#question")[0].send_keys(QUESTION)
    ActionChains(browser).double_click(all("#go")[0]).perform()
    wait(".exchange.current:not([aria-busy]) .vote[aria-pressed=true]")
    assert state["chats"] == 1 and not all(".exchange .error")

    def hover() -> None:
        ActionChains(browser).move_to_element(all("h1")[0]).move_to_element(all(".word")[0]).perform()

    def label() -> str:
        return all(".trace svg")[0].get_attribute("aria-label")

    hover()
    assert "the word “yes”" in label()
    browser.execute_script("arguments[0].click()", all(".vote")[1])
    wait("li:nth-child(2) .vote[aria-pressed=true]")
    hover()
    assert "the word" not in label() and "the answer “no”" in label()
    assert not all("img[src=x], article b, article i, article u, article script, #run u")

    state["broken"] = True
    all("#question")[0].send_keys("\ue007\ue007")  # Enter twice
    assert "The answer broke off" in wait(".exchange .error")[0].text and state["chats"] == 2
