"""What the other processes of the fault tests do, each as its plan says.

They use omniactors through its public door only, and write what they do to a journal.
"""

from __future__ import annotations

import logging
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio
import trio.testing

from omniactors import Agent, BackendError, Backoff, EventEnvelope, Mailbox, OmniActors, RetryPolicy
from tests.faults.journal import UP, Journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from omniactors.agents.options import AgentKeywords
    from tests.faults.checker import Kind

NEXT = "next"
"""The topic to which every handled task publishes one event, as part of its settlement."""

TOLD: dict[str, Kind] = {"task.completed": "commit", "task.late_completion": "late", "task.dead_lettered": "dead"}

BUS_CAPACITY = 1_000_000

FAILURE_PAUSE = 0.05
"""Seconds between two tries of one event."""

TRIES_AGAIN = 0.5
"""How likely a publisher that is not stubborn is to try a failed event again."""

logger = logging.getLogger("publisher")


class Task(msgspec.Struct, frozen=True):
    """The content of an event: how long its handling takes, its ordering key, and how many tries fail at first."""

    seconds: float = 0.0
    key: str = ""
    failures: int = 0


class WorkPlan(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A process with agents. `copies` further agents, each on a topic of its own, do nothing."""

    url: str
    journal: str
    name: str
    topic: str = "work"
    agent: str = "worker"
    concurrency: int = 8
    limit: int | None = None
    capacity: int | None = None
    """How many events it may hold in memory; as many as it likes when it is None."""
    is_ordered: bool = False
    is_chained: bool = False
    """Whether each task publishes an event to NEXT, which is handled here too."""
    copies: int = 0


class PublishPlan(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A process that publishes until SIGTERM, or until it has published `count` events.

    Of an event whose publish failed it tries half again, with the same id, and gives up half.
    """

    url: str
    journal: str
    name: str
    topic: str = "work"
    count: int = 10**9
    pause: float = 0.0
    keys: int = 0
    task: Task = Task()
    flaky: int = 0
    """Each event of this number fails at its first try; none when it is 0."""
    delay: float = 0.0
    seed: int = 0
    is_stubborn: bool = False
    """Whether it tries every event again until it is acknowledged."""


Plan = WorkPlan | PublishPlan


class Stumble(Exception):
    """A try that fails as its task says."""


def make_worker(plan: WorkPlan, journal: Journal) -> type[Agent]:
    keywords: AgentKeywords = {"topic": plan.topic, "name": plan.agent, "concurrency": plan.concurrency}
    keywords["retry"] = RetryPolicy(max_attempts=10, backoff=Backoff(initial=0.05, maximum=0.5))
    if plan.limit is not None:
        keywords["limit"] = plan.limit
    if plan.capacity is not None:
        keywords["mailbox"] = Mailbox(plan.capacity)
    if plan.is_ordered:
        keywords["key"] = "key"

    class Worker(Agent, **keywords):
        async def handle(self, event: EventEnvelope[Task]) -> str:
            task = event.payload.content
            if event.delivery_attempts <= task.failures:
                raise Stumble
            journal.write("start", event.id)
            await trio.sleep(task.seconds)
            if plan.is_chained:
                await self.publish(NEXT, event.id)
            journal.write("done", event.id)
            return plan.name

    return Worker


def make_follower(journal: Journal, names: dict[str, str]) -> type[Agent]:
    """The second stage: its tasks are journaled as next/ID, after the task that published them."""

    class Follower(Agent, topic=NEXT, name="follower", concurrency=4):
        async def handle(self, event: EventEnvelope[str]) -> None:
            name = names[event.id] = f"{NEXT}/{event.payload.content}"
            journal.write("start", name)
            await trio.lowlevel.checkpoint()
            journal.write("done", name)

    return Follower


def make_idler(number: int) -> type[Agent]:
    class Idler(Agent, topic=f"idle-{number}", name=f"idler-{number}"):
        async def handle(self, event: EventEnvelope[Task]) -> None:
            await trio.sleep(event.payload.content.seconds)

    return Idler


class Lapses(logging.Handler):
    """Journals that the lease has ended, when the log says so."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        if "its lease ended" in record.getMessage():
            self._journal.write("lapse", "")


async def work(plan: WorkPlan) -> None:
    """Run the agents until SIGTERM, then stop in order; the journal tells what the bus says of each task."""
    journal = Journal(Path(plan.journal), plan.name)
    logging.getLogger("omniactors.streams").addHandler(Lapses(journal))
    omni = OmniActors(plan.url)
    omni.add(make_worker(plan, journal))
    names: dict[str, str] = {}
    if plan.is_chained:
        omni.add(make_follower(journal, names))
    for number in range(plan.copies):
        omni.add(make_idler(number))
    events = omni.bus.subscribe_global(capacity=BUS_CAPACITY)

    async def follow() -> None:
        async for event in events:
            kind = TOLD.get(event.event_type)
            if kind is not None:
                id = str(event.data.get("task_id"))
                journal.write(kind, names.pop(id, id))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with trio.open_nursery() as running:
                running.start_soon(_on_signal, signals, running.cancel_scope.cancel)
                await running.start(omni.run)
                journal.write(UP, "")
        await omni.shutdown()
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()


async def publish(plan: PublishPlan) -> None:
    """Publish one event after the other, each with an id of its own, and journal what became of it."""
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            publisher = Publisher(plan)
            nursery.start_soon(_on_signal, signals, publisher.stop.set)
            await publisher.run()
            nursery.cancel_scope.cancel()


class Publisher:
    """Publishes as its plan says; ends between two tries when `stop` is set."""

    def __init__(self, plan: PublishPlan) -> None:
        self.stop = trio.Event()
        self._plan = plan
        self._journal = Journal(Path(plan.journal), plan.name)
        self._chance = random.Random(f"{plan.name} {plan.seed}")
        self._omni = OmniActors(plan.url)

    async def run(self) -> None:
        """Publish until all is published or it is stopped."""
        plan = self._plan
        self._journal.write(UP, "")
        for number in range(plan.count):
            key = f"k{number % plan.keys}" if plan.keys else ""
            task = Task(plan.task.seconds, key, int(plan.flaky > 0 and number % plan.flaky == 0))
            while not await self._publish(f"{plan.name}-{number}", task) and self._goes_on():
                await self._pause(FAILURE_PAUSE)
            await self._pause(plan.pause)
            if self.stop.is_set():
                break
        await self._omni.shutdown()

    async def _publish(self, id: str, task: Task) -> bool:
        """Try once; whether it was acknowledged."""
        content = msgspec.to_builtins(task)
        self._journal.write("invoke", id)
        try:
            await self._omni.publish(self._plan.topic, content, task_id=id, delay=self._plan.delay)
        except BackendError as error:
            self._journal.write("fail" if error.outcome_known else "unknown", id)
            logger.warning("%s: %s: %s", id, type(error).__name__, error)
            return False
        self._journal.write("ok", id)
        return True

    def _goes_on(self) -> bool:
        return not self.stop.is_set() and (self._plan.is_stubborn or self._chance.random() < TRIES_AGAIN)

    async def _pause(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self.stop.wait()


async def _on_signal(signals: AsyncIterator[int], act: Callable[[], object]) -> None:
    async for _ in signals:
        act()


def main(plan: Plan) -> None:
    """Be the program of this plan, to its end."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    match plan:
        case WorkPlan():
            trio.run(work, plan)
        case PublishPlan():
            trio.run(publish, plan)
