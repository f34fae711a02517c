"""Leftovers: no task that a block started may outlive it, wherever its nursery is."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from trio.testing import wait_all_tasks_blocked

from omniactors.testing.tasks import all_tasks, check_none_left

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_marks: ContextVar[tuple[object, ...]] = ContextVar("omniactors.testing.marks", default=())


@asynccontextmanager
async def no_leftover_tasks() -> AsyncIterator[None]:
    """Raise AssertionError, with names and places, if a task that was started in the block is alive after it.

    Trio's nurseries see to their own tasks; this finds those that went to a nursery outside of the
    block, also by way of other tasks. Tasks that end by themselves without any more waiting for time
    are not leftovers. Not checked when the block itself fails.
    """
    family = TaskFamily()
    with family.marking():
        yield
    await family.check()


class TaskFamily:
    """The tasks that were started while it was marking, and those that they started, and so on.

    The mark is a context variable, which every task has from the one that started it.
    """

    @contextmanager
    def marking(self) -> Iterator[None]:
        """Count the tasks that this task starts in the block."""
        before = _marks.get()
        _marks.set((*before, self))
        try:
            yield
        finally:
            # No token: a fixture may leave the block in another context than it entered.
            _marks.set(before)

    async def check(self) -> None:
        """Raise AssertionError if one of them is alive, once all that can end by itself has ended."""
        await wait_all_tasks_blocked()
        check_none_left(task for task in all_tasks() if self in task.context.get(_marks, ()))
