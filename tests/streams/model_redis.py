"""Redis held against the model: its clock is the server's own, so time is stepped by bringing all times nearer."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import redis
import trio

from omniactors.streams.redis.backend import RedisBackend
from tests.redis_server import fresh_prefix
from tests.streams.model_subject import BREATH

if TYPE_CHECKING:
    from omniactors.streams.backend import Backend
    from tests.redis_server import RedisServer

LEASE = 3600.0
"""Seconds: longer than any script, so that a consumer dies when the test says so and at no other time."""

PASSING = ("omni-lease:", "omni-consumers", "omni-inbox:", "omni-order:", "omni-waiting:", "omni-tries:")
UNSEEN = ("omni-later:", "omni-scheduled")
"""Keys that nothing is left of when everything is settled and everybody gone."""

NEARER = """
local prefix, by = ARGV[1], tonumber(ARGV[2])
local function each(kind) return ipairs(redis.call('KEYS', prefix .. kind)) end
for _, kind in ipairs({'omni-waiting:*', 'omni-later:*', 'omni-scheduled'}) do
    for _, key in each(kind) do
        local members = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
        for i = 1, #members, 2 do
            -- What was released is due since ever.
            if tonumber(members[i + 1]) > 0 then redis.call('ZINCRBY', key, -by, members[i]) end
        end
    end
end
for _, key in each('omni-result:*') do
    local fields = redis.call('HGETALL', key)
    for i = 1, #fields, 2 do
        local expires, rest = fields[i + 1]:match('^(%d+)( .*)$')
        redis.call('HSET', key, fields[i], string.format('%.0f', tonumber(expires) - by) .. rest)
    end
end
for _, kind in ipairs({'omni-id:*', 'omni-result:*'}) do
    for _, key in each(kind) do
        local left = redis.call('PTTL', key) - by
        if left > 0 then redis.call('PEXPIRE', key, left) else redis.call('DEL', key) end
    end
end
return 1
"""
"""Brings every time that is written down nearer. {prefix, milliseconds}"""


class RedisSubject:
    """A part of a running Redis: the keys with one prefix."""

    consumers = 3
    is_shared = True
    has_clock = False
    is_lazy = True
    pause = 0.12

    def __init__(self, server: RedisServer, *, dedupe_window: float, stream_limit: int | None) -> None:
        self._server = server
        self._prefix = fresh_prefix()
        self._dedupe_window = dedupe_window
        self._stream_limit = stream_limit
        self._ahead = 0.0

    def open(self, *, lease: float = LEASE) -> Backend:
        return RedisBackend(
            self._server.url,
            prefix=self._prefix,
            lease=lease,
            dedupe_window=self._dedupe_window,
            stream_limit=self._stream_limit,
        )

    def open_keeper(self) -> Backend:
        # Nobody is taken for dead until the server has run for as long as the lease of who looks.
        return self.open(lease=0.5)

    def now(self) -> float:
        return time.time() + self._ahead

    def to_wall(self, moment: float) -> float:
        return moment - self._ahead

    async def breathe(self) -> None:
        await trio.sleep(2 * BREATH)

    async def step(self, seconds: float) -> None:
        self._server.command("EVAL", NEARER, 0, self._prefix, round(seconds * 1000))
        self._ahead += seconds

    async def kill(self, consumer: str) -> None:
        """Take its lease away."""
        assert self._server.command("DEL", f"{self._prefix}omni-lease:{consumer}") == 1

    async def restart(self) -> None:
        """Have the server forget its scripts, and read its data again from what it has written of them."""
        self._server.command("SCRIPT FLUSH")
        with contextlib.suppress(redis.ResponseError):  # from Redis 7 on the second is refused
            self._server.command("DEBUG RELOAD")

    async def leftovers(self) -> list[str]:
        with self._server.sync() as client:
            names = [key.decode().removeprefix(self._prefix) for key in client.keys(f"{self._prefix}*")]
            for key in client.scan_iter(f"{self._prefix}*"):
                client.delete(key)
        return [name for name in names if name.startswith((*PASSING, *UNSEEN))]
