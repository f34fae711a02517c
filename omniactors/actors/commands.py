"""Commands: requests to a supervisor's control task, with an answer, and a way to give up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Command(Generic[T]):
    """One request. The caller waits for `wait()`, the control task calls `perform()`.

    A caller that is cancelled before the command began withdraws it; later `on_abandon` is called,
    and the command goes on without anyone to hear its answer.
    """

    def __init__(self, action: Callable[[Command[T]], Coroutine[Any, Any, T]]) -> None:
        self._action = action
        self._task: trio.lowlevel.Task | None = None
        self._withdrawn = False
        self.on_abandon: Callable[[], None] | None = None

    async def wait(self) -> T:
        """The answer; raises what the action raised. Cancellable."""
        self._task = trio.lowlevel.current_task()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._task = None
            self._withdrawn = True
            if self.on_abandon is not None:
                self.on_abandon()
            return trio.lowlevel.Abort.SUCCEEDED

        answer: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    async def perform(self) -> None:
        """Carry the command out and answer it; what the action raises goes to the caller."""
        if self._withdrawn:
            return
        self._answer(await outcome.acapture(self._action, self))

    def refuse(self, error: Exception) -> None:
        """Answer with an error, undone."""
        self._answer(outcome.Error(error))

    def _answer(self, result: outcome.Outcome[T]) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task, result)
