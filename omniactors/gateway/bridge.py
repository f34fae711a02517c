"""The bridge from one HTTP connection to an ASGI application: one request at a time, no more.

Who wants more (HTTP/2, uploads, pipelining) mounts the application in a server made for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
import trio

from omniactors.gateway.access import Refusal
from omniactors.gateway.wire import ClientGone

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

    from omniactors.gateway.access import Head, Policy
    from omniactors.gateway.config import GatewayAddress
    from omniactors.gateway.wire import Wire

_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Exchange:
    """One request and its response, as an application sees them."""

    def __init__(self, wire: Wire, body: bytes) -> None:
        self._wire = wire
        self._body: bytes | None = body
        self._has_client = True
        self._is_complete = False

    async def receive(self) -> Message:
        """The body, then, once the client has gone, that."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._wire.wait_disconnect()
        self._has_client = False
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass one part of the response on. Raises ClientGone, an OSError."""
        if message["type"] == "http.response.start":
            status = message["status"]
            reason = _REASONS.get(status, "").encode()
            headers = list(message.get("headers", ()))
            if self._wire.has_body:  # what is left of it would be taken for the next request
                headers.append((b"connection", b"close"))
            await self._wire.send(h11.Response(status_code=status, headers=headers, reason=reason))
        elif message["type"] == "http.response.body":
            if data := message.get("body", b""):
                await self._wire.send(h11.Data(data=data))
            if not message.get("more_body", False):
                await self._wire.send(h11.EndOfMessage())
                self._is_complete = True

    def check_complete(self) -> None:
        """Raise ClientGone for an answer that was broken off since nobody waits for it, RuntimeError for another."""
        if self._is_complete:
            return
        if self._has_client:
            raise RuntimeError("the application left its answer unfinished")
        raise ClientGone("the client has gone")


@dataclass(frozen=True)
class Bridge:
    """Where requests go that are for HTTP: `application`, which applies `policy` and is at `address`."""

    application: ASGIApp
    policy: Policy
    address: GatewayAddress

    async def answer(self, wire: Wire, head: Head) -> bool:
        """Have the application answer one request; whether the connection may be used for another.

        No body is read of a request that the policy does not allow, and that the application is to
        refuse. Raises BadRequest, ClientGone, and what an application raises that failed: the client
        gets a 500 then.
        """
        is_refused = wire.has_body and self.policy.judge(head) is not None
        exchange = Exchange(wire, b"" if is_refused else await wire.read_body())
        try:
            await self.application(_scope(wire, head, self.address), exchange.receive, exchange.send)
            exchange.check_complete()
        except (trio.Cancelled, KeyboardInterrupt):
            raise
        except BaseException:  # an application may raise anything
            await wire.refuse(Refusal(500, "the gateway failed to answer"))
            raise
        return wire.start_next_cycle()


def _scope(wire: Wire, head: Head, address: GatewayAddress) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": head.version,
        "method": head.method,
        "scheme": "http",
        "path": head.path,
        "raw_path": head.raw_path,
        "query_string": head.query.encode("ascii"),
        "root_path": "",
        "headers": [(name.encode("ascii"), value.encode("latin-1")) for name, value in head.headers],
        "server": (address.host, address.port),
        "client": wire.client,
        "state": {},
    }
