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
        self._numbers: dict[ChildRef, int] = {}
        self._last = 0

    def add(self, ref: ChildRef) -> None:
        """Have `Down(ref, reason)` delivered when the child's incarnation ends, at once if none is alive.

        Watching again what is watched already changes nothing.
        """
        if ref in self._numbers:
            return
        self._last += 1
        number = self._numbers[ref] = self._last
        ref.call_at_end(lambda reason: self._ended(ref, number, reason))

    def remove(self, ref: ChildRef) -> None:
        """Watch it no more; a message that is on its way is not delivered."""
        self._numbers.pop(ref, None)

    def clear(self) -> None:
        """Watch nothing any more."""
        self._numbers.clear()

    def _ended(self, ref: ChildRef, number: int, reason: ExitReason) -> None:
        if self._numbers.get(ref) == number:
            self._deliver(Down(ref, reason), lambda: self._numbers.pop(ref, None) == number)
