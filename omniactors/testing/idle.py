"""Idle: waiting until the actors of a tree have nothing to do, and saying who still has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from omniactors import Actor, ActorRef, Supervisor
from omniactors.testing.tasks import all_tasks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from omniactors import ChildRef

POLL = 0.02
"""Real seconds between two looks while only a thread, a socket or the real clock can bring a change."""
PATIENCE = 50
"""Looks in a row without any change after which nothing is expected to come any more: one second."""

RUNTIME = "omniactors.actors."
"""An actor is at work while a method of it is awaited by a module of the runtime,"""
BACKGROUND = "omniactors.actors.background"
"""other than this one, which runs what the actor does beside its messages."""


class Work(NamedTuple):
    """An actor inside one of its own methods."""

    actor: Actor[Any]
    where: str


async def wait_idle(supervisor: Supervisor) -> None:
    """Wait until every actor of the tree has nothing to do. Cancellable.

    That is: no message is queued, no handler, `on_start` or `on_stop` runs, and no child is about to
    be started, restarted or stopped. Under an autojump clock time passes meanwhile as far as it must;
    `trio.testing.wait_all_tasks_blocked` is what lets no time pass. Timers that are not due, background
    work, plain functions, and events on their way to an agent do not count.

    Raises AssertionError, with the names of those that are busy, when nothing happens for a real
    second and no deadline of any task is to come. Work in threads and on sockets that takes longer
    than this needs an event of its own to wait for.
    """
    quiet = 0
    while True:
        await wait_all_tasks_blocked()
        busy = busy_children(supervisor)
        if not busy:
            return
        pause = _until_next_deadline()
        if pause == math.inf:
            quiet += 1
            if quiet > PATIENCE:
                raise AssertionError("\n  ".join([f"the actors of {supervisor.path} do not come to rest:", *busy]))
        else:
            quiet = 0
        if pause < math.inf and isinstance(trio.lowlevel.current_clock(), MockClock):
            await trio.sleep(pause)
        else:
            await wait_all_tasks_blocked(POLL)


def busy_children(supervisor: Supervisor) -> list[str]:
    """Who has something to do in this tree at this moment, and what: one line for each reason."""
    work = list(_work())
    return [reason for ref in _descendants(supervisor) for reason in _reasons(ref, work)]


def _reasons(ref: ChildRef, work: list[Work]) -> Iterator[str]:
    if ref.status in ("starting", "restarting", "stopping"):
        yield f"{ref.path} is {ref.status}"
    if isinstance(ref, ActorRef) and ref.status != "stopped" and (queued := ref.statistics().queued):
        yield f"{ref.path} has {queued} queued"
    for actor, where in work:
        if actor.ref is ref:
            yield f"{ref.path} is in {where}"


def _descendants(supervisor: Supervisor) -> Iterator[ChildRef]:
    for ref in supervisor.which_children():
        yield ref
        if isinstance(ref.value, Supervisor):
            yield from _descendants(ref.value)


def _until_next_deadline() -> float:
    """Seconds until time alone wakes some task: `inf` for never."""
    clock = trio.lowlevel.current_clock()
    if isinstance(clock, MockClock) and clock.rate == 0 and clock.autojump_threshold == math.inf:
        return math.inf
    return max(trio.lowlevel.current_statistics().seconds_to_next_deadline, 0)


def _work() -> Iterator[Work]:
    """The actors that are at work, found on the stacks of the waiting tasks."""
    current = trio.lowlevel.current_task()
    for task in all_tasks():
        if task is not current:
            caller = ""
            for frame, line in task.iter_await_frames():
                actor = _first_argument(frame)
                if isinstance(actor, Actor) and caller.startswith(RUNTIME) and caller != BACKGROUND:
                    yield Work(actor, f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{line})")
                    break
                caller = str(frame.f_globals.get("__name__"))


def _first_argument(frame: FrameType) -> object:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
