"""One connection that many tasks share: what is ready together leaves together, and replies come in order.

The queue of waiters is the protocol: a waiter that is cancelled keeps its place, and its reply is
dropped. Only the link's own two tasks wait for the socket, so no cancelled caller ever leaves half a frame.
"""

from __future__ import annotations

import collections
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from redis import exceptions

from omniactors.streams.redis.errors import ConnectionLost
from omniactors.streams.redis.lookout import Lookout
from omniactors.streams.redis.wire import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import hiredis

    from omniactors.streams.redis.connection import Reply
    from omniactors.streams.redis.wire import Wire

LOOKS_PER_LIMIT = 4
"""How often the head of the queue is looked at within one response timeout."""

BUSY = 100e-6
"""Seconds of a turn after which the loop has enough to do to stay awake."""

_CLOSED = "the connection was closed here"


class Waiter:
    """A command on its way, from `Link.begin` until its reply is in `reply`.

    `task` is None once nobody waits: its reply is dropped, or the command withdrawn if it had not left.
    """

    __slots__ = ("data", "limit", "reply", "task")

    def __init__(self, data: bytes, limit: float | None, task: trio.lowlevel.Task) -> None:
        self.data = data
        self.limit = limit
        self.task: trio.lowlevel.Task | None = task
        self.reply: Reply = None

    def abandon(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """The abort function of the wait."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


class Link:
    """A connection in use by many tasks from the moment `serve` runs until it returns.

    `on_lost` is called, once and without waiting, before the waiters learn of the loss.
    """

    def __init__(
        self,
        wire: Wire,
        reader: hiredis.Reader,
        location: str,
        *,
        response_timeout: float,
        on_lost: Callable[[], None],
    ) -> None:
        self._wire = wire
        self._reader = reader
        self._location = location
        self._response_timeout = response_timeout
        self._on_lost = on_lost
        self._ready: list[Waiter] = []
        self._leaving: list[Waiter] = []
        self._queue: collections.deque[Waiter] = collections.deque()
        self._lookout = Lookout()
        self._writer: trio.lowlevel.Task | None = None
        self._failure: str | None = None
        self._scope = trio.CancelScope()
        self._look = trio.CancelScope()

    @property
    def outstanding(self) -> int:
        """How many replies are owed, to whoever."""
        return len(self._queue) + len(self._ready)

    def begin(self, data: bytes, limit: float | None = None) -> Waiter:
        """Put one packed command on its way; raises ConnectionLost.

        The caller does nothing but `await wait_task_rescheduled(waiter.abandon)` next and finds the reply, or
        the error, in `waiter.reply`. It leaves when all tasks that are ready now have run, in one piece with
        theirs. `limit` replaces the response timeout for this command.
        """
        if self._failure is not None:
            raise ConnectionLost(self._failure, sent=False)
        waiter = Waiter(data, limit, trio.lowlevel.current_task())
        self._ready.append(waiter)
        task = self._writer
        if task is not None:
            self._writer = None
            trio.lowlevel.reschedule(task)
        if limit is not None:
            self._look.deadline = min(self._look.deadline, trio.current_time() + limit / LOOKS_PER_LIMIT)
        return waiter

    async def serve(self) -> bool:
        """Carry the exchanges until the connection ends: True when it was lost, False when it was closed here."""
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._write)
                nursery.start_soon(self._read)
        finally:
            self._end(_CLOSED)
        return self._failure != _CLOSED

    def close(self) -> None:
        """End the link; who waits for a reply gets ConnectionLost."""
        self._fail(_CLOSED)

    # -- writing -------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _write(self) -> None:
        while self._failure is None:
            if not self._ready:
                self._writer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._writer_cancelled)
            try:
                self._send_ready()
                if not self._wire.is_flushed:
                    await self._wire.flush()
            except (OSError, trio.ClosedResourceError) as exc:
                self._take_last_words()
                self._fail(f"the connection to {self._location} is lost: {reason_of(exc)}")
            self._leaving = []
            await self._look_out()

    async def _look_out(self) -> None:
        """Keep the loop turning while a reply may come; one that has other work needs no help with that."""
        turns = self._lookout.turns()
        for _ in range(turns):
            if self._ready or not self._queue:
                break
            since = time.perf_counter()
            await trio.lowlevel.checkpoint()
            if time.perf_counter() - since > BUSY:
                return
        if turns:
            self._lookout.note(has_come=not self._queue)

    def _writer_cancelled(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _send_ready(self) -> None:
        leaving = self._leaving = [waiter for waiter in self._ready if waiter.task is not None]
        self._ready = []
        self._queue.extend(leaving)
        if leaving:
            self._wire.write(b"".join([waiter.data for waiter in leaving]))

    # -- reading -------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _read(self) -> None:
        head: Waiter | None = None
        since = trio.current_time()
        while self._failure is None:
            with trio.move_on_after(self._until_next_look()) as self._look:
                await self._read_until_lost()
            now = trio.current_time()
            oldest = self._queue[0] if self._queue else None
            if oldest is not head:
                head, since = oldest, now
            elif head is not None and now - since >= self._limit_of(head):
                self._fail(f"{self._location} did not answer within {self._limit_of(head):g} s")

    def _limit_of(self, waiter: Waiter) -> float:
        return self._response_timeout if waiter.limit is None else waiter.limit

    def _until_next_look(self) -> float:
        head = self._limit_of(self._queue[0]) if self._queue else self._response_timeout
        return min(self._response_timeout, head) / LOOKS_PER_LIMIT

    async def _read_until_lost(self) -> None:
        wire = self._wire
        while self._failure is None:
            try:
                await wire.readable()
                data = wire.read()
            except (OSError, trio.ClosedResourceError) as exc:
                self._fail(f"the connection to {self._location} is lost: {reason_of(exc)}")
                return
            if data:
                self._hand_out(data)
            elif data is not None:
                self._fail(f"the connection to {self._location} is lost: the server closed it")

    def _take_last_words(self) -> None:
        """What the server said before it closed: that a command is too big for it, it says while that is being sent."""
        with suppress(OSError):
            while data := self._wire.read():
                self._hand_out(data)

    def _hand_out(self, data: bytes) -> None:
        reader, queue, reschedule = self._reader, self._queue, trio.lowlevel.reschedule
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                if not queue:
                    self._fail(f"the connection to {self._location} is lost: a reply came that nobody asked for")
                    return
                waiter = queue.popleft()
                task = waiter.task
                if task is not None:
                    waiter.task = None
                    waiter.reply = reply
                    reschedule(task)
        except exceptions.InvalidResponse:
            self._fail(f"the connection to {self._location} is lost: what came is not RESP")

    # -- the end -------------------------------------------------------------------------------

    def _fail(self, reason: str) -> None:
        self._end(reason)
        self._scope.cancel()

    def _end(self, reason: str) -> None:
        if self._failure is not None:
            return
        self._failure = reason
        unsent = self._unsent_commands()
        waiters = [*self._queue, *self._ready]
        self._queue.clear()
        self._ready.clear()
        self._wire.close()
        self._on_lost()
        for place, waiter in enumerate(waiters):
            task, waiter.task = waiter.task, None
            if task is not None:
                waiter.reply = ConnectionLost(reason, sent=place < len(waiters) - unsent)
                trio.lowlevel.reschedule(task)

    def _unsent_commands(self) -> int:
        """How many of the last commands have certainly not left, not even in part."""
        count, bytes_left = len(self._ready), self._wire.unsent
        for waiter in reversed(self._leaving):
            bytes_left -= len(waiter.data)
            if bytes_left < 0:
                break
            count += 1
        return count
