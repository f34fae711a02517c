"""Watching: an actor is told when another child's present incarnation ends (OTP's monitors)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from omniactors.actors.refs import ChildRef
    from omniactors.actors.rules import ExitReason


@dataclass(frozen=True)
class Down:
    """The message that a watcher gets, once for each `watch`: the incarnation that `ref` then ran has ended.

    The reference may be running again when the message is handled; watch it anew for the next end.
    """

    ref: ChildRef
    reason: ExitReason


class Watches:
    """What one incarnation of one actor watches; ends with it."""

    def __init__(self, deliver: Callable[[Down, Callable[[], bool]], None]) -> None:
        self._deliver = deliver
        self._told: dict[ChildRef, Callable[[ExitReason], None]] = {}

    def add(self, ref: ChildRef) -> None:
        """Have `Down(ref, reason)` delivered when the child's incarnation ends, at once if none is alive.

        Watching again what is watched already changes nothing.
        """
        if ref in self._told:
            return

        def told(reason: ExitReason) -> None:
            if self._told.get(ref) is told:
                self._deliver(Down(ref, reason), lambda: self._take(ref, told))

        self._told[ref] = told
        ref.call_at_end(told)

    def remove(self, ref: ChildRef) -> None:
        """Watch it no more; a message that is on its way is not delivered."""
        told = self._told.pop(ref, None)
        if told is not None:
            ref.forget_at_end(told)

    def clear(self) -> None:
        """Watch nothing any more."""
        for ref in tuple(self._told):
            self.remove(ref)

    def _take(self, ref: ChildRef, told: Callable[[ExitReason], None]) -> bool:
        if self._told.get(ref) is not told:
            return False
        del self._told[ref]
        return True
