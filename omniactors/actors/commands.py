"""Commands: requests to a supervisor's control task, with an answer, and a way to give up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import outcome
import trio

from omniactors.actors.waiting import current_child

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from omniactors.actors.waiting import Place

T = TypeVar("T")


class Command(Generic[T]):
    """One request. The caller calls `announce()` and `wait()`, the control task `perform()`.

    A caller that is cancelled before the command began withdraws it; later `on_abandon` is called,
    and the command goes on without anyone to hear its answer.
    """

    can_withdraw: ClassVar[bool] = True

    def __init__(self, action: Callable[[Command[T]], Coroutine[Any, Any, T]]) -> None:
        self._action = action
        self._task: trio.lowlevel.Task | None = None
        self._caller: Place | None = None
        self._is_withdrawn = False
        self.on_abandon: Callable[[], None] | None = None

    def announce(self, place: Place) -> None:
        """Note that the current task is going to wait for the supervisor at `place`.

        Raises DeadlockError when that would never end: the supervisor is busy with the caller, or
        with something that waits for it.
        """
        self._task = trio.lowlevel.current_task()
        child = current_child()
        if child is None:
            return
        child.place.wait_for(place, self._give_up)
        if child.is_actor:
            self._caller = child.place
        else:
            # A function that is stopped meanwhile is cancelled, which ends its wait.
            child.place.go_on()

    async def wait(self) -> T:
        """The answer; raises what the action raised. Cancellable."""

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._go_on()
            self._abandon()
            return trio.lowlevel.Abort.SUCCEEDED

        answer: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    async def perform(self) -> None:
        """Carry the command out and answer it; what the action raises goes to the caller."""
        if not self._is_withdrawn:
            self._answer(await outcome.acapture(self._action, self))

    def refuse(self, error: Exception) -> None:
        """Answer with an error, undone."""
        self._answer(outcome.Error(error))

    def concerns(self, place: Place) -> None:
        """Note that the caller now waits for the child at `place`."""
        if self._caller is not None and self._task is not None:
            self._caller.hold(place)

    def _give_up(self, error: Exception) -> None:
        self._answer(outcome.Error(error))
        self._abandon()

    def _abandon(self) -> None:
        self._is_withdrawn = self.can_withdraw
        if self.on_abandon is not None:
            self.on_abandon()

    def _answer(self, result: outcome.Outcome[T]) -> None:
        task = self._task
        if task is not None:
            self._go_on()
            trio.lowlevel.reschedule(task, result)

    def _go_on(self) -> None:
        self._task = None
        if self._caller is not None:
            self._caller.go_on()


class StopCommand(Command[None]):
    """A request to stop a child: carried out even when nobody waits for it any more, and while all stops."""

    can_withdraw: ClassVar[bool] = False
