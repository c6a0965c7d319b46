"""The server's routes: the page, recordings, questions in OpenAI's form, where answers come from."""

import asyncio
import base64
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ecgbyte_jax.asking.reply import NOT_TO_USE
from ecgbyte_jax.asking.subject import Subject, with_foreign
from ecgbyte_jax.ecg.formats.content import EXPECTED
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.errors import RecordError
from ecgbyte_jax.inputs.recording import Recording
from ecgbyte_jax.serve.answering import Answerer, Asked
from ecgbyte_jax.serve.attention import attention_of
from ecgbyte_jax.serve.chat import ChatRequest, check_question, check_text, expect
from ecgbyte_jax.serve.engine import Row
from ecgbyte_jax.serve.errors import ApiError
from ecgbyte_jax.serve.guard import Guard, Receive, Scope, Send
from ecgbyte_jax.serve.reader import PROCESSES, Described, Reader, Upload
from ecgbyte_jax.serve.schema import describe_api, show_api
from ecgbyte_jax.serve.static import Static
from ecgbyte_jax.serve.store import Store
from ecgbyte_jax.settings import ServeSettings

_SHOWN_QUESTIONS = 200
_HIGHEST = 32.767  # mV, of 16-bit microvolts
_MOST_FILES, _MOST_FIELDS = 2, 8
_MOST_VALUES = 500_000  # in JSON, whose objects take forty times the memory of their signs, and the time of everybody else


@dataclass(frozen=True, eq=False)
class Server:
    """Everything that a request needs. model: the name of the run; foreign: whether it was trained on synthetic ECGs alone."""

    model: str
    answerer: Answerer
    reader: Reader
    store: Store
    static: Static
    limits: ServeSettings
    foreign: bool
    # Whoever waits for these holds none of the few threads, which prompts are made in too.
    _reading: asyncio.Semaphore = field(init=False, default_factory=partial(asyncio.Semaphore, PROCESSES))
    _looking: asyncio.Semaphore = field(init=False, default_factory=partial(asyncio.Semaphore, 1))

    def app(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """The ASGI application."""
        routes = [
            Route("/", partial(self.file, name="index.html")),
            Route("/static/{name}", self.static_file),
            Route("/healthz", self.healthz),
            Route("/openapi.json", self.openapi),
            Route("/docs", self.docs),
            Route("/v1/models", self.models),
            Route("/v1/run", self.run),
            Route("/v1/recordings", self.recordings, methods=["GET"]),
            Route("/v1/recordings", self.send, methods=["POST"]),
            Route("/v1/recordings/{id}", self.recording, methods=["GET"]),
            Route("/v1/recordings/{id}", self.forget, methods=["DELETE"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/attention", self.attention, methods=["POST"]),
            Route("/v1/controls", self.controls, methods=["POST"]),
        ]
        handlers = {
            ApiError: _refuse,
            RecordError: _unusable,
            HTTPException: _refuse_http,
            ClientDisconnect: _gone,
            Exception: _fail,
        }
        return Guard(Starlette(routes=routes, exception_handlers=handlers), self.limits)

    async def file(self, request: Request, name: str) -> Response:
        """A file of the page."""
        return self.static.response(name)

    async def static_file(self, request: Request) -> Response:
        """A file of the page by its name."""
        return self.static.response(request.path_params["name"])

    async def healthz(self, request: Request) -> Response:
        """That the server can answer, and how many questions wait; raises ApiError where it has to be started again."""
        if self.answerer.engine.ended:
            raise ApiError(503, "a fault has ended what answers questions; the server's log has why: start it again")
        return JSONResponse({"status": "ok", "waiting": self.answerer.engine.waiting})

    async def openapi(self, request: Request) -> Response:
        """The API in OpenAPI's form."""
        return JSONResponse(describe_api(self.limits))

    async def docs(self, request: Request) -> Response:
        """The API for people."""
        return show_api(self.limits)

    async def models(self, request: Request) -> Response:
        """The one model, as OpenAI lists them."""
        model = {"id": self.model, "object": "model", "created": 0, "owned_by": "ecgbyte-jax"}
        return JSONResponse({"object": "list", "data": [model]})

    async def run(self, request: Request) -> Response:
        """The run, what its answers are worth, and what is accepted."""
        worth, questions = self.answerer.worth, self.answerer.familiar.questions
        return JSONResponse(
            {
                "run": self.model,
                "worth": worth.sentence,
                "verdict": worth.verdict,
                "warnings": worth.warnings,
                "note": NOT_TO_USE,
                "questions": questions[:_SHOWN_QUESTIONS],
                "questions_total": len(questions),
                "accepts": EXPECTED,
                "limits": {"bytes": self.limits.upload_mb * 1_000_000, "seconds": self.limits.recording_seconds},
                "model": self.model,
            }
        )

    async def recordings(self, request: Request) -> Response:
        """The demo recordings; those that users sent are listed to nobody."""
        return JSONResponse({"data": [{"id": demo.id, "name": demo.name, "demo": True} for demo in self.store.demos.values()]})

    async def send(self, request: Request) -> Response:
        """Reads a recording from a file."""
        uploads, described = await self._form(request)
        recording = await self._read(request, uploads, described)
        return JSONResponse(self._recording(self.store.add(recording), recording), 201)

    async def recording(self, request: Request) -> Response:
        """A recording that was sent before, or of the run."""
        id = request.path_params["id"]
        await self._at_hand(request, id)
        recording = await asyncio.to_thread(self.store.get, id)
        return JSONResponse(self._recording(id, recording))

    async def forget(self, request: Request) -> Response:
        """Forgets a recording."""
        self.store.remove(request.path_params["id"])
        return Response(status_code=204)

    async def chat(self, request: Request) -> Response:
        """Answers a question in OpenAI's form."""
        most = self.answerer.settings.eval.max_new_tokens
        asked_for = ChatRequest.of(await _json(request), self.model, most, self.limits)
        ids = []
        for recording in asked_for.recordings:
            if isinstance(recording, Upload):
                recording = self.store.add(await self._read(request, [recording], Described()))
            ids.append(recording)
        subject = await self._subject(request, *ids)
        asked = await asyncio.to_thread(self.answerer.ask, subject, asked_for.turns, asked_for.segment, asked_for.most)
        head = {"id": f"chatcmpl-{secrets.token_urlsafe(12)}", "created": int(time.time()), "model": self.model}
        steps = self.answerer.run(asked)
        if asked_for.stream:
            events = self._stream(asked_for, asked, steps, head)
            first = await anext(events)  # whose errors are an answer of their own
            return StreamingResponse(_chain(first, events), media_type="text/event-stream")
        await _unless_gone(request, _exhaust(steps))
        reply = self.answerer.reply(asked)
        chosen = asked.rows[reply.best]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": reply.answers[reply.best].text, "refusal": None},
            "finish_reason": _reason(chosen),
            "logprobs": {"content": self.answerer.log_probs(chosen), "refusal": None} if asked_for.logprobs else None,
        }
        about = self.answerer.about(asked, reply)
        return JSONResponse(head | {"object": "chat.completion", "choices": [choice], "usage": _usage(asked), "ecg": about})

    async def attention(self, request: Request) -> Response:
        """Where an answer comes from."""
        body = expect(await _json(request), dict, "the request")
        subject, question, segment = await self._about(request, body)
        answer = check_text(expect(body.get("answer"), str, "answer"), self.limits, "answer")
        history, most = expect(body.get("history") or [], list, "history"), self.limits.messages // 2
        if len(history) > most:
            raise ApiError(400, f"history: {len(history)} questions found, at most {most} expected", "history")
        turns = [self._turn(turn) for turn in history]
        work = partial(attention_of, self.answerer, subject, (*turns, (question, "")), answer, segment)
        async with self._looking:
            await _expect_here(request)
            return JSONResponse(await asyncio.to_thread(work))

    async def controls(self, request: Request) -> Response:
        """What an answer is compared to: the commonest one in training, and the one about another ECG."""
        body = expect(await _json(request), dict, "the request")
        subject, question, segment = await self._about(request, body)
        commonest = self.answerer.commonest.get(question)
        known = {"answer": commonest, "from": "training answers to this question"}
        other = await self._other(body["recordings"], subject, question, segment, request)
        return JSONResponse({"commonest": None if commonest is None else known, "other": other})

    async def _other(self, ids: list[str], subject: Subject, question: str, segment: int, request: Request) -> dict | None:
        """The answer about demo recordings in place of those asked about."""
        others = [id for id in self.store.demos if id not in ids][: len(ids)]
        if len(others) < len(ids):
            return None
        other = await self._subject(request, *others)
        place, most = min(segment, len(other.segments) - 1), self.answerer.settings.eval.max_new_tokens
        asked = await asyncio.to_thread(self.answerer.ask, other, ((question, ""),), place, most)
        await _unless_gone(request, _exhaust(self.answerer.run(asked)))
        (answer,) = self.answerer.reply(asked).answers
        return {"answer": answer.text, "probability": math.exp(answer.log_prob), "recording": other.name}

    async def _about(self, request: Request, body: dict[str, Any]) -> tuple[Subject, str, int]:
        """The recordings, the question and the segment of a request about an answer."""
        ids = expect(body.get("recordings"), list, "recordings")
        if not 1 <= len(ids) <= 2:
            raise ApiError(400, f"recordings: {len(ids)} found, one or two expected", "recordings")
        ids = tuple(expect(id, str, "recordings") for id in ids)
        question = check_question(expect(body.get("question"), str, "question"), self.limits, "question")
        segment = expect(body.get("segment"), int, "segment")
        subject = await self._subject(request, *ids)
        if not 0 <= segment < len(subject.segments):
            raise ApiError(400, f"segment {segment} found, 0 to {len(subject.segments) - 1} expected", "segment")
        return subject, question, segment

    def _turn(self, turn: Any) -> tuple[str, str]:
        if not isinstance(turn, list) or len(turn) != 2:
            raise ApiError(400, "history: pairs of a question and an answer expected", "history")
        question, answer = (check_question(expect(text, str, "history"), self.limits, "history") for text in turn)
        return question, answer

    async def _form(self, request: Request) -> tuple[list[Upload], Described]:
        """The files of a form, and what they may leave open; nothing of it is on disk."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ApiError(415, "a form (multipart/form-data) with the field 'file' expected", "Content-Type")
        body = await request.body()

        async def stream() -> AsyncIterator[bytes]:
            yield body

        parser = MultiPartParser(request.headers, stream(), max_files=_MOST_FILES, max_fields=_MOST_FIELDS)
        parser.spool_max_size = len(body) + 1
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise ApiError(400, f"the form cannot be read: {error.message}", "file") from error
        except (KeyError, ValueError) as error:
            raise ApiError(400, "the form cannot be read", "file") from error
        files = [file for file in form.getlist("file") if not isinstance(file, str)]
        if not files:
            raise ApiError(400, f"no file found in the field 'file', {EXPECTED} expected", "file")
        uploads = [Upload(file.filename or "recording", await file.read()) for file in files]
        texts = {name: str(form.get(name) or "") for name in ("sample_rate", "leads", "units")}
        return uploads, _described(texts)

    async def _subject(self, request: Request, *ids: str) -> Subject:
        for id in ids:
            await self._at_hand(request, id)
        return await asyncio.to_thread(self.store.subject, ids)

    async def _at_hand(self, request: Request, id: str) -> None:
        """Reads a demo recording that is not in memory."""
        if self.store.unread(id):
            async with self._reading:
                await _expect_here(request)
                await asyncio.to_thread(self.store.get, id)

    async def _read(self, request: Request, uploads: list[Upload], described: Described) -> Recording:
        async with self._reading:
            await _expect_here(request)
            recording = await asyncio.to_thread(self.reader.read, uploads, described)
        return with_foreign(recording) if self.foreign else recording

    def _recording(self, id: str, recording: Recording) -> dict[str, Any]:
        signal = np.concatenate([*recording.segments], axis=1)  # [12, N]
        microvolts = np.round(1000 * signal.clip(-_HIGHEST, _HIGHEST)).astype("<i2")
        seconds = recording.segments.shape[2] / recording.clean_rate
        return {
            "id": id,
            "name": recording.name,
            "rate_hz": recording.rate,
            "seconds": recording.seconds,
            "beats_per_minute": None if math.isnan(recording.beats) else round(recording.beats, 1),
            "notes": recording.notes,
            "warnings": recording.warnings,
            "signal": {
                "rate_hz": recording.clean_rate,
                "leads": list(LEADS),
                "microvolts": {lead: base64.b64encode(row.tobytes()).decode() for lead, row in zip(LEADS, microvolts)},
            },
            "segments": [
                {"start_s": number * seconds, "end_s": (number + 1) * seconds} for number in range(len(recording.segments))
            ],
            "segment_seconds": seconds,
        }

    async def _stream(
        self, asked_for: ChatRequest, asked: Asked, steps: AsyncIterator[None], head: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        """Events of the first row's tokens as they come, then of how the answer was elected."""
        head = head | {"object": "chat.completion.chunk"}

        def event(delta: dict, finish: str | None = None, log_probs: list | None = None, **more: Any) -> bytes:
            kept = {"content": log_probs, "refusal": None} if log_probs is not None else None
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": kept}
            return f"data: {json.dumps(head | {'choices': [choice]} | more)}\n\n".encode()

        row, sent, shown = asked.rows[0], 0, ""
        role: dict = {"role": "assistant"}

        def fresh() -> Iterator[bytes]:
            nonlocal sent, shown, role
            for entry in self.answerer.log_probs(row)[sent:]:
                sent += 1
                text = self.answerer.shown(row.tokens[:sent])
                delta, shown, role = role | {"content": text[len(shown) :]}, text, {}
                yield event(delta, log_probs=[entry] if asked_for.logprobs else None)

        try:
            async for _ in steps:
                for one in fresh():
                    yield one
        finally:
            await steps.aclose()
        for one in fresh():  # what came while the last events were sent
            yield one
        rest = role | {"content": self.answerer.read(row).text[len(shown) :]}
        if any(rest.values()):
            yield event(rest)
        about = self.answerer.about(asked, self.answerer.reply(asked))
        yield event({}, _reason(row), ecg=about)
        if asked_for.usage:
            yield f"data: {json.dumps(head | {'choices': [], 'usage': _usage(asked)})}\n\n".encode()
        yield b"data: [DONE]\n\n"


async def _json(request: Request) -> Any:
    body = await request.body()
    if sum(map(body.count, (b"[", b"{", b","))) > _MOST_VALUES:  # of which a file in base64 has none
        raise ApiError(400, f"the request has more than {_MOST_VALUES:,} values", None, "too_many_values")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is no JSON ({type(error).__name__})", None, "no_json") from error


def _described(texts: dict[str, str]) -> Described:
    """From the fields of a form."""
    try:
        rate = float(texts["sample_rate"] or 0)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < math.inf:
        raise ApiError(400, f"sample_rate: {texts['sample_rate'][:60]!r} found, Hz expected", "sample_rate")
    if texts["units"] not in ("", "mV", "uV", "V"):
        raise ApiError(400, f"units: {texts['units'][:60]!r} found, 'mV', 'uV' or 'V' expected", "units")
    leads = tuple(name.strip() for name in texts["leads"].split(",") if name.strip())
    return Described(rate, leads, texts["units"])


def _reason(row: Row) -> str:
    """Why an answer ended, in OpenAI's words."""
    return "length" if len(row.tokens) >= row.most and not row.stopped else "stop"


def _usage(asked: Asked) -> dict[str, int]:
    """Tokens of all segments."""
    prompt, completion = (sum(map(len, parts)) for parts in zip(*((row.prompt, row.tokens) for row in asked.rows)))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _exhaust(steps: AsyncIterator[None]) -> None:
    async for _ in steps:
        pass


async def _chain(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in events:
        yield event


async def _unless_gone(request: Request, work: Awaitable[None]) -> None:
    """Does the work, unless the client leaves before it is done: then raises ClientDisconnect."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        await doing
    finally:
        doing.cancel()
        leaving.cancel()


async def _expect_here(request: Request) -> None:
    """Raises ClientDisconnect where the client has left while it waited for its turn."""
    if await request.is_disconnected():
        raise ClientDisconnect


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refuse(request: Request, error: Exception) -> Response:
    return error.response()


async def _unusable(request: Request, error: Exception) -> Response:
    return ApiError(422, str(error), "file", "unusable_recording").response()


async def _refuse_http(request: Request, error: Exception) -> Response:
    message = f"{request.method} {request.url.path[:60]}: {error.detail}; /docs has what there is"
    return ApiError(error.status_code, message).response()


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _fail(request: Request, error: Exception) -> Response:
    return ApiError(500, "the server failed at this request; its log has why").response()
