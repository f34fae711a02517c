"""How a connection is made: one attempt at a time, bounded, spaced by backoff, each failure a clear sentence."""

from __future__ import annotations

import os
import random
import socket
import ssl
from typing import TYPE_CHECKING

import trio

from omniactors.backoff import Backoff
from omniactors.streams.redis.connection import RedisConnection
from omniactors.streams.redis.errors import ConnectFailed, ServerUnusable, same_failure
from omniactors.streams.redis.handshake import introduce
from omniactors.streams.redis.wire import TlsWire, Wire, reason_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omniactors.streams.redis.address import Address

SPACING = Backoff(initial=0.05, factor=2.0, maximum=2.0, jitter=0.5, reset_after=1.0)
"""Between failed attempts; a connection that lived less than `reset_after` counts as one."""


class Dialer:
    """Makes the connections of one client within one trio run.

    `credentials` gives (), (password,) or (user, password) for each attempt; `connect_timeout` (seconds)
    bounds an attempt as a whole; `name` is for CLIENT SETNAME.
    """

    def __init__(
        self,
        address: Address,
        credentials: Callable[[], Awaitable[tuple[str, ...]]],
        *,
        connect_timeout: float,
        response_timeout: float,
        name: str | None,
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._connect_timeout = connect_timeout
        self._response_timeout = response_timeout
        self._name = name
        self._lock = trio.Lock()
        self._failures_in_a_row = 0
        self._failed_attempts = 0
        self._last_failure = ConnectFailed("nothing was tried")
        self._not_before = trio.current_time()
        self._connected_at: float | None = None

    @property
    def failed_attempts(self) -> int:
        """How many attempts have failed so far."""
        return self._failed_attempts

    async def open(self, *, seen: int | None = None) -> RedisConnection:
        """A connection that has introduced itself; raises ConnectFailed, or ServerUnusable if retrying is no use.

        Who asks while an attempt is under way, or awaited, joins it: its failure is theirs too. `seen` is
        `failed_attempts` when the asking began, if that was before this call.
        """
        since = self._failed_attempts if seen is None else seen
        async with self._lock:
            if self._failed_attempts != since:
                raise same_failure(self._last_failure)
            await trio.sleep_until(self._not_before)
            try:
                connection = await self._attempt()
            except ConnectFailed as exc:
                self._last_failure = exc
                self._failed_attempts += 1
                self._space()
                raise
            self._connected_at = trio.current_time()
            return connection

    def note_lost(self, lifetime: float) -> None:
        """A connection was lost after `lifetime` seconds: one that was hardly used spaces the next attempt."""
        if lifetime < SPACING.reset_after:
            self._space()

    def _space(self) -> None:
        now, connected_at = trio.current_time(), self._connected_at
        if connected_at is not None and now - connected_at >= SPACING.reset_after:
            self._failures_in_a_row = 0
        self._connected_at = None
        self._failures_in_a_row += 1
        delay = SPACING.delay(self._failures_in_a_row, random.random())  # noqa: S311 -- spreads load, keeps no secret
        self._not_before = now + delay

    async def _attempt(self) -> RedisConnection:
        where = self._address.location
        suspicion = ", or does not speak TLS" if self._address.tls else ""
        with trio.move_on_after(self._connect_timeout):
            wire = await open_wire(self._address)
            suspicion = ""
            connection = RedisConnection(wire, where, response_timeout=self._response_timeout)
            try:
                await introduce(connection, self._address, await self._credentials(), self._name)
            except BaseException:
                wire.close()
                raise
            return connection
        raise ConnectFailed(f"{where} did not answer within {self._connect_timeout:g} s{suspicion}")


async def open_wire(address: Address) -> Wire:
    """Connect and, where the address says so, agree on TLS; raises ConnectFailed or ServerUnusable."""
    sock = await _open_socket(address)
    if address.tls is None:
        return Wire(sock)
    where = address.location
    try:
        wire = TlsWire(sock, address.tls, address.host)
    except ValueError as exc:
        sock.close()
        raise ServerUnusable(f"TLS with {where} is not possible: {exc}") from exc
    try:
        await wire.handshake()
    except BaseException as exc:
        wire.close()
        if isinstance(exc, ssl.SSLError):
            raise ServerUnusable(f"TLS with {where} was refused: {_tls_reason(exc)}") from exc
        if isinstance(exc, OSError):
            raise ConnectFailed(f"{where} ended the connection during the TLS handshake") from exc
        raise
    return wire


async def _open_socket(address: Address) -> socket.socket:
    where = address.location
    try:
        return await _open_unix(address.path) if address.path is not None else await _open_tcp(address)
    except socket.gaierror as exc:
        kind = ConnectFailed if exc.errno == socket.EAI_AGAIN else ServerUnusable
        raise kind(f"the host of {where} is not known: {exc.strerror}") from exc
    except FileNotFoundError as exc:
        raise ConnectFailed(f"there is no socket at {where}") from exc
    except OSError as exc:
        raise ConnectFailed(f"{where} cannot be reached: {_network_reason(exc)}") from exc
    except ValueError as exc:  # a host that is no name at all, a path that is too long
        raise ServerUnusable(f"{where} is no address: {exc}") from exc


async def _open_unix(path: str) -> socket.socket:
    stream = await trio.open_unix_socket(path)
    return socket.socket(fileno=stream.socket.detach())


async def _open_tcp(address: Address) -> socket.socket:
    stream = await trio.open_tcp_stream(address.host, address.port)
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


def _network_reason(exc: OSError) -> str:
    """The system's words; trio wraps them in its own, with a group of errors, one per address that was tried."""
    cause = exc.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    found = cause if isinstance(cause, OSError) else exc
    return os.strerror(found.errno) if found.errno else reason_of(found)


def _tls_reason(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return exc.verify_message
    if exc.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}:
        return "the server does not speak TLS there"
    return exc.reason or str(exc)
