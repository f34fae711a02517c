"""The player: it takes a script's steps on the model and on a store, and compares what both answer."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from omniactors.errors import StreamFull
from omniactors.streams.backend import Backend, DeadFilter, Entry, Fetched, Want
from omniactors.streams.settlement import Dead, EntryKey, ErrorInfo, Publication, ResultRecord, Retry, Settlement
from tests.streams import model_steps as steps
from tests.streams.model_checks import Checks
from tests.streams.model_state import Full, Hold, Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from omniactors.streams.settlement import DeadReason
    from tests.streams.model import Model
    from tests.streams.model_subject import Subject

LIMIT = 10.0
"""Seconds of real time after which something that must happen has failed to."""

PLENTY = 100
"""More than there ever is of anything in one script."""

QUIET = (steps.Publish, steps.Create, steps.Fetch, steps.Claim, steps.Release, steps.Withdraw, steps.Wait, steps.List)
"""Steps that leave results, dead letters, counters and consumers alone; they are looked at after all others."""

Group = tuple[str, str]


@dataclass(eq=False)
class Seen:
    """What a consumer's last fetch of a topic was given, and when; `wants` found less than their credit."""

    position: int
    wants: list[Want]
    at: float
    promotions: int


@dataclass(eq=False)
class Consumer:
    """One that serves. `asked` are the groups that it fetched for, `fetched` holds all that it was ever given."""

    backend: Backend
    id: str = ""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    is_crashed: bool = False
    asked: set[Group] = field(default_factory=set)
    fetched: dict[Hold, EntryKey] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)

    async def run(self, *, task_status: trio.TaskStatus[str]) -> None:
        """Serve until `end`."""
        with self.scope:
            await self.backend.serve(task_status=task_status)
        self.ended.set()

    async def end(self) -> None:
        """Serve no more; returns when that has been told to the store."""
        self.scope.cancel()
        await self.ended.wait()


class Player:
    """Plays one script; made anew for each."""

    def __init__(self, subject: Subject, model: Model, nursery: trio.Nursery) -> None:
        self._subject = subject
        self._model = model
        self._nursery = nursery
        self._door = subject.open()
        self._consumers: dict[int, Consumer] = {}
        self._checks = Checks(model, subject)
        self._handles: list[tuple[Hold, EntryKey]] = []
        self._numbers = count(1)
        self._start = subject.now()

    async def play(self, script: Sequence[steps.AnyStep]) -> None:
        """Take all steps, look at everything after each, and work off what is left."""
        for number, step in enumerate(script):
            try:
                await self._take(step)
                await self._subject.breathe()
                await (self._checks.check_streams if isinstance(step, QUIET) else self._checks.check)(self._door)
            except BaseException as error:
                error.add_note(f"at step {number}: {step}")
                raise
        await self._drain()
        await self._end_all("stop")
        await self._door.close()
        assert await self._subject.leftovers() == []

    async def _take(self, step: steps.AnyStep) -> None:  # noqa: C901, PLR0912 -- one case for each kind of step
        match step:
            case steps.Publish(pubs):
                await self._publish(pubs)
            case steps.Create(groups):
                await self._create(groups)
            case steps.Wait():
                for consumer in self._consumers.values():
                    if not consumer.is_crashed:
                        await self._wait(consumer)
            case steps.Step(ticks):
                await self._step(ticks)
            case steps.List(dead, limit):
                await self._list(dead, limit)
            case steps.Replay(dead, limit):
                await self._replay(dead, limit)
            case steps.Purge(dead, limit):
                where, purged = self._filter(dead), self._model.purge(dead.topic, self._own_filter(dead), limit)
                assert await self._door.purge_dead(dead.topic, where, limit=limit) == len(purged)
            case steps.Pause(agent):
                self._model.paused.add(agent)
                await self._door.pause(agent)
            case steps.Resume(agent):
                self._model.paused.discard(agent)
                await self._door.resume(agent)
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
                await self._fetch(consumer, asks)
                await self._claim(consumer, claims)
            case steps.Claim(_, number):
                await self._claim(consumer, number)
            case steps.Settle(_, picks):
                await self._settle(consumer, picks)
            case steps.Intrude():
                await self._intrude(consumer, step)
            case steps.Release(_, places):
                await self._release(consumer, places)
            case steps.Withdraw():
                await self._withdraw(consumer)

    # -- consumers ------------------------------------------------------------------------------

    async def _consumer(self, slot: int, *, is_needed: bool) -> Consumer | None:
        slot %= self._subject.consumers
        if slot not in self._consumers and is_needed:
            consumer = Consumer(self._subject.open() if self._subject.is_shared else self._door)
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

    async def _keep_house(self) -> None:
        """Have a consumer come by that does nothing but what all do from time to time."""
        janitor = Consumer(self._subject.open_keeper())
        janitor.id = await self._nursery.start(janitor.run)
        self._model.consumers.add(janitor.id)
        self._model.promote(steps.TOPICS, self._subject.now())
        await self._checks.check_soon(self._door, LIMIT)
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
        await self._door.close()
        await self._subject.restart()
        self._door = self._subject.open()

    async def _end_all(self, how: str) -> None:
        for slot, consumer in list(self._consumers.items()):
            if how == "crash" or consumer.is_crashed:
                await self._expire(slot)
            else:
                await self._stop(slot)

    # -- publishing -----------------------------------------------------------------------------

    async def _publish(self, pubs: Sequence[steps.Pub]) -> None:
        publications = await self._publications(pubs)
        try:
            fates = self._model.publish(publications, self._subject.now())
        except Full:
            with pytest.raises(StreamFull):
                await self._door.publish(self._told(publications))
            return
        published = await self._door.publish(self._told(publications))
        for publication, fate, answer in zip(publications, fates, published, strict=True):
            assert (answer.task_id, answer.duplicate) == (publication.task_id, fate.is_duplicate)
            if fate.item is not None:
                self._checks.learn(fate.item.serial, answer.entry_id)
            elif not fate.is_duplicate:
                assert answer.entry_id == ""

    async def _publications(self, pubs: Iterable[steps.Pub]) -> tuple[Publication, ...]:
        """As the model takes them. A topic with delayed ones gets a group, so that it can be fetched."""
        await self._create([(pub.topic, "plain") for pub in pubs if pub.delay or pub.at is not None])
        return tuple(self._publication(pub, next(self._numbers)) for pub in pubs)

    def _publication(self, pub: steps.Pub, number: int) -> Publication:
        return Publication(
            topic=pub.topic,
            task_id=pub.name or f"t{number}",
            body=b'{"n":%d}' % number,
            dedupe=pub.dedupe and pub.name is not None,
            delay=pub.delay,
            at=None if pub.at is None else self._start + (pub.at + 0.5) * steps.TICK,
        )

    def _told(self, publications: Iterable[Publication]) -> tuple[Publication, ...]:
        """As the store takes them."""
        return tuple(
            one if one.at is None else msgspec.structs.replace(one, at=self._subject.to_wall(one.at))
            for one in publications
        )

    async def _create(self, groups: Sequence[Group]) -> None:
        if groups:
            for topic, agent in groups:
                self._model.group(topic, agent)
            await self._door.create_groups(groups)

    # -- fetching -------------------------------------------------------------------------------

    async def _fetch(self, consumer: Consumer, asks: Sequence[steps.Ask]) -> None:
        wants = {(ask.topic, ask.agent): self._want(consumer, ask) for ask in asks}
        asked = [want for want in wants.values() if want is not None]
        now = self._subject.now()
        expected = self._model.fetch(consumer.id, asked, now)
        due = self._model.next_due(asked, now)
        taken, fetched = await self._fetch_all(consumer.backend, asked)
        for group, places in expected.items():
            self._compare(consumer, group, places, taken[group])
        consumer.asked |= {(want.topic, want.agent) for want in asked}
        paused = {want.agent for want in asked} & self._model.paused
        assert fetched.paused == paused
        if not paused:
            self._checks.compare_due(fetched.next_due, due)
        for topic in {want.topic for want in asked}:
            hungry = [want for want in asked if want.topic == topic and len(expected[topic, want.agent]) < want.credit]
            consumer.seen[topic] = Seen(fetched.position, hungry, now, self._model.promotions)

    def _want(self, consumer: Consumer, ask: steps.Ask) -> Want | None:
        """What is asked for, or None where the protocol does not say what is right."""
        want = Want(ask.topic, ask.agent, ask.credit, ask.limit, ask.agent == steps.ORDERED)
        group = self._model.groups.get((ask.topic, ask.agent))
        if group is None or not want.is_ordered:
            return want
        is_gated = group.gate() not in {None, consumer.id}
        is_full = ask.limit is not None and len(group.owned()) >= ask.limit
        has_handed = any(place.is_handed for place in group.owned(consumer.id))
        takes_nothing = is_gated or is_full or ask.credit == 0 or ask.agent in self._model.paused
        if (has_handed and is_gated) or (consumer.id in group.withdrawn and takes_nothing):
            return None
        return want

    async def _fetch_all(
        self, backend: Backend, wants: Sequence[Want]
    ) -> tuple[defaultdict[Group, list[Entry]], Fetched]:
        """Fetch as long as there is more."""
        taken: defaultdict[Group, list[Entry]] = defaultdict(list)
        left = {(want.topic, want.agent): want.credit for want in wants}
        while True:
            fetched = await backend.fetch(
                [msgspec.structs.replace(want, credit=left[want.topic, want.agent]) for want in wants]
            )
            for entry in fetched.entries:
                taken[entry.key.topic, entry.key.agent].append(entry)
                left[entry.key.topic, entry.key.agent] -= 1
            assert min(left.values(), default=0) >= 0, "more than the credit"
            if not fetched.has_more or not fetched.entries or not any(left.values()):
                return taken, fetched

    def _compare(self, consumer: Consumer, group: Group, places: Sequence[Place], entries: Sequence[Entry]) -> None:
        expected = [(place.item.body, place.attempts, place.crashes) for place in places]
        assert [(entry.body, entry.attempts, entry.crashes) for entry in entries] == expected, group
        for place, entry in zip(places, entries, strict=True):
            assert entry.key.consumer == consumer.id
            self._checks.learn(place.item.serial, entry.key.entry_id)
            hold = Hold(*group, place.item.serial, consumer.id)
            consumer.fetched.pop(hold, None)
            consumer.fetched[hold] = entry.key
            self._handles.append((hold, entry.key))

    def _in_hand(self, consumer: Consumer) -> list[Hold]:
        return [hold for hold in consumer.fetched if self._model.in_hand(consumer.id, hold)]

    async def _claim(self, consumer: Consumer, number: int) -> None:
        for topic in steps.TOPICS:
            holds = [hold for hold in self._in_hand(consumer) if (hold.topic, hold.agent) == (topic, steps.ORDERED)]
            claims = [(hold, self._checks.ordering_key(hold.serial)) for hold in holds[:number]]
            flags = self._model.claim(consumer.id, claims)
            keys = [(consumer.fetched[hold], key) for hold, key in claims]
            if not keys:
                continue
            assert await consumer.backend.claim(keys) == flags
            if not all(flags):
                await trio.sleep(self._subject.pause)

    async def _withdraw(self, consumer: Consumer) -> None:
        await self._claim(consumer, PLENTY)
        groups = sorted(group for group in consumer.asked if group[1] == steps.ORDERED)
        self._model.withdraw(consumer.id, groups)
        await consumer.backend.withdraw(groups)

    async def _wait(self, consumer: Consumer) -> None:
        """Whoever can be given something that its last fetch was not given is woken."""
        due = {topic for topic, seen in consumer.seen.items() if self._must_wake(consumer, seen)}
        while due:
            positions = {topic: consumer.seen[topic].position for topic in due}
            with trio.fail_after(LIMIT):
                changed = await consumer.backend.wait(positions)
            assert changed, "a wait ended for nothing at all"
            assert changed <= due
            due -= changed

    def _must_wake(self, consumer: Consumer, seen: Seen) -> bool:
        now = self._subject.now()
        if now - seen.at > steps.TICK / 4:  # what becomes due by itself wakes nobody: `next_due` has told of it
            now = seen.at
        if self._model.promotions != seen.promotions:
            return False
        wants = [msgspec.structs.replace(want, credit=1) for want in seen.wants if want.credit > 0]
        groups = [self._model.group(want.topic, want.agent) for want in wants]
        # While a consumer that withdrew works off its keys, others are given entries that they cannot claim.
        if any(group.withdrawn or group.gate() not in {None, consumer.id} for group in groups):
            return False
        taken = copy.deepcopy(self._model).fetch(consumer.id, wants, now)
        return any(taken.values())

    # -- settling -------------------------------------------------------------------------------

    async def _settle(self, consumer: Consumer, picks: Sequence[tuple[int, steps.End]]) -> None:
        holds = self._in_hand(consumer)
        if not holds:
            return
        # Settlements of one call happen at one time: by the order of the ids it is all the same in
        # which order a store carries them out.
        chosen = sorted(((holds[pick % len(holds)], end) for pick, end in picks), key=lambda one: one[0])
        endings = [(hold, consumer.fetched[hold], await self._settlement(hold, end)) for hold, end in chosen]
        await self._settle_all(consumer, endings)

    async def _settle_all(self, consumer: Consumer, endings: Sequence[tuple[Hold, EntryKey, Settlement]]) -> None:
        flags = self._model.settle(consumer.id, [(hold, one) for hold, _, one in endings], self._subject.now())
        told = [
            msgspec.structs.replace(one, key=key, publications=self._told(one.publications)) for _, key, one in endings
        ]
        assert await consumer.backend.settle_many(told) == flags

    async def _settlement(self, hold: Hold, end: steps.End) -> Settlement:
        """As the model takes it, without a key."""
        number = next(self._numbers)
        key = EntryKey("", "", "")
        if end.kind == "retry":
            return Settlement(key=key, retry=Retry(after=end.delay, attempts=number), seconds=0.25)
        reason: DeadReason = "timeout" if number % 2 else "rejected"
        error = ErrorInfo(type=f"type {number % 3}", message=f"message {number}", traceback="Traceback ...")
        record = ResultRecord(
            task_id=self._checks.task_of(hold.serial),
            topic=hold.topic,
            agent=hold.agent,
            status=end.result or "success",
            result=number,
        )
        return Settlement(
            key=key,
            result=record if end.result else None,
            result_ttl=end.ttl,
            publications=await self._publications(end.pubs),
            dead=Dead(reason=reason, error=error, attempts=number) if end.kind == "dead" else None,
            seconds=number * 0.5,
        )

    async def _intrude(self, consumer: Consumer, step: steps.Intrude) -> None:
        known = (
            [(hold, consumer.fetched[hold]) for hold in self._in_hand(consumer)] if step.is_forged else self._handles
        )
        if not known:
            return
        hold, key = known[-1 - step.pick % len(known)]
        if step.is_forged:
            hold, key = hold._replace(consumer="nobody"), msgspec.structs.replace(key, consumer="nobody")
        if self._model.is_handed(hold):
            return  # its owner has not been given it and knows nothing of it
        if step.end is not None:
            await self._settle_all(consumer, [(hold, key, await self._settlement(hold, step.end))])
        else:
            self._model.release(consumer.id, [hold])
            await consumer.backend.release([key])

    async def _release(self, consumer: Consumer, picks: Sequence[int]) -> None:
        holds = self._in_hand(consumer)
        if holds:
            chosen = [holds[pick % len(holds)] for pick in picks] or holds[::-1]
            self._model.release(consumer.id, chosen)
            await consumer.backend.release([consumer.fetched[hold] for hold in chosen])

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
            since=None if dead.since is None or not has_clock else self._start + (dead.since + 0.5) * steps.TICK,
            until=None if dead.until is None or not has_clock else self._start + (dead.until + 0.5) * steps.TICK,
        )

    def _filter(self, dead: steps.Dead) -> DeadFilter:
        """As the store takes it."""
        own = self._own_filter(dead)
        if own.ids is None:
            return own
        return msgspec.structs.replace(own, ids=tuple(self._checks.letter_id(int(number)) for number in own.ids))

    async def _list(self, dead: steps.Dead, limit: int) -> None:
        expected = self._model.meant(dead.topic, self._own_filter(dead))[::-1][:limit]
        letters = await self._door.dead_letters(dead.topic, limit=limit, where=self._filter(dead))
        self._checks.compare_letters(letters, expected)

    async def _replay(self, dead: steps.Dead, limit: int) -> None:
        where = self._filter(dead)
        try:
            number = self._model.replay(dead.topic, self._own_filter(dead), limit)
        except Full:
            with pytest.raises(StreamFull):
                await self._door.replay_dead(dead.topic, where, limit=limit)
            return
        assert await self._door.replay_dead(dead.topic, where, limit=limit) == number

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
            left = len(self._in_hand(self._consumers[0]))
            await self._take(steps.Settle(0, tuple((number, steps.End()) for number in range(left))))
            await self._subject.breathe()
        await self._checks.check(self._door)
        for info in await self._door.streams():
            assert (info.topic, info.length, info.scheduled) == (info.topic, 0, 0)
