"""Listening: results are announced on a channel per task, heard on one connection for the whole process.

There is no task of its own: one of those who wait reads for all, and hands that on when it leaves.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from redis import exceptions

from omniactors.errors import BackendClosed
from omniactors.streams.redis.calls import RETRY
from omniactors.streams.redis.codes import is_passing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omniactors.streams.redis.calls import Calls
    from omniactors.streams.redis.connection import RedisConnection

T = TypeVar("T")

SILENCE: Final = 30.0
"""Seconds without a word after which the connection is made again, in case it is dead."""

_FAREWELL: Final = 1.0


class _Listener:
    """Somebody who waits for one channel."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.is_heard = False
        """Whether the server has confirmed the subscription on the present connection."""
        self.has_news = False
        self._parked: trio.Event | None = None

    @property
    def is_parked(self) -> bool:
        """Whether it waits while another one reads."""
        return self._parked is not None

    def ring(self) -> None:
        """There is something for this one."""
        self.has_news = True
        self.wake()

    def wake(self) -> None:
        """Have it look around."""
        if self._parked is not None:
            self._parked.set()

    async def park(self) -> None:
        """Wait for `wake`."""
        self._parked = trio.Event()
        try:
            await self._parked.wait()
        finally:
            self._parked = None


class ResultListener:
    """Waits for announcements."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._listeners: dict[str, list[_Listener]] = {}
        self._connection: RedisConnection | None = None
        self._is_read = False
        self._unconfirmed: Counter[str] = Counter()
        """Subscriptions by channel whose confirmation was not read yet: only the last one counts."""
        self._changing = trio.Lock()

    async def wait(self, channel: str, read: Callable[[], Awaitable[T | None]]) -> T:
        """What `read` gives once it is not None; it is called again after each announcement on `channel`.

        Raises what `read` raises, BackendUnusable, BackendClosed.
        """
        generation = self._calls.generation
        listener = _Listener(channel)
        self._listeners.setdefault(channel, []).append(listener)
        try:
            failures = 0
            while True:
                if generation != self._calls.generation:
                    raise BackendClosed(f"{self._calls.redis.location} was closed")
                try:
                    await self._subscribe(listener)
                    failures = 0
                except (exceptions.RedisError, OSError, trio.ClosedResourceError) as error:
                    await self.disconnect()
                    if not is_passing(error) and not isinstance(error, exceptions.ConnectionError | OSError):
                        raise self._calls.translate(error) from None
                    failures += 1
                    if generation == self._calls.generation:
                        await trio.sleep(RETRY.delay(failures, random.random()))  # noqa: S311 -- jitter, not a secret
                    continue
                if (found := await read()) is not None:
                    return found
                await self._hear(listener)
        finally:
            await self._leave(listener)

    async def disconnect(self) -> None:
        """Let go of the connection; those who wait look again, and connect again."""
        connection, self._connection = self._connection, None
        self._unconfirmed.clear()
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.is_heard = False
                listener.ring()
        if connection is not None:
            with trio.CancelScope(shield=True):
                await connection.aclose()

    async def _subscribe(self, listener: _Listener) -> None:
        """Return once announcements on the channel are heard."""
        async with self._changing:
            if self._connection is None or not self._connection.is_usable:
                await self.disconnect()
                self._connection = await self._calls.redis.connect()
            if not listener.is_heard:
                self._unconfirmed[listener.channel] += 1
                await self._send("SUBSCRIBE", listener.channel)
        while not listener.is_heard:
            connection = self._connection
            if connection is None or not connection.is_usable:
                raise exceptions.ConnectionError("the connection was lost")
            await self._hear(listener)

    async def _hear(self, listener: _Listener) -> None:
        """Return after something came for this one, or the connection was lost."""
        try:
            while not listener.has_news:
                if self._is_read:
                    await listener.park()
                else:
                    await self._read_one()
            listener.has_news = False
        finally:
            self._pass_on()

    async def _read_one(self) -> None:
        """Read one message for all."""
        connection = self._connection
        self._is_read = True
        try:
            if connection is None:
                await self.disconnect()
                return
            kind, channel, *_ = await connection.receive(timeout=SILENCE)
            self._heard(kind, channel.decode())
        except (exceptions.RedisError, OSError, trio.ClosedResourceError):
            if connection is self._connection:
                await self.disconnect()
        finally:
            self._is_read = False

    def _heard(self, kind: bytes, channel: str) -> None:
        if kind == b"subscribe":
            self._unconfirmed[channel] -= 1
        elif kind != b"message":
            return
        is_confirmed = self._unconfirmed[channel] <= 0
        if is_confirmed:
            del self._unconfirmed[channel]
        for listener in self._listeners.get(channel, ()):
            listener.is_heard = listener.is_heard or is_confirmed
            listener.ring()

    def _pass_on(self) -> None:
        """Have one of those who wait read, if nobody does."""
        if self._is_read:
            return
        for listeners in self._listeners.values():
            for listener in listeners:
                if listener.is_parked:
                    listener.wake()
                    return

    async def _send(self, *words: str) -> None:
        # Never half a frame: a cancel waits for these few bytes.
        with trio.CancelScope(shield=True):
            if self._connection is not None:
                await self._connection.send(*words)

    async def _leave(self, listener: _Listener) -> None:
        """The connection stays for the next one who waits."""
        others = self._listeners[listener.channel]
        others.remove(listener)
        if not others:
            del self._listeners[listener.channel]
        self._pass_on()
        connection = self._connection
        if others or connection is None or not connection.is_usable:
            return
        with trio.move_on_after(_FAREWELL) as scope:
            scope.shield = True
            try:
                await connection.send("UNSUBSCRIBE", listener.channel)
            except (exceptions.RedisError, OSError, trio.ClosedResourceError, trio.BusyResourceError):
                await self.disconnect()
