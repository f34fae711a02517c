"""Commands: requests to a supervisor's control task, with an answer, and a way to give up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import outcome
import trio

from omniactors.actors.refs import ChildRef
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

    def __init__(self) -> None:
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
        """Carry the command out; what that raises goes to the caller."""
        raise NotImplementedError

    def answer(self, value: T) -> None:
        """Answer it, unless it is answered already or nobody waits any more."""
        self.on_abandon = None
        self._finish(outcome.Value(value))

    def refuse(self, error: Exception) -> None:
        """As `answer`, with an error."""
        self.on_abandon = None
        self._finish(outcome.Error(error))

    def concerns(self, place: Place) -> None:
        """Note that the caller now waits for the child at `place`."""
        if self._caller is not None and self._task is not None:
            self._caller.hold(place)

    def _give_up(self, error: Exception) -> None:
        self._finish(outcome.Error(error))
        self._abandon()

    def _abandon(self) -> None:
        self._is_withdrawn = self.can_withdraw
        if self.on_abandon is not None:
            self.on_abandon()

    def _finish(self, result: outcome.Outcome[T]) -> None:
        task = self._task
        if task is not None:
            self._go_on()
            trio.lowlevel.reschedule(task, result)

    def _go_on(self) -> None:
        self._task = None
        if self._caller is not None:
            self._caller.go_on()


class ActionCommand(Command[T]):
    """A request whose answer is what `action` returns."""

    def __init__(self, action: Callable[[Command[T]], Coroutine[Any, Any, T]]) -> None:
        super().__init__()
        self._action = action

    async def perform(self) -> None:
        """Do it, and answer."""
        if not self._is_withdrawn:
            self._finish(await outcome.acapture(self._action, self))


class StartCommand(Command[ChildRef]):
    """A request to start a child: `begin` only begins it, and the command is answered when the child is ready."""

    def __init__(self, begin: Callable[[StartCommand], None]) -> None:
        super().__init__()
        self._begin = begin

    @trio.lowlevel.enable_ki_protection
    def begin_now(self) -> None:
        """Begin in the caller's own task, before its `wait()`; raises what `begin` raises."""
        try:
            self._begin(self)
        except BaseException:
            self._go_on()
            raise

    async def perform(self) -> None:
        """Begin; what that raises goes to the caller."""
        if not self._is_withdrawn:
            try:
                self._begin(self)
            except Exception as error:  # noqa: BLE001 -- it is the caller's
                self.refuse(error)


class StopCommand(ActionCommand[None]):
    """A request to stop a child: carried out even when nobody waits for it any more, and while all stops."""

    can_withdraw: ClassVar[bool] = False
