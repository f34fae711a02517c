"""Everything at once: shared topics, retries, delays, pauses, keys and limits; and every event must end."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import Agent, EventEnvelope, Mailbox, OmniActors, RetryAfter, Settings
from omniactors.settings import MemoryUrl, RedisUrl
from tests.agents.support import QUICK, eventually
from tests.redis_server import fresh_prefix

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.redis_server import RedisServer

TOPICS = 4
EVENTS = 240


@pytest.fixture(params=["memory", "redis"])
def new_system(request: pytest.FixtureRequest) -> Callable[[], OmniActors]:
    """Makes systems on one store, as so many processes would have them; in memory there is only one."""
    if request.param == "memory":
        return lambda: OmniActors(settings=Settings(backend=MemoryUrl(), grace=5.0))
    server: RedisServer = request.getfixturevalue("redis_server")
    url, prefix = RedisUrl(server.url, server.url), fresh_prefix()
    return lambda: OmniActors(settings=Settings(backend=url, prefix=prefix, grace=5.0))


class Busy(Agent, retry=QUICK):
    """Takes some time, and asks for another try by chance."""

    dice: random.Random
    handled: dict[str, list[int]]

    async def handle(self, event: EventEnvelope[int]) -> int:
        chance = type(self).dice.random()
        await trio.sleep(max(0.0, 0.004 * (chance - 0.5)))
        if chance > 0.9 and event.delivery_attempts == 1 and self.may_fail:
            raise RetryAfter(0.03 * type(self).dice.random())
        type(self).handled[self._subscription.name].append(event.payload.content)
        return event.payload.content

    may_fail = True


class BusyInOrder(Busy):
    """The same, but for events whose order counts: a retry would lose it."""

    may_fail = False


def add_agents(omni: OmniActors) -> dict[str, list[str]]:
    """Five agents, and the topics of each."""
    topics = [f"t{number}" for number in range(TOPICS)]
    agents: dict[str, tuple[type[Busy], list[str], dict[str, Any]]] = {
        "all": (Busy, topics, {"concurrency": 3}),
        "first": (Busy, topics[:1], {}),
        "pair": (Busy, topics[:2], {"concurrency": 2}),
        "limited": (Busy, topics[2:], {"concurrency": 4, "limit": 2}),
        "ordered": (BusyInOrder, topics[1:3], {"concurrency": 4, "key": lambda event: event.payload.content % 5}),
    }
    for name, (cls, own, options) in agents.items():
        omni.add(cls, name=name, topics=own, **options)
    return {name: own for name, (_, own, _) in agents.items()}


async def disturb(omni: OmniActors, agents: list[str], dice: random.Random) -> None:
    """Pause and resume agents until cancelled."""
    while True:
        agent = dice.choice(agents)
        await omni.agents.pause(agent)
        await trio.sleep(0.03 * dice.random())
        await omni.agents.resume(agent)
        await trio.sleep(0.05 * dice.random())


@pytest.mark.parametrize("seed", range(3))
async def test_every_event_reaches_each_of_its_agents(new_system: Callable[[], OmniActors], seed: int) -> None:
    dice = random.Random(seed)
    Busy.dice, Busy.handled = dice, defaultdict(list)
    omni = new_system()
    agents = add_agents(omni)
    published: dict[str, list[int]] = defaultdict(list)
    with trio.fail_after(40):
        async with omni, trio.open_nursery() as nursery:
            nursery.start_soon(disturb, omni, list(agents), dice)
            for number in range(EVENTS):
                topic = f"t{dice.randrange(TOPICS)}"
                published[topic].append(number)
                await omni.publish(topic, number, delay=0.05 if number % 7 == 0 else None)
                if dice.random() < 0.1:
                    await trio.sleep(0.02 * dice.random())
            nursery.cancel_scope.cancel()
        for agent in agents:
            await omni.agents.resume(agent)
        async with omni:

            async def are_done() -> bool:
                return all(not stream.length and not stream.scheduled for stream in await omni.streams.list())

            await eventually(are_done)
        await omni.shutdown()
    for agent, topics in agents.items():
        assert sorted(Busy.handled[agent]) == sorted(number for topic in topics for number in published[topic])


class Backlogged(Agent, name="backlogged", topic="shared", mailbox=Mailbox(1)):
    """Always has more to do, and fetches for each event anew."""

    async def handle(self, event: EventEnvelope[int]) -> None:
        await trio.sleep(0.0005)


class Prompt(Agent, name="prompt", topic="shared"):
    """Has done everything, and waits."""

    async def handle(self, event: EventEnvelope[int]) -> int:
        return event.payload.content


async def test_an_agent_without_backlog_hears_of_each_event_beside_one_with(
    new_system: Callable[[], OmniActors],
) -> None:
    omni = new_system()
    omni.add(Backlogged)
    omni.add(Prompt)
    await omni.publish_batch([("shared", 0)] * 3000)
    with trio.fail_after(40):
        async with omni:
            # At first it has to work off as many as the other one has, which on a busy machine takes long.
            await omni.wait_result(await omni.publish("shared", 0), agent="prompt")
            for number in range(300):
                with trio.fail_after(5):
                    task_id = await omni.publish("shared", number)
                    assert await omni.wait_result(task_id, agent="prompt") == number
            omni.stop_now()
    await omni.shutdown()


class Counted(Agent, name="counted", topic="counted"):
    """Counts how many of its events are being handled, in all runtimes of this test."""

    now: int
    most: int
    by: dict[int, int]

    async def handle(self, event: EventEnvelope[int]) -> None:
        cls = type(self)
        cls.now += 1
        cls.most = max(cls.most, cls.now)
        cls.by[id(self._subscription)] += 1
        await trio.sleep(0.002)
        cls.now -= 1


async def test_two_runtimes_share_one_limit(redis_server: RedisServer) -> None:
    url, prefix = RedisUrl(redis_server.url, redis_server.url), fresh_prefix()
    Counted.now, Counted.most, Counted.by = 0, 0, defaultdict(int)
    systems = [OmniActors(settings=Settings(backend=url, prefix=prefix, grace=5.0)) for _ in range(2)]
    for omni in systems:
        omni.add(Counted, concurrency=2, limit=3)
    with trio.fail_after(30):
        async with systems[0], systems[1]:
            ids = await systems[0].publish_batch([("counted", number) for number in range(150)])
            for task_id in ids:
                await systems[1].wait_result(task_id)
            await systems[0].agents.pause("counted")
            late = await systems[0].publish("counted", 0)
            await trio.sleep(0.1)
            assert await systems[1].get_result(late) is None
            assert sum(Counted.by.values()) == 150, "both runtimes know of the pause"
            await systems[1].agents.resume("counted")
            await systems[0].wait_result(late)
        for omni in systems:
            await omni.shutdown()
    assert Counted.most == 3
    assert len(Counted.by) == 2, "both have work"


async def test_two_runtimes_keep_the_order_of_each_key(redis_server: RedisServer) -> None:
    url, prefix = RedisUrl(redis_server.url, redis_server.url), fresh_prefix()
    Busy.dice, Busy.handled = random.Random(1), defaultdict(list)
    systems = [OmniActors(settings=Settings(backend=url, prefix=prefix, grace=5.0)) for _ in range(2)]
    for omni in systems:
        omni.add(BusyInOrder, name="ordered", topic="t", concurrency=4, key=lambda event: event.payload.content % 7)
    with trio.fail_after(30):
        async with systems[0], systems[1]:
            for start in range(0, EVENTS, 12):
                await systems[0].publish_batch([("t", number) for number in range(start, start + 12)])
                await trio.sleep(0.005)

            async def are_done() -> bool:
                return all(not stream.length for stream in await systems[0].streams.list())

            await eventually(are_done)
        for omni in systems:
            await omni.shutdown()
    for key in range(7):
        own = [number for number in Busy.handled["ordered"] if number % 7 == key]
        assert own == sorted(own)
    assert sorted(Busy.handled["ordered"]) == list(range(EVENTS))
