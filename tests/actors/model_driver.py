"""Runs one script of `tests.actors.model` on a real supervision tree and on the model, and compares."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from omniactors import Backoff, ChildSpec, DynamicSupervisor, GaveUp, Ignore, Intensity, Shutdown, open_supervisor
from omniactors.errors import SupervisionError
from tests.actors.model import Advance, Delete, End, Model, Plan, Restart, Setup, Start, Step, Stop
from tests.actors.support import Notices

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from omniactors import Supervisor
    from omniactors.actors.rules import AutoShutdown, Strategy
    from tests.actors.model import Answer, StartOutcome


@dataclass
class World:
    """What the real children do, and what they did: the order of their starts and ends."""

    plans: dict[str, deque[StartOutcome]] = field(default_factory=dict)
    endings: dict[str, trio.Event] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    living: list[str] = field(default_factory=list)

    async def child(self, child_id: str, *, task_status: trio.TaskStatus[None]) -> None:
        """A child that starts as it is planned, and ends as it is told."""
        plan = self.plans.get(child_id)
        outcome = plan.popleft() if plan else "ok"
        if outcome == "fail":
            raise OSError(f"{child_id} does not start")
        if outcome == "ignore":
            raise Ignore
        ending = self.endings[child_id] = trio.Event()
        self.living.append(child_id)
        task_status.started()
        try:
            await ending.wait()
        finally:
            self.living.remove(child_id)
        if self.how[child_id] == "crash":
            raise ValueError(child_id)
        if self.how[child_id] == "shutdown":
            raise Shutdown

    def end(self, child_id: str, how: str) -> None:
        """Have the child end by itself, if it runs."""
        if child_id in self.living:
            self.how[child_id] = how
            self.endings[child_id].set()


@dataclass(frozen=True)
class Observed:
    """What one side of the comparison shows after a step."""

    answer: Answer
    lines: tuple[str, ...]
    children: tuple[tuple[str, str, int], ...]
    counts: tuple[int, int, int]
    is_over: bool


def compare(setup: Setup, script: Sequence[Step]) -> None:
    """Run `script` on both; raises AssertionError with the step at which they differ."""
    trio.run(_compare, setup, script, clock=MockClock(autojump_threshold=0))


async def _compare(setup: Setup, script: Sequence[Step]) -> None:
    model, world, notices = Model(setup), World(), Notices()
    done = 0
    gave_up_on: object = None
    try:
        with trio.fail_after(100_000):
            async with _open(setup, notices) as sup:
                for number, step in enumerate(script):
                    answer = model.do(step)
                    if model.is_undefined:
                        return
                    expected = _model_observed(model, answer)
                    observed = await _take(sup, world, notices, step, expected)
                    assert observed == expected, f"step {number}, {step}: {observed} is not {expected}"
                    done = number + 1
    except GaveUp as error:
        gave_up_on = error.child_id
    assert gave_up_on == model.gave_up_on
    if not model.is_over:
        assert done == len(script), f"our supervisor ended at step {done}, {script[done]}"
        model.finish()
    lines = notices.take()
    if setup.strategy == "dynamic":  # they stop at the same time
        lines.sort()
        model.lines.sort()
    assert lines == model.lines
    assert world.living == []


def _open(setup: Setup, notices: Notices) -> AbstractAsyncContextManager[Supervisor]:
    intensity = Intensity(setup.restarts, setup.period)
    backoff = Backoff(initial=setup.backoff, maximum=setup.backoff, jitter=0) if setup.backoff else None
    if setup.strategy == "dynamic":
        return DynamicSupervisor(intensity=intensity, backoff=backoff, emit=notices, name="r")
    return open_supervisor(
        strategy=cast("Strategy", setup.strategy),
        intensity=intensity,
        backoff=backoff,
        auto_shutdown=cast("AutoShutdown", setup.auto_shutdown),
        emit=notices,
        name="r",
    )


def _model_observed(model: Model, answer: Answer) -> Observed:
    if model.is_over:
        # The block is cancelled within this step, so that its lines are seen only at the end.
        return Observed(answer, (), (), (0, 0, 0), is_over=True)
    lines = tuple(model.lines)
    model.lines.clear()
    children = tuple((child.id, child.state, child.starts) for child in model.children)
    active = sum(child.state == "running" for child in model.children)
    return Observed(answer, lines, children, (len(children), active, len(children)), is_over=False)


async def _take(sup: Supervisor, world: World, notices: Notices, step: Step, expected: Observed) -> Observed:
    answer = "ok"
    try:
        await _request(sup, world, step)
    except SupervisionError as error:
        answer = type(error).__name__
    if not isinstance(step, Advance):
        await wait_all_tasks_blocked()
    if expected.is_over:
        await trio.sleep_forever()  # what follows is that the supervisor cancels this
    children = tuple((str(ref.id), ref.status, ref.incarnation) for ref in reversed(sup.which_children()))
    counts = sup.count_children()
    assert counts.supervisors == 0
    seen = (counts.specs, counts.active, counts.workers)
    return Observed(answer, tuple(notices.take()), children, seen, is_over=False)


async def _request(sup: Supervisor, world: World, step: Step) -> None:
    match step:
        case Start(child_id, restart, plan, significant):
            if child_id not in {ref.id for ref in sup.which_children()}:
                world.plans[child_id] = deque(plan)
            spec = ChildSpec(world.child, child_id, id=child_id, restart=restart, significant=significant)
            await sup.start_child(spec)
        case Stop(child_id):
            await sup.stop_child(child_id)
        case Restart(child_id):
            await sup.restart_child(child_id)
        case Delete(child_id):
            await sup.delete_child(child_id)
        case Plan(child_id, plan):
            world.plans[child_id] = deque(plan)
        case End(child_id, how):
            world.end(child_id, how)
        case Advance(seconds):
            await trio.sleep(seconds)
            await wait_all_tasks_blocked()
