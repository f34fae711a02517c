"""Replies that come later than the handler's return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Never, cast

from omniactors.errors import AskFailed

if TYPE_CHECKING:
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

    __slots__ = ("_ask", "_path")

    def __init__(self, ask: Ask | None, path: str) -> None:
        self._ask = ask
        self._path = path

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits: not after a reply, nor when the asker gave up or only told."""
        return self._ask is not None and self._ask.task is not None

    def reply(self, value: object) -> None:
        """Answer with `value`; dropped when nobody waits any more."""
        if self._ask is not None:
            self._ask.reply(value)

    def fail(self, error: Exception) -> None:
        """Answer with AskFailed, from `error`; dropped when nobody waits any more."""
        if self._ask is not None:
            failure = AskFailed(self._path, self._ask.message)
            failure.__cause__ = error
            self._ask.fail(failure)


# Typed so that a handler of any reply type may return it.
NoReply: Final[Never] = cast("Never", _NoReply())
"""Returned by a handler that has called `self.reply_later()`: the reply comes through the handle."""
