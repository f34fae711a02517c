"""A store that fails as it is told, before a call takes place or after it; all else is the real one in memory."""

from __future__ import annotations

from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import trio

from omniactors import Agent, BackendError, EventBus, open_supervisor
from omniactors.actors.specs import ChildSpec
from omniactors.agents.runtime import AgentRuntime
from omniactors.operations.tasks import TaskOperations
from omniactors.streams.sqlite.backend import SqliteBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from omniactors.streams.backend import Backend, Settled
    from omniactors.streams.inhand import InHand
    from omniactors.streams.settlement import Settlement

DOWN = BackendError("the store is down")
UNKNOWN = BackendError("the answer was lost", outcome_known=False)


class FaultyStore:
    """`before[method]` and `after[method]` are the errors to raise next, around the real call; `calls` counts."""

    def __init__(self) -> None:
        self.real = SqliteBackend(None)
        self.before: dict[str, list[BackendError]] = defaultdict(list)
        self.after: dict[str, list[BackendError]] = defaultdict(list)
        self.answers: dict[str, list[Callable[[Any], Any]]] = defaultdict(list)
        """What to make of the next answers."""
        self.refuse: Callable[[Settlement], BackendError | None] = lambda _: None
        """The error for a settlement that is not to be written."""
        self.lose_lease = trio.Event()
        self.calls: dict[str, list[tuple[Any, ...]]] = defaultdict(list)

    async def serve(self, *, task_status: trio.TaskStatus[str]) -> None:
        """Be the real consumer until `lose_lease` is set; then fail once, as one that finds itself taken for dead."""
        self.lose_lease = trio.Event()
        async with trio.open_nursery() as nursery:
            task_status.started(await nursery.start(self.real.serve))
            await self.lose_lease.wait()
            nursery.cancel_scope.cancel()
        raise BackendError("the lease is lost")

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """As the real one, without those that are refused."""
        refusals = [self.refuse(settlement) for settlement in settlements]
        taken = [settlement for settlement, error in zip(settlements, refusals, strict=True) if error is None]
        answers = iter(await self.__getattr__("settle_many")(taken))
        return [next(answers) if error is None else error for error in refusals]

    @property
    def settled_at_once(self) -> int:
        return self.real.settled_at_once

    @property
    def in_hand(self) -> InHand:
        return self.real.in_hand

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        real = getattr(self.real, method)

        async def call(*args: Any, **keywords: Any) -> Any:
            self.calls[method].append(args)
            if self.before[method]:
                raise self.before[method].pop(0)
            answer = await real(*args, **keywords)
            if self.after[method]:
                raise self.after[method].pop(0)
            return self.answers[method].pop(0)(answer) if self.answers[method] else answer

        return call


class Scene:
    """A runtime on a faulty store, as the system puts it together."""

    def __init__(self, *agents: type[Agent]) -> None:
        self.store = FaultyStore()
        backend = cast("Backend", self.store)
        self.bus = EventBus()
        self.runtime = AgentRuntime(backend, self.bus, grace=5.0, result_ttl=60.0, entry_limit=1 << 20)
        self.tasks = TaskOperations(backend, self.bus, entry_limit=1 << 20)
        for agent in agents:
            self.runtime.add(agent, (), {})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it for the block; a test that hangs fails after ten seconds."""
        with trio.fail_after(10):
            async with open_supervisor(
                ChildSpec(self.bus.run, id="bus"), self.runtime.tree(), emit=self.runtime.notice
            ):
                self.runtime.take_events()
                yield
            await self.store.real.close()
