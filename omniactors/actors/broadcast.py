"""Broadcast: every member of a pool gets each message, and an ask gathers a reply from each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import outcome
import trio

from omniactors.actors.mailbox import Ask
from omniactors.actors.team import MemberQueue, Rerouted, RoutedQueue, turn_away
from omniactors.errors import DeadlockError, MailboxFull

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omniactors.actors.mailbox import Mailbox, MailboxQueue
    from omniactors.actors.routes import Chooser
    from omniactors.actors.waiting import Place


class BroadcastQueue(RoutedQueue):
    """Looks like one queue to senders, and puts each message into those of all members."""

    __slots__ = ("struck",)

    def __init__(self, config: Mailbox, place: Place, on_lost: Callable[[int], None], chooser: Chooser) -> None:
        super().__init__(config, place, on_lost, chooser)
        self.struck: list[MemberQueue] = []
        """Queues of members that were told to leave: worked off, or cleared when they have ended."""

    def sweep(self) -> None:
        """Fail what is left of those who have left: a member that was down works nothing off."""
        struck, self.struck = self.struck, []
        for queue in struck:
            queue.clear()

    leaves_at_once = False  # its messages are copies: the others have theirs

    def put_nowait(self, message: object) -> None:
        """To all members; to none, with MailboxFull, when one has no room and its overflow rule drops nothing."""
        members = self._present(message)
        if self.config.overflow in ("wait", "reject") and any(member.is_full for member in members):
            raise MailboxFull(self.path, message, self.config.capacity)
        for member in members:
            member.put_nowait(message)

    async def wait_for_room(self, message: object, sender: Place | None) -> None:
        """To all members, one after the other; cancelled, the message has reached those before."""
        members = self._present(message)
        if any(member.is_full and member.place is sender for member in members):
            raise MailboxFull(self.path, message, self.config.capacity)
        for member in members:
            if not self.has(member):
                continue
            if not member.is_full:
                member.put_nowait(message)
                continue
            try:
                await member.wait_for_room(message, sender)
            except Rerouted:  # that member leaves
                continue
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_for_reply(self, ask: Ask) -> object:
        """The replies of all members, a list in their order; the first error ends it."""
        gathering = Gathering(ask)
        try:
            for member in self._present(ask.message):
                gathering.add(member)
            gathering.wait_for_next()
        except BaseException:
            gathering.abandon()
            raise

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            gathering.abandon()
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    def join(self, number: int, queue: MailboxQueue) -> None:
        """See `Team`; what was sent before is not for the new one."""
        self.enlist(number, queue)

    def leave(self, number: int) -> None:
        """See `Team`; the member handles what is queued for it."""
        queue = self.strike(number)
        if queue is not None:
            turn_away(queue)
            queue.refuse()
            self.inherit(queue)
            self.struck.append(queue)

    def help_out(self, idle: MemberQueue) -> None:
        """Nothing to do: nobody can take what is another's."""

    def take_over(self, messages: Sequence[object]) -> None:
        """Nothing to do: each has got its own."""


class Gathering:
    """One ask to many: its parts, and the replies so far."""

    __slots__ = ("_ask", "_parts", "_replies")

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._parts: dict[Part, None] = {}
        self._replies: dict[Part, object] = {}

    def add(self, queue: MemberQueue) -> None:
        """Send a part to one member, or let it wait for room there; raises as `put_nowait`."""
        part = Part(self._ask, self, queue)
        if queue.config.overflow == "wait" and queue.is_full:
            queue.senders[part] = None
        else:
            queue.put_nowait(part)
        self._parts[part] = None

    def wait_for_next(self) -> None:
        """Note in the wait-for graph that the asker waits for the first that is missing; raises DeadlockError."""
        asker = self._ask.asker
        if asker is None:
            return
        for part in self._parts:
            if part not in self._replies:
                asker.wait_for(part.queue.place, self._give_up)
                return

    def ended(self, part: Part, result: outcome.Outcome[object]) -> None:
        """One member has answered, failed, or left before it took its part."""
        if isinstance(result, outcome.Value):
            self._replies[part] = result.value
        elif isinstance(result, outcome.Error) and isinstance(result.error, Rerouted):
            del self._parts[part]
            if not self._parts:
                self._finish(outcome.Error(part.queue.stopped(part.message)))
        else:
            self._finish(result)
        if self._ask.task is None:
            return
        if len(self._replies) == len(self._parts):
            self._finish(outcome.Value([self._replies[part] for part in self._parts]))
            return
        try:
            self.wait_for_next()
        except DeadlockError as error:
            self._finish(outcome.Error(error))

    def abandon(self) -> None:
        """Withdraw what no member has begun to handle."""
        self._ask.give_up()
        for part in self._parts:
            part.withdraw()

    def _give_up(self, error: DeadlockError) -> None:
        self._finish(outcome.Error(error))

    def _finish(self, result: outcome.Outcome[object]) -> None:
        self._ask.finish(result)
        for part in self._parts:
            part.withdraw()


class Part(Ask):
    """What one member gets of an ask to many."""

    __slots__ = ("_gathering", "queue")

    def __init__(self, whole: Ask, gathering: Gathering, queue: MemberQueue) -> None:
        if whole.task is None:
            raise RuntimeError("an ask that has ended cannot be sent")
        super().__init__(whole.message, whole.task, whole.deadline, None)
        self._gathering = gathering
        self.queue = queue

    def finish(self, result: outcome.Outcome[object]) -> None:
        """Hand the member's answer in; only the first call counts."""
        if self.task is not None:
            self.task = None
            self._gathering.ended(self, result)

    def withdraw(self) -> None:
        """Nobody waits for this part any more."""
        if self.task is None:
            return
        self.task = None
        self.queue.withdraw(self)
