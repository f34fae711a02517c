"""The gateway's port: takes connections, sends each to HTTP or to a watcher, and says good-bye in time."""

from __future__ import annotations

import errno
import logging
import re
import socket
from typing import TYPE_CHECKING

import trio
from trio_websocket import wrap_server_stream

from omniactors.errors import GatewayError
from omniactors.gateway import bridge, protocol
from omniactors.gateway.access import WEBSOCKET_PATH, Head, Policy, Refusal, is_loopback, offered_token
from omniactors.gateway.application import build_application
from omniactors.gateway.config import GatewayAddress, GatewayConfig
from omniactors.gateway.protocol import EventCache
from omniactors.gateway.watcher import Watcher, left_quietly, subscribe
from omniactors.gateway.wire import BadRequest, Wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp

    from omniactors.events.bus import EventBus
    from omniactors.events.subscription import Subscription
    from omniactors.gateway.protocol import Sub

MAX_PORT = 65_535

_WEBSOCKET_VERSION = "13"
_WEBSOCKET_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")

_log = logging.getLogger("omniactors.gateway")


async def serve(
    bus: EventBus,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    routes: Sequence[BaseRoute] = (),
    config: GatewayConfig | None = None,
    task_status: trio.TaskStatus[GatewayAddress] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the bus at `host`:`port` until cancelled; started with the address that is bound (port 0: a free one).

    `routes` are further Starlette routes; all but the page and `/healthz` need the `token`, if there
    is one. When cancelled, watchers are told `bye`, and within `config.stop_deadline` everything is
    closed. Raises GatewayError when the port is busy, or for an address beyond this machine without a token.
    """
    config = config or GatewayConfig()
    if not is_loopback(host) and not token:
        raise GatewayError(f"listening on {host!r}, which others can reach, needs a token")
    listeners = await _listen(host, port)
    address = _address(host, listeners[0])
    policy = Policy(host=address.host, port=address.port, token=token or None, allowed_hosts=config.allowed_hosts)
    gateway = _Gateway(bus, build_application(policy, routes), address, policy=policy, config=config)
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run, listeners)
        task_status.started(address)
        try:
            await trio.sleep_forever()
        finally:
            gateway.stop()


class _Gateway:
    """The connections of one port."""

    def __init__(
        self, bus: EventBus, application: ASGIApp, address: GatewayAddress, *, policy: Policy, config: GatewayConfig
    ) -> None:
        self._bus = bus
        self._application = application
        self._address = address
        self._policy = policy
        self._config = config
        self._cache = EventCache()
        self._wires: set[Wire] = set()
        self._stopping = trio.Event()
        self._accepting = trio.CancelScope()
        # Shielded: who cancels `serve` starts the good-bye instead of cutting everybody off.
        self._living = trio.CancelScope(shield=True)

    async def run(
        self, listeners: list[trio.SocketListener], *, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Take connections until `stop`, then see them off."""
        with self._living:
            async with trio.open_nursery() as connections:
                with self._accepting:
                    await trio.serve_listeners(
                        self._connection, listeners, handler_nursery=connections, task_status=task_status
                    )

    def stop(self) -> None:
        """Take no more connections, say bye on all there are, and cut off what remains at the deadline."""
        self._accepting.cancel()
        self._stopping.set()
        for wire in self._wires:
            wire.stop()
        self._living.deadline = trio.current_time() + self._config.stop_deadline

    async def _connection(self, stream: trio.SocketStream) -> None:
        """One connection. Whatever goes wrong on it stays there."""
        wire = Wire(stream, self._config)
        self._wires.add(wire)
        try:
            await self._converse(wire)
        except* BadRequest as errors:
            await self._refuse_quietly(wire, _first(errors))
        except* Exception as errors:  # noqa: BLE001 -- a client, or a handler for it, may cause anything
            _report(errors)
        finally:
            self._wires.discard(wire)
            await trio.aclose_forcefully(stream)

    async def _converse(self, wire: Wire) -> None:
        if len(self._wires) > self._config.max_connections:
            why = f"the gateway already has its {self._config.max_connections} connections; try again later"
            await wire.refuse(Refusal(503, why))
            return
        while (head := await wire.next_head()) is not None:
            if head.path == WEBSOCKET_PATH:
                await self._watch(wire, head)
                return
            if not await bridge.answer(wire, head, self._application, self._address):
                return

    async def _refuse_quietly(self, wire: Wire, error: BadRequest) -> None:
        try:
            await wire.refuse(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            _log.debug("a client left before it was told: %s", error)

    async def _watch(self, wire: Wire, head: Head) -> None:
        """Judge the request; when it is good, hand the connection to a watcher."""
        refusal = self._policy.judge(head) or _judge_upgrade(head)
        if refusal is not None:
            await wire.refuse(refusal)
            return
        try:
            subprotocol = protocol.choose_subprotocol(_listed(head.header("sec-websocket-protocol")))
            frame = protocol.parse_query(head.query)
            first = None
            if frame is not None:
                first = (frame, subscribe(self._bus, frame, max_queue=self._config.max_queue))
        except ValueError as error:  # FrameError, or the bus's own
            await wire.refuse(Refusal(400, str(error)))
            return
        trusted = self._policy.accepts_token(offered_token(head))
        await self._upgrade(wire, subprotocol, first, trusted=trusted)

    async def _upgrade(
        self, wire: Wire, subprotocol: str | None, first: tuple[Sub, Subscription] | None, *, trusted: bool
    ) -> None:
        config = self._config
        stream = wire.hand_over()
        async with trio.open_nursery() as nursery:
            with trio.fail_after(config.head_deadline):
                request = await wrap_server_stream(nursery, stream, max_message_size=config.max_message)
                connection = await request.accept(subprotocol=subprotocol)
            stream.release()
            watcher = Watcher(
                connection,
                self._bus,
                cache=self._cache,
                config=config,
                policy=self._policy,
                stopping=self._stopping,
            )
            try:
                await watcher.run(first, trusted=trusted)
            finally:
                if first is not None:
                    first[1].close()
                nursery.cancel_scope.cancel()


def _judge_upgrade(head: Head) -> Refusal | None:
    """Whether the handshake is one: what trio-websocket would otherwise wait for for ever."""
    if head.method != "GET" or (head.header("upgrade") or "").lower() != "websocket":
        return Refusal(400, "this address speaks WebSocket: open it with ws:// or wss://")
    if "upgrade" not in _listed((head.header("connection") or "").lower()):
        return Refusal(400, "the handshake lacks 'Connection: Upgrade'")
    if head.header("sec-websocket-version") != _WEBSOCKET_VERSION:
        return Refusal(400, f"the handshake must say 'Sec-WebSocket-Version: {_WEBSOCKET_VERSION}'")
    if not _WEBSOCKET_KEY.fullmatch(head.header("sec-websocket-key") or ""):
        return Refusal(400, "the handshake lacks a valid Sec-WebSocket-Key")
    return None


def _listed(header: str | None) -> list[str]:
    return [part.strip() for part in (header or "").split(",") if part.strip()]


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    """Bind; port 0 binds one address only, as two would get two ports."""
    where = f"{host}:{port}"
    if not 0 <= port <= MAX_PORT:  # getaddrinfo takes a larger one and wraps it round
        raise GatewayError(f"cannot listen on {where}: a port is a number from 0 to {MAX_PORT}")
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except socket.gaierror as error:
        raise GatewayError(f"cannot listen on {where}: {host!r} is no address of this machine ({error})") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = f"cannot listen on {where}: another program has this port; choose another one, or 0 for a free one"
            raise GatewayError(why) from error
        raise GatewayError(f"cannot listen on {where}: {error}") from error
    kept = listeners if port else listeners[:1]
    for listener in listeners[len(kept) :]:
        await listener.aclose()
    return kept


def _address(host: str, listener: trio.SocketListener) -> GatewayAddress:
    bound_host, port, *_ = listener.socket.getsockname()
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bound_host, bound_host)  # noqa: S104 -- compared, not bound
    if ":" in name and not name.startswith("["):
        name = f"[{name}]"
    return GatewayAddress(host=host, port=port, url=f"http://{name}:{port}/")


def _first(errors: BaseExceptionGroup[BadRequest]) -> BadRequest:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BadRequest)  # noqa: S101 -- except* gave us no other
    return error


def _report(errors: BaseExceptionGroup[Exception]) -> None:
    """Log what ended a connection: a word for a client that went away, all of it for the rest."""
    quiet, other = errors.split(left_quietly)
    if quiet is not None:
        _log.debug("a client went away: %s", quiet.exceptions)
    if other is not None:
        _log.error("a connection ended with an error", exc_info=other)
