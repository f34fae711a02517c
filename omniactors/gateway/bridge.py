"""The bridge from one HTTP connection to an ASGI application: one request at a time, no more.

Who wants more (HTTP/2, uploads, pipelining) mounts the application in a server made for it.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11

from omniactors.gateway.access import Refusal
from omniactors.gateway.wire import BadRequest

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

    from omniactors.gateway.access import Head
    from omniactors.gateway.config import GatewayAddress
    from omniactors.gateway.wire import Wire

METHODS = ("GET", "HEAD", "POST", "DELETE")

_REASONS = {status.value: status.phrase for status in HTTPStatus}

_log = logging.getLogger("omniactors.gateway")


class Exchange:
    """One request and its response, as an application sees them."""

    def __init__(self, wire: Wire, head: Head, body: bytes) -> None:
        self._wire = wire
        self._has_body = head.method != "HEAD"
        self._body: bytes | None = body
        self.complete = False

    async def receive(self) -> Message:
        """The body, then, once the client has gone, that."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._wire.wait_disconnect()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass one part of the response on. Raises OSError when the client has gone."""
        if message["type"] == "http.response.start":
            status = message["status"]
            reason = _REASONS.get(status, "").encode()
            await self._wire.send(h11.Response(status_code=status, headers=list(message["headers"]), reason=reason))
        elif message["type"] == "http.response.body":
            if self._has_body and (data := message.get("body", b"")):
                await self._wire.send(h11.Data(data=data))
            if not message.get("more_body", False):
                await self._wire.send(h11.EndOfMessage())
                self.complete = True


async def answer(wire: Wire, head: Head, application: ASGIApp, address: GatewayAddress) -> bool:
    """Have the application answer one request; whether the connection may be used for another.

    An application that fails is logged and answered for with a 500. Raises BadRequest.
    """
    if head.method not in METHODS:
        await wire.refuse(Refusal(405, f"the method must be one of {', '.join(METHODS)}"))
        return False
    exchange = Exchange(wire, head, await wire.read_body())
    try:
        await application(_scope(head, address), exchange.receive, exchange.send)
    except Exception:  # noqa: BLE001 -- an application may raise anything
        _log.exception("the answer to %s %s failed", head.method, head.path)
    if not exchange.complete:
        await wire.refuse(BadRequest(500, "the gateway failed to answer"))
        return False
    return wire.start_next_cycle()


def _scope(head: Head, address: GatewayAddress) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": head.method,
        "scheme": "http",
        "path": head.path,
        "raw_path": head.path.encode(),
        "query_string": head.query.encode("ascii"),
        "root_path": "",
        "headers": [(name.encode("ascii"), value.encode("latin-1")) for name, value in head.headers],
        "server": (address.host, address.port),
        "client": None,
        "state": {},
    }
