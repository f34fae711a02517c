"""Cancel everywhere: one scenario, run once for each moment at which a cancellation can come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import outcome
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from omniactors.testing.tasks import all_tasks, check_none_left, descendants, describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HANG = 10_000.0
"""Virtual seconds after which a scenario counts as hanging."""


ATTEMPTS = 100
"""How often to throw the error into what hangs: who catches it may hang again."""


def cancel_everywhere(scenario: Callable[[], Awaitable[None]], check: Callable[[], None] = lambda: None) -> int:
    """Run `scenario` again and again, each time with a cancellation at a later moment, until it ends before that.

    The moments are: before it begins, and before and after each step that any of its tasks takes; a step is what
    happens between two waits. So every wait is cancelled while it lasts, and also when its end is on the way
    already. Each run is a `trio.run` of its own with an autojump clock: call this from a plain test,
    and use neither threads nor sockets.

    After each run, the whole one at the end included, no task may be left, and `check` is called.
    The scenario may end as it likes, but not with an error, and it may not hang: what is raised
    says at which moment. Returns the number of runs that were cancelled; trio shuffles the order of
    tasks, so a moment is not the same in every run, and the number may vary.
    """
    moment = 0
    while True:
        run = _Run(scenario, moment)
        try:
            trio.run(run.main, clock=MockClock(autojump_threshold=0))
            check()
        except BaseException as error:
            if run.hang is not None:
                raise run.hang from None
            error.add_note(f"with a cancellation at moment {moment}")
            raise
        if not run.is_cancelled:
            return moment
        moment += 1


class _Run(trio.abc.Instrument):
    """One run of a scenario, cancelled at one moment."""

    def __init__(self, scenario: Callable[[], Awaitable[None]], moment: int) -> None:
        self._scenario = scenario
        self._moment = moment
        self._left = moment
        self._scope = trio.CancelScope()
        self.is_cancelled = False
        self.hang: AssertionError | None = None

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        """A moment: some task is about to go on."""
        self._count()

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        """A moment: some task has come to its next wait."""
        self._count()

    def _count(self) -> None:
        if self._left == 0:
            self.is_cancelled = True
            self._scope.cancel()
        self._left -= 1

    async def main(self) -> None:
        """Run the scenario; no task may be left after it."""
        trio.lowlevel.spawn_system_task(self._watch, trio.lowlevel.current_task())
        await wait_all_tasks_blocked()
        before = set(all_tasks())
        self._count()
        trio.lowlevel.add_instrument(self)
        try:
            with self._scope:
                await self._scenario()
        finally:
            trio.lowlevel.remove_instrument(self)
        await wait_all_tasks_blocked()
        check_none_left(task for task in all_tasks() if task not in before)

    async def _watch(self, main: trio.lowlevel.Task) -> None:
        # A system task: the scenario may hang where no cancellation of ours reaches.
        await trio.sleep(HANG)
        tasks = list(descendants(main))
        places = "".join(f"\n  {describe(task)}" for task in tasks)
        self.hang = AssertionError(f"the scenario hangs with a cancellation at moment {self._moment}:{places}")
        for _ in range(ATTEMPTS):
            # Thrown in, since it may be inside a shield. The run is lost anyway.
            for task in descendants(main):
                if not task.child_nurseries:
                    trio.lowlevel.reschedule(task, outcome.Error(self.hang))
            await wait_all_tasks_blocked()
