"""A subscription: the reading end of one subscriber's queue, for one trio task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import trio

from omniactors.events.queue import Loss

if TYPE_CHECKING:
    from types import TracebackType

    from omniactors.events.event import Event
    from omniactors.events.patterns import Selection
    from omniactors.events.queue import EndReason, SubscriberQueue

CHECKPOINT_EVERY = 64
"""A reader that never waits lets other tasks run after so many events. One turn an event would let a
publisher with four events a turn outrun it."""


@dataclass(eq=False, slots=True)
class Subscriber:
    """What the bus holds of one subscription.

    While it replays, `cursor` is the offset that it has read up to; None once it is live. `until`
    ends the replay of a subscriber whose end has come.
    """

    queue: SubscriberQueue
    selection: Selection
    counted: bool
    cursor: int | None = None
    until: int | None = None


class Source(Protocol):
    """What a subscription needs of its bus."""

    @property
    def head(self) -> int:
        """The offset of the newest event."""
        ...

    def claim(self) -> None:
        """Make the current trio run the one that reads."""
        ...

    def advance(self, subscriber: Subscriber) -> None:
        """Replay one page more, or go live when there is none."""
        ...

    def gap_event(self, subscriber: Subscriber, loss: Loss) -> Event:
        """The event that tells a loss."""
        ...

    def leave(self, subscription: Subscription) -> None:
        """Forget the subscriber soon; from any thread."""
        ...


class Subscription:
    """Events for one reader, in order: `async for`, `receive`, or `receive_batch` for many at a time.

    It counts from the moment it is made, and is given up by `aclose`, by leaving `async with`, or
    when nothing refers to it any more. Where events were lost, an event of type `bus.gap` stands in
    their place. `resumed` is whether nothing is missing between `since` and the first event.
    """

    def __init__(self, source: Source, subscriber: Subscriber) -> None:
        self._source = source
        self._subscriber = subscriber
        self._queue = subscriber.queue
        self._readers: list[trio.lowlevel.Task] = []
        self._unchecked = 0
        self.start = 0
        self.resumed = True

    def begin(self, start: int, *, resumed: bool) -> None:
        """What the bus says of it: it has seen all up to offset `start`, and whether nothing is missing there."""
        self.start = self._queue.taken = start
        self.resumed = resumed

    @property
    def delivered(self) -> int:
        """Events that were read; gaps do not count."""
        return self._queue.delivered

    @property
    def dropped(self) -> int:
        """Events that matched and were not delivered."""
        return self._queue.dropped

    @property
    def matched(self) -> int:
        """Events that were meant for this subscription: delivered + dropped + queued."""
        return self._queue.matched

    @property
    def queued(self) -> int:
        """Events that wait to be read."""
        return self._queue.queued

    @property
    def lag(self) -> int:
        """How many offsets the reader is behind the bus, 0 when nothing waits."""
        if self.replaying or self.queued:
            return max(0, self._source.head - self._queue.taken)
        return 0

    @property
    def replaying(self) -> bool:
        """Whether past events are still to be read."""
        return self._subscriber.cursor is not None or self._queue.replaying

    @property
    def end_reason(self) -> EndReason | None:
        """Why nothing more will be added, None while something may."""
        return self._queue.end_reason

    @property
    def position(self) -> int:
        """An offset up to which this reader has seen all that it asked for: a place to resume from."""
        if self.replaying or self.queued:
            return self._queue.taken
        return max(self._queue.taken, self._source.head) if self.end_reason is None else self._queue.taken

    def __repr__(self) -> str:
        state = self.end_reason or ("replaying" if self.replaying else "live")
        return f"<Subscription {state}: {self.delivered} delivered, {self.dropped} dropped, {self.queued} queued>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; ends with the stream, and after `aclose`. A checkpoint now and then."""
        try:
            return await self.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def receive(self) -> Event:
        """The next event, as soon as there is one.

        A checkpoint when it waits, and otherwise once in `CHECKPOINT_EVERY` events. Cancelling loses
        nothing. Raises trio.EndOfChannel at the end of the stream, trio.ClosedResourceError after `aclose`.
        """
        self._unchecked += 1
        if self._unchecked >= CHECKPOINT_EVERY:
            self._unchecked = 0
            await trio.lowlevel.checkpoint()
        while (event := self._next()) is None:
            await self._wait()
        return event

    async def receive_batch(self, limit: int = 256) -> list[Event]:
        """At least one event and at most `limit`, as many as are there; always a checkpoint.

        Cancelling loses nothing. Raises as `receive` does.
        """
        if self._stirs:  # else waiting is the checkpoint
            await trio.lowlevel.checkpoint()
        while not (batch := self._next_batch(limit)):
            await self._wait()
        return batch

    def receive_batch_nowait(self, limit: int = 256) -> list[Event]:
        """As `receive_batch`, of what is there now; raises trio.WouldBlock when nothing is.

        Only in the trio run that reads from the bus.
        """
        batch = self._next_batch(limit)
        if not batch:
            raise trio.WouldBlock
        return batch

    def close(self) -> None:
        """Give up the subscription; a waiting reader gets trio.ClosedResourceError. May be called again."""
        self._queue.end("left")
        self._queue.discard()
        self._source.leave(self)
        self._wake_readers()

    async def aclose(self) -> None:
        """As `close`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    @property
    def _stirs(self) -> bool:
        """Whether a read would find something now, be it the end."""
        return self.end_reason is not None or self.queued > 0 or self.replaying

    def _next(self) -> Event | None:
        """What can be read now, from a further page if need be; raises at the end."""
        event = self._take()
        while event is None and self._subscriber.cursor is not None:
            self._source.advance(self._subscriber)
            event = self._take()
        if event is None and self.end_reason is not None:
            raise trio.ClosedResourceError if self.end_reason == "left" else trio.EndOfChannel
        return event

    def _next_batch(self, limit: int) -> list[Event]:
        # The common case, of live events only, is written out: half of what reading one costs is the call.
        batch = self._queue.take_live(limit)
        if not batch and (event := self._next()) is not None:
            batch.append(event)
            while len(batch) < limit and (event := self._take()) is not None:
                batch.append(event)
        return batch

    def _take(self) -> Event | None:
        item = self._queue.take()
        if item is None:
            return None
        return self._gap(item) if isinstance(item, Loss) else item

    def _gap(self, loss: Loss) -> Event:
        return self._source.gap_event(self._subscriber, loss)

    async def _wait(self) -> None:
        self._source.claim()
        # Claiming lets in what other threads had lined up: it may be what we are about to wait for.
        if self._stirs:
            await trio.lowlevel.checkpoint()
            return
        task = trio.lowlevel.current_task()
        task.custom_sleep_data = self
        self._readers.append(task)
        self._queue.wake = self._wake_readers
        try:
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)
        finally:
            self._readers.remove(task)

    def _wake_readers(self) -> None:
        """Wake those who sleep still: an exception may have come in between before, so this is called again then."""
        for task in tuple(self._readers):
            if task.custom_sleep_data is self:  # trio forgets it when the task is woken
                trio.lowlevel.reschedule(task)
