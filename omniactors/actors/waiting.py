"""The wait-for graph: who waits for whom, so that a wait that could never end is an error at once.

Places are children, the queues of pools, and supervisors. Each waits for at most one other; a pool
goes on as soon as any of its actors does. A task that is no child is never waited for, so it is no
place. The idea of following the pointers before blocking is Chandy and Misra's, with one process.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

import trio

from omniactors.errors import DeadlockError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Place:
    """A node of the graph. One that has neither `waits_for` nor `any_of` goes on by itself."""

    __slots__ = ("any_of", "give_up", "is_over", "member_of", "parent", "path", "since", "waits_for")

    def __init__(self, path: str, parent: Place | None = None) -> None:
        self.path = path
        self.parent = parent
        """What this place is inside of: a child's supervisor, a supervisor's own place as a child."""
        self.waits_for: Place | None = None
        self.since = 0.0
        """Since when, in trio's time."""
        self.any_of: Sequence[Place] = ()
        """A pool's actors: it waits only while all of them do that are not over."""
        self.member_of: Place | None = None
        """The pool whose queue this actor works from, too."""
        self.is_over = False
        """Whether it will not do anything any more."""
        self.give_up: Callable[[DeadlockError], None] | None = None
        """Ends the wait with an error; None when it cannot be ended."""

    def wait_for(self, target: Place, give_up: Callable[[DeadlockError], None] | None = None) -> None:
        """Note that this place waits for `target`; raises DeadlockError, and notes nothing, if that closes a ring."""
        self.waits_for = target
        self.since = trio.current_time()
        if target.waits_for is None and not target.any_of and target is not self:
            self.give_up = give_up
            return
        ring = self._ring()
        if ring:
            self.waits_for = None
            raise _deadlock(ring)
        self.give_up = give_up

    def go_on(self) -> None:
        """Note that this place waits no longer; idempotent."""
        self.waits_for = self.give_up = None

    def hold(self, target: Place) -> None:
        """Note that this place waits for `target` and cannot do otherwise; a wait that so became hopeless is failed."""
        self.waits_for = target
        self.since = trio.current_time()
        if target.waits_for is not None or target.any_of or target is self:
            self.break_ring()

    def begin(self) -> None:
        """Note that it is there (again)."""
        self.is_over = False
        self.go_on()

    def end(self) -> None:
        """Note that it is over; whoever then waits in vain for its pool is failed."""
        self.is_over = True
        self.go_on()
        if self.member_of is not None:
            self.member_of.break_ring()

    def is_inside(self, other: Place) -> bool:
        """Whether this place is `other`, or a descendant of it."""
        place: Place | None = self
        while place is not None:
            if place is other:
                return True
            place = place.parent
        return False

    def break_ring(self) -> None:
        """Fail one wait of those that this place waits for, if all of them wait."""
        ring = self._ring()
        for place in ring:
            if place.give_up is not None:
                place.give_up(_deadlock(ring))
                return

    def _ring(self) -> list[Place]:
        """Everything that this place waits for, itself first, if all of it waits; else nothing."""
        seen: dict[Place, None] = {}
        pending = [self]
        while pending:
            place = pending.pop()
            if place in seen:
                continue
            ways_on = place.ways_on()
            if not ways_on:
                return []
            seen[place] = None
            pending.extend(ways_on)
        return list(seen)

    def ways_on(self) -> list[Place]:
        """What this place waits for: it goes on when one of them does, and by itself when there is none."""
        if self.waits_for is not None:
            return [self.waits_for]
        actors = [actor for actor in self.any_of if not actor.is_over]
        if self.any_of and not actors and self.parent is not None:
            return [self.parent]  # a pool without actors is being stopped, and its messages fail after that
        return actors


def _deadlock(ring: Sequence[Place]) -> DeadlockError:
    return DeadlockError((*(place.path for place in ring), ring[0].path))


class RunningChild:
    """The child that a task is."""

    __slots__ = ("is_actor", "place", "task")

    def __init__(self, place: Place, task: trio.lowlevel.Task, *, is_actor: bool) -> None:
        self.place = place
        self.task = task
        self.is_actor = is_actor


# Inherited by what a child spawns; such a task does not make the child wait, so the task is compared.
running_child: ContextVar[RunningChild | None] = ContextVar("omniactors_running_child", default=None)


def current_child() -> RunningChild | None:
    """The child that the current task is, or None for any other task."""
    running = running_child.get()
    if running is None or running.task is not trio.lowlevel.current_task():
        return None
    return running


def current_place() -> Place | None:
    """The place of the current task, or None when nobody waits for it."""
    running = current_child()
    return running.place if running is not None else None


def check_not_inside(place: Place) -> None:
    """Raise DeadlockError when the current task is an actor at `place` or below, which so waits for its own end.

    A function may do it: being stopped is being cancelled, and that ends its wait.
    """
    running = current_child()
    if running is not None and running.is_actor and running.place.is_inside(place):
        raise DeadlockError((running.place.path, place.path))
