"""The queues of a pool: one that all members share, or one for each with a route in front of them.

Both look like one mailbox to senders, and outlast the members and the lives of the pool. Members
come and go while messages are queued: what waits for one that leaves goes to the others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import outcome
import trio

from omniactors.actors.home import this_thread
from omniactors.actors.mailbox import Ask, Mailbox, MailboxQueue, Waiting
from omniactors.errors import MailboxFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from omniactors.actors.lanes import Parker
    from omniactors.actors.routes import Chooser
    from omniactors.actors.rules import ExitReason
    from omniactors.actors.waiting import Place


class Team(Protocol):
    """What a pool's queue is told of its members, which are numbered from 1."""

    leaves_at_once: bool
    """Whether a member that is to leave ends after the message in hand; else it handles what is queued for it."""

    def begin_life(self, size: int, /) -> None:
        """The pool is about to start with this many members."""
        ...

    def end_life(self) -> None:
        """All members have ended; others may follow."""
        ...

    def recruit(self, number: int, place: Place) -> MailboxQueue:
        """There is going to be a member, at `place` in the wait-for graph; the queue it works from."""
        ...

    def join(self, number: int, queue: MailboxQueue) -> None:
        """The member is ready: it gets messages from now on. Idempotent."""
        ...

    def leave(self, number: int) -> None:
        """The member gets no more messages, and others get what is queued for it, if there are any. Idempotent."""
        ...

    def gone(self, number: int, queue: MailboxQueue, /) -> None:
        """A member that has left has ended."""
        ...

    def take_over(self, messages: Sequence[object]) -> None:
        """Deliver messages that were let in before, to whoever is there; bounds do not count."""
        ...

    def queued_for(self, number: int, /) -> int:
        """How many messages wait for this member and no other."""
        ...

    def queues(self) -> Iterator[MailboxQueue]:
        """All queues that hold messages."""
        ...


class SharedQueue(MailboxQueue):
    """One queue, from which whoever is free takes the next message."""

    __slots__ = ("_places",)

    leaves_at_once = True

    def __init__(self, config: Mailbox, place: Place, on_lost: Callable[[int], None]) -> None:
        super().__init__(config, place, on_lost)
        self._places: dict[int, Place] = {}

    def begin_life(self, _size: int) -> None:
        """See `Team`."""
        self._places.clear()
        self.open()

    def end_life(self) -> None:
        """See `Team`."""
        self.place.any_of = ()

    def recruit(self, number: int, place: Place) -> MailboxQueue:
        """See `Team`."""
        self._places[number] = place
        place.member_of = self.place
        self.place.any_of = (*self._places.values(),)
        return self

    def join(self, number: int, queue: MailboxQueue) -> None:
        """Nothing to do: it takes what it likes."""

    def leave(self, number: int) -> None:
        """Nothing to do: it takes nothing more by itself."""

    def gone(self, number: int, _queue: MailboxQueue) -> None:
        """See `Team`."""
        if self._places.pop(number, None) is not None:
            self.place.any_of = (*self._places.values(),)

    def take_over(self, messages: Sequence[object]) -> None:
        """See `Team`."""
        append(self, messages)

    def queued_for(self, _number: int) -> int:
        """None waits for one member."""
        return 0

    def queues(self) -> Iterator[MailboxQueue]:
        """See `Team`."""
        yield self


class MemberQueue(MailboxQueue):
    """The queue of one member behind a route; outlasts the member's restarts and the pool's lives."""

    __slots__ = ("_on_idle", "number")

    def __init__(
        self,
        number: int,
        config: Mailbox,
        place: Place,
        on_lost: Callable[[int], None],
        *,
        on_idle: Callable[[MemberQueue], None],
    ) -> None:
        super().__init__(config, place, on_lost)
        self.number = number
        self._on_idle = on_idle

    def add_idle(self, parker: Parker) -> None:
        """As for any mailbox; the team may have something for a member with nothing to do."""
        super().add_idle(parker)
        self._on_idle(self)

    @property
    def load(self) -> int:
        """Messages queued, in hand, and of senders that wait."""
        is_idle = self.limit == 0
        return len(self.messages) + len(self.senders) + (not is_idle)


class Rerouted(Exception):
    """The members have changed while somebody waited for room."""


class RoutedQueue(MailboxQueue):
    """Looks like one queue to senders, and puts each message into that of one member."""

    __slots__ = ("_chooser", "_in_order", "_lanes", "_orphan")

    leaves_at_once = True

    def __init__(self, config: Mailbox, place: Place, on_lost: Callable[[int], None], chooser: Chooser) -> None:
        super().__init__(config, place, on_lost)
        self.limit = 0  # nothing is ever appended here: each message takes the way through put_nowait
        self._chooser = chooser
        self._lanes: dict[int, MemberQueue] = {}
        self._in_order: tuple[MemberQueue, ...] = ()
        self._orphan: int | None = None
        """The last member, when it has left: its queue stays until there is another."""

    # -- what senders call ------------------------------------------------------------------------

    def put_nowait(self, message: object) -> None:
        """As for one mailbox; MailboxFull when the member that the route chose has no room."""
        self.check_thread()
        self.choose(message).put_nowait(message)

    async def wait_for_room(self, message: object, sender: Place | None) -> None:
        """As for one mailbox: waits at the member that the route chose."""
        while True:
            queue = self.choose(message, sender)
            if not queue.is_full:
                queue.put_nowait(message)
                await trio.lowlevel.cancel_shielded_checkpoint()
                return
            if sender is queue.place:
                raise MailboxFull(queue.path, message, self.config.capacity)
            try:
                await queue.wait_for_room(message, sender)
            except Rerouted:
                continue
            return

    async def wait_for_reply(self, ask: Ask) -> object:
        """As for one mailbox."""
        task = trio.lowlevel.current_task()
        while True:
            try:
                return await self.choose(ask.message, ask.asker).wait_for_reply(ask)
            except Rerouted:
                ask = Ask(ask.message, task, ask.deadline, ask.asker)

    async def control(self, ask: Ask) -> object:
        """Refused: there is no one actor."""
        raise TypeError(f"{self.path} is a pool: its actors are controlled one by one ({ask.message!r})")

    def choose(self, message: object, asker: Place | None = None) -> MemberQueue:
        """Where `message` goes, if possible not to the `asker` itself; raises ActorStopped when nobody takes it."""
        members = self._present(message)
        if asker is not None and self._chooser.has_choice and len(members) > 1:
            members = tuple(member for member in members if member.place is not asker)
        return self._chooser.choose(message, members)

    # -- what the pool calls ----------------------------------------------------------------------

    def open(self) -> None:
        """Take messages (again)."""
        self._closed = False
        self._reason = None
        self.token = trio.lowlevel.current_trio_token()
        self.thread = this_thread()
        for queue in self._in_order:
            queue.open()

    def refuse(self) -> None:
        """Take no more messages; those that are queued stay. Waiting senders get ActorStopped."""
        self._closed = True
        for queue in self._in_order:
            queue.refuse()

    def close(self, reason: ExitReason) -> None:
        """As for one mailbox, for each member's."""
        self._closed = True
        self._reason = reason
        for queue in self._in_order:
            queue.close(reason)

    def clear(self) -> None:
        """As for one mailbox, for each member's."""
        for queue in self._in_order:
            queue.clear()

    @property
    def accepted(self) -> int:
        """How many messages were ever let in."""
        return self._taken + sum(queue.accepted for queue in self._in_order)

    def begin_life(self, size: int, /) -> None:
        """See `Team`; what waits for members that the new life does not have goes to those it has."""
        self._orphan = None
        for number in range(1, size + 1):
            self.join(number, self._lanes.get(number) or self._new_queue(number, self.place))
        self.open()
        for number, queue in [*self._lanes.items()]:
            if number > size:
                self._drop(number, queue)

    def end_life(self) -> None:
        """Nothing to do: the queues are there for the next members."""

    def recruit(self, number: int, place: Place) -> MailboxQueue:
        """See `Team`."""
        queue = self._lanes.get(number) or self._new_queue(number, place)
        queue.place = place
        for waiting in (*queue.messages, *queue.senders):
            _point(waiting, queue)
        return queue

    def join(self, number: int, queue: MailboxQueue) -> None:
        """See `Team`; messages whose key is now the new member's go to it, and waiting senders choose again."""
        if not self.enlist(number, queue):
            return
        for other in self._in_order:
            if other is not queue:
                turn_away(other)
                if not self._chooser.has_choice:
                    self.take_over(take_all(other))

    def leave(self, number: int) -> None:
        """See `Team`; what is queued for the last one waits for whoever comes after it."""
        queue = self.strike(number)
        if queue is not None:
            turn_away(queue)
            self.take_over(take_all(queue))
            queue.refuse()
            self.inherit(queue)

    def inherit(self, queue: MemberQueue) -> None:
        """Count as its own what a queue has counted whose member leaves."""
        self._taken += queue.accepted
        self.dropped += queue.dropped

    def gone(self, number: int, queue: MailboxQueue) -> None:
        """See `Team`."""
        if self._lanes.get(number) is not queue:
            queue.refuse()
            queue.clear()

    def take_over(self, messages: Sequence[object]) -> None:
        """See `Team`."""
        for message in messages:
            body = message.message if isinstance(message, Ask) else message
            append(self._chooser.choose(body, self._in_order), [message])

    def queued_for(self, number: int, /) -> int:
        """See `Team`."""
        queue = self._lanes.get(number)
        return len(queue.messages) if queue is not None else 0

    def queues(self) -> Iterator[MailboxQueue]:
        """See `Team`."""
        yield from self._in_order

    # -- who is there -----------------------------------------------------------------------------

    def has(self, queue: MemberQueue) -> bool:
        """Whether this is the queue of a member that gets messages."""
        return self._lanes.get(queue.number) is queue

    def enlist(self, number: int, queue: MailboxQueue) -> bool:
        """Put the queue among those that get messages; False when it is there."""
        if number == self._orphan:
            self._orphan = None
        if number in self._lanes or not isinstance(queue, MemberQueue):
            return False
        queue.open()
        self._lanes[number] = queue
        self._set_order()
        orphan, self._orphan = self._orphan, None
        if orphan is not None:
            self._drop(orphan, self._lanes[orphan])
        return True

    def strike(self, number: int) -> MemberQueue | None:
        """Take a queue out of those that get messages; None when it is not there, or is the last."""
        if number not in self._lanes:
            return None
        if len(self._lanes) == 1:
            self._orphan = number
            return None
        queue = self._lanes.pop(number)
        self._set_order()
        return queue

    def _drop(self, number: int, queue: MemberQueue) -> None:
        """Do without a queue whose member has ended."""
        self.leave(number)
        self.gone(number, queue)

    def _present(self, message: object) -> tuple[MemberQueue, ...]:
        """All members that get messages; raises ActorStopped when nobody takes `message`."""
        if self._closed or not self._in_order:
            raise self.stopped(message)
        return self._in_order

    def _new_queue(self, number: int, place: Place) -> MemberQueue:
        return MemberQueue(number, self.config, place, self.on_lost, on_idle=self.help_out)

    def help_out(self, idle: MemberQueue) -> None:
        """Have senders that wait at others choose again, as many as an idle member has room for."""
        if not self._chooser.has_choice or not self.has(idle):
            return
        room = self.config.capacity
        for queue in self._in_order:
            if queue.senders:
                room -= turn_away(queue, room)

    def _set_order(self) -> None:
        self._in_order = tuple(queue for _, queue in sorted(self._lanes.items()))


def take_all(queue: MailboxQueue) -> list[object]:
    """Take out all messages that are not in hand. They do not count as taken: they will, where they go."""
    queue.unstash()
    messages = list(queue.messages)
    queue.messages.clear()
    return messages


def turn_away(queue: MailboxQueue, limit: float = math.inf) -> int:
    """Have those who wait for room choose again, at most `limit` of them; how many there were."""
    count = 0
    while queue.senders and count < limit:
        waiting, _ = queue.senders.popitem(last=False)
        waiting.finish(outcome.Error(Rerouted()))
        count += 1
    return count


def append(queue: MailboxQueue, messages: Sequence[object]) -> None:
    """Deliver what was let in before, whatever the bound."""
    for message in messages:
        queue.messages.append(message)
        _point(message, queue)
        queue.pass_on()


def _point(message: object, queue: MailboxQueue) -> None:
    """Note that whoever waits for what became of `message` waits at this queue."""
    if isinstance(message, Ask) and message.task is not None and message.asker is not None:
        message.asker.hold(queue.place)
    elif isinstance(message, Waiting) and message.task is not None and message.sender is not None:
        message.sender.hold(queue.place)
