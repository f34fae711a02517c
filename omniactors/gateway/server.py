"""The gateway's port: takes connections, sends each to HTTP or to a watcher, and says good-bye in time."""

from __future__ import annotations

import errno
import logging
import re
import socket
import sys
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from trio_websocket import ConnectionClosed, wrap_server_stream

from omniactors.errors import GatewayError
from omniactors.gateway import protocol
from omniactors.gateway.access import SAFE_METHODS, WEBSOCKET_PATH, Head, Policy, Refusal, is_loopback, offered_token
from omniactors.gateway.application import build_application
from omniactors.gateway.bridge import Bridge
from omniactors.gateway.budget import Budget
from omniactors.gateway.config import GatewayAddress, GatewayConfig
from omniactors.gateway.handover import HandedOverStream
from omniactors.gateway.protocol import EventCache
from omniactors.gateway.watcher import Watcher, check_room, closing, left_quietly, subscribe
from omniactors.gateway.wire import BadRequest, Wire
from omniactors.settings import parse_hosts

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.routing import BaseRoute
    from trio_websocket import WebSocketConnection

    from omniactors.events.bus import EventBus

MAX_PORT = 65_535

SPARE = 32
"""Connections beyond the limit that are told so at the same time, at most; further ones wait for room."""

ACCEPT_PAUSE = 0.1
"""Seconds until the next try when the machine cannot take a connection, for want of files or memory."""

INTERNAL_ERROR = 1011
"""The close code for an error of ours, or a watcher that is given up."""

COMPLAINTS = 5
COMPLAINTS_PERIOD = 60.0
"""Errors of ours that reach the log within a period of seconds: what a client can cause, it can cause often."""

_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_WEBSOCKET_VERSION = "13"
_WEBSOCKET_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")

_log = logging.getLogger("omniactors.gateway")


async def serve(
    bus: EventBus,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    routes: Sequence[BaseRoute] = (),
    config: GatewayConfig | None = None,
    task_status: trio.TaskStatus[GatewayAddress] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the bus at `host`:`port` until cancelled; started with the address that is bound (port 0: a free one).

    `routes` are further Starlette routes; all but the page and `/healthz` need the `token`, if there
    is one. `allowed_hosts` are names under which the gateway may be reached, beside those of
    `config`. Whatever a connection causes ends nothing but itself. When cancelled, watchers are told
    `bye`, and within `config.stop_deadline` everything is closed. Raises GatewayError when the port
    is busy, or for an address beyond this machine without a token; SettingsError for a name that is none.
    """
    config = config or GatewayConfig()
    host = host.removeprefix("[").removesuffix("]")
    if not is_loopback(host) and not token:
        raise GatewayError(f"listening on {host!r}, which others can reach, needs a token: set OMNIACTORS_TOKEN")
    names = (*parse_hosts(config.allowed_hosts, "allowed_hosts"), *parse_hosts(allowed_hosts, "allowed_hosts"))
    listeners = await _listen(host, port)
    address = _address(host, listeners[0])
    policy = Policy(host=address.host, port=address.port, token=token or None, allowed_hosts=names)
    connections = Connections(bus, Bridge(build_application(policy, routes), policy, address), config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connections.run, listeners)
        task_status.started(address)
        try:
            await trio.sleep_forever()
        finally:
            connections.stop()


class Connections:
    """The connections of one port."""

    def __init__(self, bus: EventBus, bridge: Bridge, config: GatewayConfig) -> None:
        self._bus = bus
        self._bridge = bridge
        self._policy = bridge.policy
        self._config = config
        self._cache = EventCache(max_bytes=config.cache_bytes)
        self._bodies = Budget(config.max_bodies)
        self._messages = Budget(config.max_messages)
        self._limit, spare = _connection_limits(config)
        self._room = trio.Semaphore(self._limit + spare)
        self._wires: set[Wire] = set()
        self._complaints = _Complaints()
        self._stopping = trio.Event()
        self._accepting = trio.CancelScope()
        # Shielded: who cancels `serve` starts the good-bye instead of cutting everybody off.
        self._living = trio.CancelScope(shield=True)

    async def run(self, listeners: Sequence[trio.abc.Listener[trio.SocketStream]]) -> None:
        """Take connections until `stop`, then see them off."""
        with self._living:
            async with trio.open_nursery() as connections:
                with self._accepting:
                    async with trio.open_nursery() as accepting:
                        for listener in listeners:
                            accepting.start_soon(self._accept, listener, connections)

    def statistics(self) -> tuple[int, int, int]:
        """Connections, bytes of bodies and bytes of unfinished messages that there are now."""
        return len(self._wires), self._bodies.held, self._messages.held

    async def _accept(self, listener: trio.abc.Listener[trio.SocketStream], connections: trio.Nursery) -> None:
        """Take connections of one address. What the machine lacks for one is no reason to take none any more."""
        async with listener:
            while True:
                await self._room.acquire()
                try:
                    stream = await listener.accept()
                except OSError as error:
                    self._room.release()
                    if error.errno not in _SCARCE:
                        raise
                    self._complaints.tell("a connection cannot be taken; trying again", error)
                    await trio.sleep(ACCEPT_PAUSE)
                else:
                    connections.start_soon(self._have_in, stream)

    def stop(self) -> None:
        """Take no more connections, say bye on all there are, and cut off what remains at the deadline."""
        self._accepting.cancel()
        self._stopping.set()
        for wire in self._wires:
            wire.stop()
        self._living.deadline = trio.current_time() + self._config.stop_deadline

    async def _have_in(self, stream: trio.SocketStream) -> None:
        try:
            await self.converse(stream)
        finally:
            self._room.release()

    async def converse(self, stream: trio.abc.HalfCloseableStream) -> None:
        """One connection. Nothing leaves here but cancellation and KeyboardInterrupt, whatever goes wrong wherever."""
        wire = Wire(stream, self._config, self._bodies)
        self._wires.add(wire)
        try:
            await self._answer(wire)
        except* (trio.Cancelled, KeyboardInterrupt):
            raise
        except* BaseException as errors:  # noqa: BLE001 -- a client, or a handler for it, may cause anything
            self._report(wire, errors)
        finally:
            self._wires.discard(wire)
            wire.release()
            with suppress(OSError):
                await trio.aclose_forcefully(stream)

    async def _answer(self, wire: Wire) -> None:
        """Serve one connection to its end, refusals included."""
        try:
            if len(self._wires) > self._limit:
                why = f"the gateway already has its {self._limit} connections; try again later"
                await wire.refuse(Refusal(503, why))
            else:
                await self._serve(wire)
        except BadRequest as error:
            await wire.refuse(error.refusal)
        finally:
            await wire.linger()

    async def _serve(self, wire: Wire) -> None:
        while (head := await wire.next_head()) is not None:
            if head.path == WEBSOCKET_PATH:
                await self._watch(wire, head)
                return
            if not await self._bridge.answer(wire, head):
                return

    def _report(self, wire: Wire, errors: BaseExceptionGroup) -> None:
        """Log what ended a connection: a word for a client that went away, all of it for the rest."""
        quiet, other = errors.split(left_quietly)
        if quiet is not None:
            self._complaints.mention(f"a client went away: {quiet.exceptions}")
        if other is not None:
            self._complaints.tell(f"the answer to {wire.request} failed", other)

    async def _watch(self, wire: Wire, head: Head) -> None:
        """Judge the request; when it is good, hand the connection to a watcher."""
        refusal = self._policy.judge(head) or _judge_upgrade(head, has_body=wire.has_body)
        if refusal is not None:
            await wire.refuse(refusal)
            return
        trusted = self._policy.accepts_token(offered_token(head))
        begun = None
        try:
            subprotocol = protocol.choose_subprotocol(_listed(head.header("sec-websocket-protocol")))
            first = protocol.parse_query(head.query)
            if first is not None and trusted:
                check_room([first], self._config)
                begun = subscribe(self._bus, first, config=self._config)
        except ValueError as error:  # FrameError, or the bus's own
            await wire.refuse(Refusal(400, str(error)))
            return

        async def watch(connection: WebSocketConnection) -> None:
            watcher = Watcher(
                connection,
                self._bus,
                cache=self._cache,
                config=self._config,
                policy=self._policy,
                is_trusted=trusted,
                stopping=self._stopping,
            )
            await watcher.run(first, begun)

        try:
            await self._hand_over(wire, _handshake(head, subprotocol), subprotocol, watch)
        finally:
            if begun is not None:
                begun.close()

    async def _hand_over(
        self,
        wire: Wire,
        handshake: bytes,
        subprotocol: str | None,
        watch: Callable[[WebSocketConnection], Awaitable[None]],
    ) -> None:
        """Have the connection speak WebSocket until `watch` ends, and tell the client what ended it."""
        config = self._config
        stream = HandedOverStream(
            handshake, wire.unread, wire.stream, max_message=config.max_message, messages=self._messages
        )
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(config.head_deadline):
                    request = await wrap_server_stream(
                        nursery, stream, max_message_size=config.max_message, receive_buffer_size=None
                    )
                    connection = await request.accept(subprotocol=subprotocol)
                stream.release()
                await watch(connection)
                nursery.cancel_scope.cancel()
        except* ConnectionClosed as errors:
            await stream.say_why(*closing(errors))
        except* Exception:
            await stream.say_why(INTERNAL_ERROR, "the gateway failed")
            raise
        finally:
            stream.give_back()


class _Complaints:
    """Errors for the log, each with its traceback; of what is too many in a period, only how many.

    Nothing that the log raises comes out: its handlers are somebody else's code, and behind this is the listener.
    """

    def __init__(self) -> None:
        self._told: deque[float] = deque(maxlen=COMPLAINTS)
        self._untold = 0

    def tell(self, what: str, error: BaseException) -> None:
        """Log an error, or count it."""
        now = trio.current_time()
        if len(self._told) == COMPLAINTS and now - self._told[0] < COMPLAINTS_PERIOD:
            self._untold += 1
            return
        self._told.append(now)
        more, self._untold = self._untold, 0
        with suppress(Exception):
            _log.error("%s%s", what, f" ({more} more such lines were left out)" if more else "", exc_info=error)

    def mention(self, what: str) -> None:
        """Log what is a matter of course."""
        with suppress(Exception):
            _log.debug("%s", what)


def _judge_upgrade(head: Head, *, has_body: bool) -> Refusal | None:
    """Whether the handshake is one: what trio-websocket would otherwise wait for for ever (RFC 6455, 4.2.1)."""
    if head.method not in SAFE_METHODS:
        return Refusal(405, "this address is for GET alone", (("allow", "GET, HEAD"),))
    asked = head.version != "1.0" and "websocket" in _listed((head.header("upgrade") or "").lower())
    if head.method == "HEAD" or not asked:
        return _upgrade_required("this address speaks WebSocket: open it with ws:// or wss://")
    if "upgrade" not in _listed((head.header("connection") or "").lower()):
        return Refusal(400, "the handshake lacks 'Connection: Upgrade'")
    if head.header("sec-websocket-version") != _WEBSOCKET_VERSION:
        return _upgrade_required(f"the handshake must say 'Sec-WebSocket-Version: {_WEBSOCKET_VERSION}'")
    if has_body or not _WEBSOCKET_KEY.fullmatch(head.header("sec-websocket-key") or ""):
        return Refusal(400, "the handshake must have a valid Sec-WebSocket-Key, and no body")
    return None


def _upgrade_required(why: str) -> Refusal:
    return Refusal(426, why, (("upgrade", "websocket"), ("sec-websocket-version", _WEBSOCKET_VERSION)))


def _handshake(head: Head, subprotocol: str | None) -> bytes:
    """The handshake that was judged, in the words that wsproto reads: nothing else of the head is left to it."""
    lines = [
        "GET / HTTP/1.1",
        "Host: gateway",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Version: {_WEBSOCKET_VERSION}",
        f"Sec-WebSocket-Key: {head.header('sec-websocket-key')}",
        *([f"Sec-WebSocket-Protocol: {subprotocol}"] if subprotocol else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def _connection_limits(config: GatewayConfig) -> tuple[int, int]:
    """How many connections there may be, and how many more, to be told so.

    Together they have half of the process' files: the store, the agents and everybody else need some too.
    """
    if sys.platform == "win32":
        return config.max_connections, SPARE
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return config.max_connections, SPARE
    spare = max(1, min(SPARE, soft // 8))
    return max(1, min(config.max_connections, soft // 2 - spare)), spare


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
    bound_host, port, *more = listener.socket.getsockname()
    if more and more[1] and "%" not in bound_host:  # a link-local address is one of an interface, its zone
        bound_host = f"{bound_host}%{socket.if_indextoname(more[1])}"
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bound_host, bound_host)  # noqa: S104 -- compared, not bound
    if ":" in name and not name.startswith("["):
        name = f"[{name.replace('%', '%25')}]"  # a zone (RFC 6874)
    return GatewayAddress(host=host, port=port, url=f"http://{name}:{port}/")
