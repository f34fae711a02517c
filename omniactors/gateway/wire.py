"""One HTTP/1.1 connection: h11 decides, this file reads and writes, with a limit and a deadline for everything."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote

import h11
import trio

from omniactors.gateway.access import Head, Refusal

if TYPE_CHECKING:
    from omniactors.gateway.budget import Budget
    from omniactors.gateway.config import GatewayConfig

CHUNK = 16 * 1024
LINGER = 1.0
"""Seconds to let a client finish talking: closing on unread bytes would take our answer back."""

_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([^?]*)(?:\?(.*))?", re.IGNORECASE)
_ORIGIN = re.compile(rb"()(/[^?]*|\*)(?:\?(.*))?")


class BadRequest(Exception):
    """What the client sent is not answered; `refusal` is what it is told."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.refusal = Refusal(status, why)


class ClientGone(OSError):
    """The client has gone, or takes nothing any more; an OSError, as ASGI applications expect."""


class Wire:
    """Requests from a stream and responses to it, one after another. `request` says which is answered now."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, config: GatewayConfig, bodies: Budget) -> None:
        self.stream = stream
        self.request = "a request"
        self._config = config
        self._bodies = bodies
        self._body_size = 0
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=config.max_head)
        self._has_left = False
        self._method = ""
        self._received = 0
        self._length = 0
        self._idle: trio.CancelScope | None = None
        self._stopping = False

    def stop(self) -> None:
        """Take no further request; the one being answered is finished first."""
        self._stopping = True
        if self._idle is not None:
            self._idle.cancel()

    @property
    def client(self) -> tuple[str, int] | None:
        """Address and port of the client; None when it has none, or has gone."""
        if not isinstance(self.stream, trio.SocketStream):
            return None
        try:
            host, port, *_ = self.stream.socket.getpeername()
        except (OSError, ValueError):
            return None
        return host, port

    @property
    def unread(self) -> bytes:
        """What the client has sent behind the present request's head."""
        return self._http.trailing_data[0]

    @property
    def has_body(self) -> bool:
        """Whether the present request has a body, and it has not been read."""
        return self._length != 0 and self._http.their_state is not h11.DONE

    @property
    def answered(self) -> bool:
        """Whether the response to the present request has begun."""
        return self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}

    async def next_head(self) -> Head | None:
        """The next request, None when there is none within `idle_deadline` or after `stop`.

        From its first byte on it has `head_deadline`. Raises BadRequest, ClientGone.
        """
        event: object = h11.NEED_DATA
        with trio.move_on_after(self._config.idle_deadline) as self._idle:
            if self._stopping:
                return None
            if self._received:
                self._hurry()
            event = self._parse()
            while event is h11.NEED_DATA:
                await self._receive()
                self._hurry()
                event = self._parse()
        self._idle = None
        if isinstance(event, h11.Request):
            return self._open(event)
        if event is h11.NEED_DATA and self._received and not self._stopping:
            raise BadRequest(408, "the request did not come in time")
        return None

    async def read_body(self) -> bytes:
        """The body of the present request. Raises ClientGone, and BadRequest when it is too long or too late."""
        limit = self._config.max_body
        if self._length > limit:
            raise BadRequest(413, f"the body is longer than {limit} bytes")
        body = bytearray()
        with trio.move_on_after(self._config.body_deadline):
            if self._http.they_are_waiting_for_100_continue and self.has_body:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            while True:
                event = self._parse()
                if event is h11.NEED_DATA:
                    await self._receive()
                elif isinstance(event, h11.Data):
                    body += event.data
                    # What stands between the chunks costs time and is no body: of that there may be as much again.
                    if len(body) > limit or self._received > 2 * limit + self._config.max_head:
                        raise BadRequest(413, f"the body is longer than {limit} bytes")
                    self._claim(len(event.data))
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
        """Send a part of the response; a body only where there is one. Raises ClientGone."""
        if self._has_left:
            raise ClientGone("the client has gone")
        if isinstance(event, h11.Data) and self._method == "HEAD":
            return
        data = self._http.send(event)
        if not data:
            return
        try:
            with trio.fail_after(self._config.write_deadline):
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            self._http.send_failed()
            self._has_left = True
            raise ClientGone("the client did not take its response") from error

    def start_next_cycle(self) -> bool:
        """Make ready for another request; False when the connection is at its end."""
        self.release()
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._received = len(self.unread)
        self._method = ""
        self._http.start_next_cycle()
        return True

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an error, unless an answer has begun; the connection is of no more use. Raises ClientGone."""
        if self.answered:
            return
        body = json.dumps({"error": refusal.why}).encode()
        headers = [
            *refusal.headers,
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("connection", "upgrade, close" if refusal.status == HTTPStatus.UPGRADE_REQUIRED else "close"),
        ]
        reason = HTTPStatus(refusal.status).phrase
        await self.send(h11.Response(status_code=refusal.status, headers=headers, reason=reason.encode()))
        await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())

    async def linger(self) -> None:
        """End the connection in a way that lets the last answer arrive."""
        with trio.move_on_after(LINGER), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.stream.send_eof()
            while await self.stream.receive_some(CHUNK):
                pass

    def release(self) -> None:
        """The body is done with."""
        self._bodies.release(self._body_size)
        self._body_size = 0

    def _claim(self, size: int) -> None:
        if not self._bodies.claim(size):
            raise BadRequest(503, "the gateway has too many request bodies in hand; try again later")
        self._body_size += size

    def _open(self, request: h11.Request) -> Head:
        """Take up a request whose head has come. Raises BadRequest."""
        self._method = request.method.decode("ascii")
        if self._received - len(self.unread) > self._config.max_head:  # h11 looks only at what is incomplete
            raise BadRequest(431, f"the head is longer than {self._config.max_head} bytes")
        names = {name for name, _ in request.headers}
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
            # Where such a request ends is read differently by others: what follows may be meant for somebody else.
            raise BadRequest(400, "Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0")
        self._length = -1 if b"transfer-encoding" in names else int(dict(request.headers).get(b"content-length", 0))
        head = _head(request)
        self.request = f"{head.method} {head.raw_path.decode('ascii')}"
        return head

    def _parse(self) -> object:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise BadRequest(error.error_status_hint, f"not a valid request: {error}") from None

    async def _receive(self) -> None:
        try:
            data = bytes(await self.stream.receive_some(CHUNK))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ClientGone("the client has gone") from error
        if not self._received and (kept := data.lstrip(b"\r\n")) != data:
            # A client may end a body with a line too many (RFC 9112, 2.2).
            if not kept:
                return
            data = kept
        self._received += len(data)
        self._http.receive_data(data)

    def _hurry(self) -> None:
        if self._idle is not None:
            deadline = trio.current_time() + self._config.head_deadline
            self._idle.deadline = min(self._idle.deadline, deadline)


def _head(request: h11.Request) -> Head:
    method = request.method.decode("ascii")
    match = _ORIGIN.fullmatch(request.target) or _ABSOLUTE.fullmatch(request.target)
    if match is None:
        raise BadRequest(400, "the target must be a path, or a URL that begins with http:// or https://")
    authority, raw_path, query = match[1].decode("ascii"), match[2] or b"/", (match[3] or b"").decode("ascii")
    headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers]
    if authority:  # the target's says where the request is for, whatever Host says (RFC 9112, 3.2.2)
        headers = [("host", authority), *(header for header in headers if header[0] != "host")]
    version = request.http_version.decode("ascii")
    return Head(method, unquote(raw_path.decode("ascii")), query, tuple(headers), raw_path, version)
