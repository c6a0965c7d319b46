"""Connections of clients that send nothing, or take nothing: they are closed, for each holds memory and a file descriptor."""

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def patient_for(seconds: float) -> type[asyncio.Protocol]:
    """The protocol of uvicorn that closes a connection whose next request has not begun, headers and all, in this time."""

    class Patient(AutoHTTPProtocol):
        _closing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._closing:
                self._closing.cancel()

        def _watch(self) -> None:
            """From the first byte of a request's headers to their last; uvicorn itself ends what is idle between two."""
            waits = self.cycle is None or self.cycle.response_complete
            if not waits and self._closing:
                self._closing.cancel()
                self._closing = None
            elif waits and not self._closing:
                self._closing = self.loop.call_later(seconds, self.transport.abort)

    return Patient


def set_options(listener: socket.socket, seconds: float) -> None:
    """Closes the connections of this listener whose client has taken nothing of its answer in this time, where systems can.

    Answers are sent as they are written: asyncio sees to that only for sockets that name their protocol, and otherwise the
    end of an answer waits 40 ms for the client's system to acknowledge its beginning (Nagle's algorithm).
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * seconds))
