"""Replies that come later than the handler's return."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Never, cast

from omniactors.actors.home import check_thread, this_thread
from omniactors.errors import AskFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from omniactors.actors.mailbox import Ask


class _NoReply:
    __slots__ = ()

    def __repr__(self) -> str:
        return "NoReply"


def is_no_reply(value: object) -> bool:
    """Whether a handler returned `NoReply`."""
    return isinstance(value, _NoReply)


class ReplyHandle:
    """The reply to one ask, owed by an actor; made by `Actor.reply_later`.

    One that is never used fails the ask with ActorStopped when the actor's incarnation ends.
    """

    __slots__ = ("_ask", "_path", "_thread")

    def __init__(self, ask: Ask | None, path: str) -> None:
        self._ask = ask
        self._path = path
        self._thread = this_thread()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits: not after a reply, nor when the asker gave up or only told."""
        return self._ask is not None and self._ask.task is not None

    def reply(self, value: object) -> None:
        """Answer with `value`; dropped when nobody waits any more. RuntimeError in another thread than the actor's."""
        self._check_thread()
        if self._ask is not None:
            self._ask.reply(value)

    def fail(self, error: Exception) -> None:
        """Answer with AskFailed, from `error`; dropped when nobody waits any more. RuntimeError as from `reply`."""
        self._check_thread()
        if self._ask is not None:
            failure = AskFailed(self._path, self._ask.message)
            failure.__cause__ = error
            self._ask.fail(failure)

    def _check_thread(self) -> None:
        check_thread(self._thread, self._path, "trio.from_thread.run_sync(handle.reply, value)")


class Owed:
    """The asks to which one incarnation owes a reply; those that were answered elsewhere are dropped in time."""

    def __init__(self) -> None:
        self._asks: deque[Ask] = deque()

    def add(self, ask: Ask) -> None:
        """Owe one more."""
        # Two are looked at for one that comes: about half are kept in vain at most, at a fixed cost.
        for _ in range(min(2, len(self._asks))):
            owed = self._asks.popleft()
            if owed.task is not None:
                self._asks.append(owed)
        self._asks.append(ask)

    def fail_all(self, error: Callable[[object], Exception]) -> None:
        """Fail each with what `error` makes of its message, and owe nothing."""
        while self._asks:
            ask = self._asks.popleft()
            ask.fail(error(ask.message))


# Typed so that a handler of any reply type may return it.
NoReply: Final[Never] = cast("Never", _NoReply())
"""Returned by a handler that has called `self.reply_later()`: the reply comes through the handle."""
