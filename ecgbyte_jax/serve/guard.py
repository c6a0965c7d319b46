"""What every request passes before it is served: whose it is, how much it sends and in which time, and headers of every answer.

A server on a loopback address answers only under the names of that address, and no page of another site: else any page in the
browser could ask it, by letting its own name point here (DNS rebinding).
"""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from ecgbyte_jax.serve.errors import ApiError
from ecgbyte_jax.settings import LOOPBACK, ServeSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware around an application."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], limits: ServeSettings):
        self._app, self._limits = app, limits
        self._held = 0  # bytes of all requests that are being answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Scope) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            await error.response()(scope, receive, send_guarded)
            return
        with self._holding() as hold:
            await self._app(scope, self._limit(receive, hold), send_guarded)

    def _check(self, path: str, headers: Headers) -> None:
        """Raises ApiError for a request that is refused before its body is read."""
        host = _name(headers.get("host", ""))
        if self._limits.host in LOOPBACK and host not in LOOPBACK:
            raise ApiError(403, f"host {host[:60]!r} found, one of {LOOPBACK} expected", "Host", "host")
        origin = headers.get("origin")
        if origin is not None and _place(origin) != headers.get("host"):
            raise ApiError(
                403, "a request by a page of another site found, by this server's own page expected", "Origin", "origin"
            )
        if self._limits.token and path.startswith("/v1/"):
            given = headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self._limits.token}".encode()):
                raise ApiError(401, "another token or none found; send 'Authorization: Bearer TOKEN'", None, "invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._most:
            raise self._too_large()

    @property
    def _most(self) -> int:
        return self._limits.upload_mb * 1_000_000

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a request of more than {self._limits.upload_mb} MB found", None, "too_large")

    @contextmanager
    def _holding(self) -> Iterator[Callable[[int], None]]:
        """Counts the bytes of a request until it is answered; what it yields raises ApiError where there are too many."""
        size = 0

        def hold(count: int) -> None:
            nonlocal size
            size += count
            self._held += count
            if size > self._most:
                raise self._too_large()
            if self._held > self._limits.incoming_mb * 1_000_000:
                raise ApiError(503, "too many large requests at a time found; send it again later", None, "busy", retry_after=1)

        try:
            yield hold
        finally:
            self._held -= size

    def _limit(self, receive: Receive, hold: Callable[[int], None]) -> Receive:
        """Raises ApiError where a body is too large, or too slow."""
        until, complete = time.monotonic() + self._limits.upload_seconds, False

        async def receive_limited() -> Scope:
            nonlocal complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(max(until - time.monotonic(), 0)):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408, f"a request that took more than {self._limits.upload_seconds:g} s to send found", None, "too_slow"
                ) from None
            hold(len(message.get("body", b"")))
            complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        return receive_limited


def _place(origin: str) -> str:
    """The host and port of an Origin header; "" where it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _name(host: str) -> str:
    """A Host header without its port; "" where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
