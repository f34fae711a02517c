"""The player: it takes a script's steps on the model and on a store, and compares what both answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from omniactors.errors import StreamFull
from omniactors.streams.backend import DeadFilter, Want
from omniactors.streams.settlement import Settlement
from tests.streams import model_steps as steps
from tests.streams.model_state import Full
from tests.streams.model_table import LIMIT
from tests.streams.model_work import PLENTY, Consumer, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio

    from tests.streams.model_table import Table

QUIET = (steps.Publish, steps.Create, steps.Fetch, steps.Claim, steps.Release, steps.Withdraw, steps.List)
"""Steps that leave results, dead letters, counters and consumers alone; they are looked at after all others."""


class Player:
    """Plays one script; made anew for each."""

    def __init__(self, table: Table, nursery: trio.Nursery) -> None:
        self._table = table
        self._subject = table.subject
        self._model = table.model
        self._checks = table.checks
        self._work = Work(table)
        self._nursery = nursery
        self._consumers: dict[int, Consumer] = {}

    async def play(self, script: Sequence[steps.AnyStep]) -> None:
        """Take all steps, look at everything after each, and work off what is left."""
        for number, step in enumerate(script):
            try:
                await self._take(step)
                await self._subject.breathe()
                await self._wake()
                await (self._checks.check_streams if isinstance(step, QUIET) else self._checks.check)(self._table.door)
            except BaseException as error:
                error.add_note(f"at step {number}: {step}")
                raise
        await self._drain()
        await self._end_all("stop")
        await self._table.door.close()
        assert await self._subject.leftovers() == []

    async def _take(self, step: steps.AnyStep) -> None:
        match step:
            case steps.Publish(pubs):
                await self._table.publish(pubs)
            case steps.Create(groups):
                await self._table.create(groups)
            case steps.Step(ticks):
                await self._step(ticks)
            case steps.List(dead, limit):
                await self._list(dead, limit)
            case steps.Replay(dead, limit):
                await self._replay(dead, limit)
            case steps.Purge(dead, limit):
                where, purged = self._filter(dead), self._model.purge(dead.topic, self._own_filter(dead), limit)
                assert await self._table.door.purge_dead(dead.topic, where, limit=limit) == len(purged)
            case steps.Pause(agent):
                self._model.paused.add(agent)
                await self._table.door.pause(agent)
            case steps.Resume(agent):
                self._model.paused.discard(agent)
                await self._table.door.resume(agent)
            case steps.Restart(how):
                await self._restart(how)
            case _:
                await self._consume(step)

    async def _consume(self, step: steps.AnyStep) -> None:  # noqa: C901 -- as above
        assert hasattr(step, "slot")
        consumer = await self._consumer(step.slot, is_needed=isinstance(step, steps.Fetch))
        if consumer is None:
            return
        match step:
            case steps.Expire():
                await self._expire(step.slot)
            case steps.Stop() if not consumer.is_crashed:
                await self._stop(step.slot)
            case steps.Crash():
                consumer.is_crashed = self._subject.is_shared
            case _ if consumer.is_crashed:
                pass
            case steps.Fetch(_, asks, claims):
                await self._work.fetch(consumer, asks)
                await self._work.claim(consumer, claims)
            case steps.Claim(_, number):
                await self._work.claim(consumer, number)
            case steps.Settle(_, picks):
                await self._work.settle(consumer, picks)
            case steps.Intrude():
                await self._work.intrude(consumer, step)
            case steps.Release(_, places):
                await self._work.release(consumer, places)
            case steps.Together():
                await self._work.together(consumer, step)
            case steps.Withdraw():
                await self._work.withdraw(consumer)

    # -- consumers ------------------------------------------------------------------------------

    async def _consumer(self, slot: int, *, is_needed: bool) -> Consumer | None:
        slot %= self._subject.consumers
        if slot not in self._consumers and is_needed:
            consumer = Consumer(self._subject.open() if self._subject.is_shared else self._table.door)
            consumer.id = await self._nursery.start(consumer.run)
            self._model.consumers.add(consumer.id)
            self._consumers[slot] = consumer
            await self._promote()
        return self._consumers.get(slot)

    async def _stop(self, slot: int) -> None:
        consumer = self._consumers.pop(slot % self._subject.consumers)
        await consumer.end()
        self._model.stop(consumer.id)
        if self._subject.is_shared:
            await consumer.backend.close()

    async def _expire(self, slot: int) -> None:
        """It is taken for dead although it lives; what it does then has no effect."""
        if not self._subject.is_shared:
            await self._stop(slot)
            return
        consumer = self._consumers.pop(slot % self._subject.consumers)
        await self._subject.kill(consumer.id)
        self._model.bury(consumer.id)
        await self._keep_house()
        keys = list(consumer.fetched.values())
        assert await consumer.backend.settle_many([Settlement(key=key) for key in keys]) == [False] * len(keys)
        await consumer.backend.release(keys)
        await consumer.end()
        await consumer.backend.close()

    async def _wake(self) -> None:
        """Every consumer for which there is more to fetch than its last fetch found is woken, once."""
        for consumer in self._consumers.values():
            if not consumer.is_crashed:
                await self._work.wait(consumer)

    async def _keep_house(self) -> None:
        """Have a consumer come by that does nothing but what all do from time to time."""
        janitor = Consumer(self._subject.open_keeper())
        janitor.id = await self._nursery.start(janitor.run)
        self._model.consumers.add(janitor.id)
        self._model.promote(steps.TOPICS, self._subject.now())
        await self._checks.check_soon(self._table.door, LIMIT)
        await janitor.end()
        self._model.stop(janitor.id)
        await janitor.backend.close()

    async def _promote(self) -> None:
        """Any consumer may make visible what is due, at any time: have it done now."""
        now = self._subject.now()
        topics = {one.publication.topic for one in self._model.scheduled if one.due <= now}
        idle = [consumer for consumer in self._consumers.values() if not consumer.is_crashed]
        if not topics or not self._consumers:
            return
        if not idle:
            await self._keep_house()
            return
        self._model.promote(topics, now)
        await idle[0].backend.fetch([Want(topic, "plain", 0) for topic in sorted(topics)])

    async def _step(self, ticks: int) -> None:
        await self._subject.step(ticks * steps.TICK)
        await self._promote()

    async def _restart(self, how: str) -> None:
        if not self._subject.is_shared:
            return
        await self._end_all(how)
        await self._table.door.close()
        await self._subject.restart()
        self._door = self._subject.open()

    async def _end_all(self, how: str) -> None:
        for slot, consumer in list(self._consumers.items()):
            if how == "crash" or consumer.is_crashed:
                await self._expire(slot)
            else:
                await self._stop(slot)

    # -- dead letters ---------------------------------------------------------------------------

    def _own_filter(self, dead: steps.Dead) -> DeadFilter:
        """As the model takes it."""
        letters = [letter for letter in self._model.letters if letter.topic == dead.topic]
        ids = None
        if dead.ids is not None:
            ids = tuple(str(letters[pick % len(letters)].number) for pick in dead.ids) if letters else ("0",)
        has_clock = self._subject.has_clock
        return DeadFilter(
            agent=dead.agent,
            reason=dead.reason,
            ids=ids,
            since=None if dead.since is None or not has_clock else self._table.start + (dead.since + 0.5) * steps.TICK,
            until=None if dead.until is None or not has_clock else self._table.start + (dead.until + 0.5) * steps.TICK,
        )

    def _filter(self, dead: steps.Dead) -> DeadFilter:
        """As the store takes it."""
        own = self._own_filter(dead)
        if own.ids is None:
            return own
        return msgspec.structs.replace(own, ids=tuple(self._checks.letter_id(int(number)) for number in own.ids))

    async def _list(self, dead: steps.Dead, limit: int) -> None:
        expected = self._model.meant(dead.topic, self._own_filter(dead))[::-1][:limit]
        letters = await self._table.door.dead_letters(dead.topic, limit=limit, where=self._filter(dead))
        self._checks.compare_letters(letters, expected)

    async def _replay(self, dead: steps.Dead, limit: int) -> None:
        where = self._filter(dead)
        try:
            number = self._model.replay(dead.topic, self._own_filter(dead), limit)
        except Full:
            with pytest.raises(StreamFull):
                await self._table.door.replay_dead(dead.topic, where, limit=limit)
            return
        assert await self._table.door.replay_dead(dead.topic, where, limit=limit) == number

    # -- the end --------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Work off all that is left: nothing is lost, and nothing stays."""
        await self._end_all("stop")
        for agent in steps.AGENTS:
            await self._take(steps.Resume(agent))
        await self._step(PLENTY)
        asks = tuple(steps.Ask(topic, agent, PLENTY) for topic in steps.TOPICS for agent in steps.AGENTS)
        for _ in range(2):  # what was replayed for one group alone is passed over by the others only now
            await self._take(steps.Fetch(0, asks, PLENTY))
            left = len(self._work.in_hand(self._consumers[0]))
            await self._take(steps.Settle(0, tuple((number, steps.End()) for number in range(left))))
            await self._subject.breathe()
        await self._checks.check(self._table.door)
        for info in await self._table.door.streams():
            assert (info.topic, info.length, info.scheduled) == (info.topic, 0, 0)
