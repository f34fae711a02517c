"""One HTTP/1.1 connection: h11 decides, this file reads and writes, with a limit and a deadline for everything."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote

import h11
import trio

from omniactors.gateway.access import Head, Refusal
from omniactors.gateway.handover import HandedOverStream

if TYPE_CHECKING:
    from omniactors.gateway.config import GatewayConfig

CHUNK = 16 * 1024
LINGER = 1.0
"""Seconds to let a refused client finish talking: closing on unread bytes would take our answer back."""


class BadRequest(Exception):
    """What the client sent is not answered; `status` is what it is told."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Wire:
    """Requests from a stream and responses to it, one after another."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, config: GatewayConfig) -> None:
        self.stream = stream
        self._config = config
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=config.max_head)
        self._head_bytes: bytearray | None = bytearray()
        self._idle: trio.CancelScope | None = None
        self._stopping = False

    def stop(self) -> None:
        """Take no further request; the one being answered is finished first."""
        self._stopping = True
        if self._idle is not None:
            self._idle.cancel()

    def hand_over(self) -> HandedOverStream:
        """The connection from the present request's head on, for another protocol; only before its body is read."""
        received = bytes(self._head_bytes or b"")
        rest, _ = self._http.trailing_data
        return HandedOverStream(received.removesuffix(rest), rest, self.stream)

    @property
    def answered(self) -> bool:
        """Whether the response to the present request has begun."""
        return self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}

    async def next_head(self) -> Head | None:
        """The next request, None when there is none within `idle_deadline` or after `stop`.

        From its first byte on it has `head_deadline`. Raises BadRequest.
        """
        event: object = h11.NEED_DATA
        with trio.move_on_after(self._config.idle_deadline) as self._idle:
            if self._stopping:
                return None
            if self._head_bytes:
                self._hurry()
            event = self._parse()
            while event is h11.NEED_DATA:
                await self._receive()
                self._hurry()
                event = self._parse()
        self._idle = None
        if isinstance(event, h11.Request):
            return _head(event)
        if event is h11.NEED_DATA and self._head_bytes and not self._stopping:
            raise BadRequest(408, "the request did not come in time")
        return None

    async def read_body(self) -> bytes:
        """The body of the present request. Raises BadRequest when it is too long or too late."""
        self._head_bytes = None
        body = bytearray()
        with trio.move_on_after(self._config.body_deadline):
            if self._http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            while True:
                event = self._parse()
                if event is h11.NEED_DATA:
                    await self._receive()
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > self._config.max_body:
                        raise BadRequest(413, f"the body is longer than {self._config.max_body} bytes")
                elif isinstance(event, h11.EndOfMessage):
                    return bytes(body)
                else:
                    raise BadRequest(400, "the connection ended within the body")
        raise BadRequest(408, "the body did not come in time")

    async def wait_disconnect(self) -> None:
        """Return when the client has gone. What it sends meanwhile waits for the next cycle, within a limit."""
        early = 0
        while early <= self._config.max_head:
            try:
                data = await self.stream.receive_some(CHUNK)
            except trio.BrokenResourceError:
                return
            self._http.receive_data(bytes(data))
            if not data:
                return
            early += len(data)

    async def send(self, event: h11.Event) -> None:
        """Send a part of the response. Raises trio.BrokenResourceError, also when the client takes none in time."""
        data = self._http.send(event)
        if not data:
            return
        with trio.move_on_after(self._config.write_deadline) as deadline:
            await self.stream.send_all(data)
        if deadline.cancelled_caught:
            raise trio.BrokenResourceError("the client did not take its response")

    def start_next_cycle(self) -> bool:
        """Make ready for another request; False when the connection is at its end."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._head_bytes = bytearray(self._http.trailing_data[0])
        self._http.start_next_cycle()
        return True

    async def refuse(self, refusal: Refusal | BadRequest) -> None:
        """Answer with an error, and end the connection in a way that lets the answer arrive."""
        if self.answered:
            return
        body = json.dumps({"error": str(refusal) if isinstance(refusal, BadRequest) else refusal.why}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("connection", "close"),
        ]
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            headers.append(("www-authenticate", "Bearer"))
        reason = HTTPStatus(refusal.status).phrase
        await self.send(h11.Response(status_code=refusal.status, headers=headers, reason=reason.encode()))
        await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())
        with trio.move_on_after(LINGER):
            await self.stream.send_eof()
            while await self.stream.receive_some(CHUNK):
                pass

    def _parse(self) -> object:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise BadRequest(error.error_status_hint, f"not a valid request: {error}") from None

    async def _receive(self) -> None:
        data = await self.stream.receive_some(CHUNK)
        if self._head_bytes is not None:
            self._head_bytes += data
        self._http.receive_data(bytes(data))

    def _hurry(self) -> None:
        if self._idle is not None:
            deadline = trio.current_time() + self._config.head_deadline
            self._idle.deadline = min(self._idle.deadline, deadline)


def _head(request: h11.Request) -> Head:
    path, _, query = request.target.decode("ascii").partition("?")
    headers = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers)
    return Head(request.method.decode("ascii"), unquote(path), query, headers)
