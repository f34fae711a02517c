"""Watching: one blocking read over many streams, which takes nothing, on a connection of its own.

Beside the topics it reads the control stream, whose bells tell of what is no new entry: a release,
a retry, a pause. A read that is cancelled goes on at the server, and the next call waits for its reply.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Final

import trio
from redis import exceptions

from omniactors.errors import BackendClosed
from omniactors.streams.redis.calls import RETRY
from omniactors.streams.redis.codes import is_passing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from omniactors.streams.redis.calls import Calls
    from omniactors.streams.redis.connection import RedisConnection
    from omniactors.streams.redis.keys import Keys

logger = logging.getLogger("omniactors.streams")

BLOCK: Final = 10.0
"""Seconds that one read waits at the server: an idle system asks so rarely, a dead link is noticed so late."""

BELLS: Final = 1000
"""Bells that the control stream keeps at least; who is further behind takes everything for changed."""


class Watcher:
    """What has changed since the last fetches. One task waits at a time."""

    def __init__(self, calls: Calls, keys: Keys) -> None:
        self._calls = calls
        self._keys = keys
        self._connection: RedisConnection | None = None
        self._asked: frozenset[str] | None = None
        """The topics of the read that the server has not answered yet."""
        self._tops: dict[str, bytes] = {}
        self._fetches: dict[str, int] = {}
        """The number of the last fetch of each topic."""
        self._ignored: set[str] = set()
        self._bells = b"0-0"
        self._changed: set[str] = set()
        self._is_all_changed = False
        self._reading = trio.CancelScope()

    def start(self, bells: bytes) -> None:
        """Begin anew, with the id of the newest bell."""
        self._bells = bells
        self._tops.clear()
        self._fetches.clear()
        self._changed.clear()
        self._is_all_changed = False

    def fetching(self, topics: Iterable[str]) -> None:
        """A fetch of these topics is about to be sent: it will see what has changed so far."""
        self._changed.difference_update(topics)

    def fetched(self, topic: str, top: bytes, number: int) -> None:
        """Fetch `number` saw the stream up to this entry; b"" when there may be more, and nobody waits yet."""
        self._ignored.discard(topic)
        if top:
            self._tops[topic] = top
        self._fetches[topic] = number

    def ignore(self, topic: str) -> None:
        """The key of this topic holds no stream: it cannot be read, and would stop the reading of all."""
        self._ignored.add(topic)

    def change_all(self) -> None:
        """Whatever is waited for counts as changed."""
        self._is_all_changed = True
        self._reading.cancel("everything may have changed")

    async def wait(self, positions: Mapping[str, int]) -> frozenset[str]:
        """Those topics in which something may have changed since the fetch of this number, as soon as there are any.

        A lost connection is made again; raises BackendUnusable when that is hopeless, BackendClosed.
        """
        generation, failures, topics = self._calls.generation, 0, frozenset(positions)
        await trio.lowlevel.checkpoint()
        while True:
            # Looked at after each reply: a fetch for one group may have hidden what is news to another one.
            if passed := frozenset(topic for topic in topics if positions[topic] < self._fetches.get(topic, 0)):
                return passed
            if self._is_all_changed:
                self._is_all_changed = False
                return topics
            if found := topics & self._changed:
                return found
            try:
                with trio.CancelScope() as self._reading:
                    await self._read(topics)
                failures = 0
                continue
            except (exceptions.RedisError, OSError, trio.ClosedResourceError) as error:
                await self.disconnect()
                if generation != self._calls.generation:
                    raise BackendClosed(f"{self._calls.redis.location} was closed") from None
                if not is_passing(error) and not isinstance(error, exceptions.ConnectionError | OSError):
                    raise self._calls.translate(error) from None
                failures += 1
                if failures == 1:
                    logger.warning("watching is interrupted: %s", self._calls.translate(error))
            self._is_all_changed = True
            await trio.sleep(RETRY.delay(failures, random.random()))  # noqa: S311 -- jitter, not a secret

    async def disconnect(self) -> None:
        """Let go of the connection; who waits is sent away or connects again."""
        connection, self._connection, self._asked = self._connection, None, None
        if connection is not None:
            with trio.CancelScope(shield=True):
                await connection.aclose()

    async def _read(self, topics: frozenset[str]) -> None:
        if self._connection is None or not self._connection.is_usable:
            self._asked = None
            self._connection = await self._calls.redis.connect()
        connection = self._connection
        if self._asked is not None and not topics <= self._asked:
            if connection.client_id is None:  # CLIENT ID is not allowed to us, so nobody could be unblocked
                await self.disconnect()
                return
            await self._calls.redis.call("CLIENT", "UNBLOCK", connection.client_id)
            await self._take_reply(connection)
            return
        if self._asked is None:
            order = sorted(topics - self._ignored)
            streams = [self._keys.control, *(self._keys.stream(topic) for topic in order)]
            tops = [self._bells, *(self._tops.get(topic, b"0-0") for topic in order)]
            await connection.send("XREAD", "COUNT", 1, "BLOCK", round(BLOCK * 1000), "STREAMS", *streams, *tops)
            self._asked = topics
        await self._take_reply(connection)

    async def _take_reply(self, connection: RedisConnection) -> None:
        reply = await connection.receive(timeout=BLOCK + 5.0)
        self._asked = None
        for name, entries in reply or ():
            key = name.decode()
            if key == self._keys.control:
                await self._hear()
            else:
                topic = key.removeprefix(self._keys.stream(""))
                if _is_after(entries[0][0], self._tops.get(topic, b"0-0")):
                    self._changed.add(topic)

    async def _hear(self) -> None:
        """Take in the bells that have rung since the last ones."""
        bells = await self._calls.redis.call("XRANGE", self._keys.control, b"(" + self._bells, "+", "COUNT", BELLS)
        for bell_id, fields in bells:
            self._bells = bell_id
            self._changed.add(fields[1].decode())
        if len(bells) == BELLS:
            self._is_all_changed = True
            newest = await self._calls.redis.call("XREVRANGE", self._keys.control, "+", "-", "COUNT", 1)
            self._bells = newest[0][0] if newest else self._bells


def _is_after(one: bytes, other: bytes) -> bool:
    return tuple(map(int, one.split(b"-"))) > tuple(map(int, other.split(b"-")))
