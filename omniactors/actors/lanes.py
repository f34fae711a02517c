"""Sources of work, and the sleep of those who wait for some: no wake-up is lost.

Only who sleeps stands in the lines of its sources. Whoever is woken, by whatever, leaves all of them
in the same instant, so the next thing that comes wakes another one; and whoever was woken for one
source and finds something else to do first has that source wake the next (trio's `_channel.py`,
with several channels at once).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence


class Parker:
    """Where one task sleeps until there is something to do; waking it twice, or while it is awake, is harmless."""

    __slots__ = ("_sources", "_task", "errand")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._sources: Sequence[Source] = ()
        self.errand: Source | None = None
        """The source that has woken the task, until it has begun to work from it or had it wake another."""

    @property
    def is_parked(self) -> bool:
        """Whether the task sleeps here now."""
        return self._task is not None

    def park(self, sources: Sequence[Source] = ()) -> Awaitable[None]:
        """Sleep until `wake`, when awaited, at once: one of the `sources` may call it.

        Cancellable; always yields to the scheduler.
        """
        self._task = trio.lowlevel.current_task()
        self._sources = sources
        for source in sources:
            source.add_idle(self)
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105 -- awaited by the caller, one frame less for every idle actor

    def wake(self, errand: Source | None = None) -> None:
        """Wake the task, if it sleeps. Raises RuntimeError, and changes nothing, in a thread without trio."""
        task = self._task
        if task is not None:
            trio.lowlevel.reschedule(task)
            self.errand = errand
            self._task = None
            for source in self._sources:
                source.discard_idle(self)

    def turn_to(self, source: Source | None) -> None:
        """The task is going to work from `source`, or on something of its own: another's errand is another's to do."""
        errand, self.errand = self.errand, None
        if errand is not None and errand is not source:
            errand.pass_on()

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        for source in self._sources:
            source.discard_idle(self)
        return trio.lowlevel.Abort.SUCCEEDED


class Source:
    """What actors work from, and who of them sleeps for want of it."""

    __slots__ = ("_idle",)

    def __init__(self) -> None:
        # Ordered, so that the actor that has been idle longest is woken first.
        self._idle: dict[Parker, None] = {}

    @property
    def has_work(self) -> bool:
        """Whether there is something to take."""
        raise NotImplementedError

    def add_idle(self, parker: Parker) -> None:
        """Let `parker` be woken by the next thing that comes."""
        self._idle[parker] = None

    def discard_idle(self, parker: Parker) -> None:
        """Forget `parker`; harmless when it is not known."""
        self._idle.pop(parker, None)

    def wake_one(self) -> None:
        """Something has come: wake who has slept longest, if anybody sleeps."""
        for parker in self._idle:
            parker.wake(self)
            return

    def pass_on(self) -> None:
        """Wake another one for what is here: the one that was woken for it does something else."""
        if self._idle and self.has_work:
            self.wake_one()


class Lane(Source):
    """A source of work beside the mailbox, shared by as many actors as like to pull from it."""

    __slots__ = ()

    def take(self) -> object | None:
        """The next item, or None when there is nothing to do now."""
        raise NotImplementedError

    def describe(self, item: object) -> str:
        """What an item is called where a tree is shown."""
        return type(item).__name__
