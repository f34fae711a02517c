"""The work of a consumer: what it fetches, claims, settles and gives back, on the model and on a store."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec
import trio

from omniactors.streams.backend import Backend, Entry, Fetched, Want
from omniactors.streams.settlement import Dead, EntryKey, ErrorInfo, ResultRecord, Retry, Settlement
from tests.streams import model_steps as steps
from tests.streams import model_together
from tests.streams.model_state import Hold
from tests.streams.model_table import LIMIT, Group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omniactors.streams.settlement import DeadReason
    from tests.streams.model_table import Table


PLENTY = 100
"""More than there ever is of anything in one script."""


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


class Work:
    """What consumers do. `handles` are all that any of them was ever given."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._model = table.model
        self._subject = table.subject
        self._checks = table.checks
        self._handles: list[tuple[Hold, EntryKey]] = []

    async def fetch(self, consumer: Consumer, asks: Sequence[steps.Ask]) -> None:
        wants = {(ask.topic, ask.agent): self._want(consumer, ask) for ask in asks}
        asked = [want for want in wants.values() if want is not None]
        now = self._subject.now()
        expected = self._model.fetch(consumer.id, asked, now)
        due = self._model.next_due(asked, now)
        taken, fetched = await self._fetch_all(consumer.backend, asked)
        for group, places in expected.items():
            self._checks.compare_entries(consumer.id, group, taken[group], places)
            self._note(consumer, taken[group])
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

    def _note(self, consumer: Consumer, entries: Sequence[Entry]) -> None:
        """The consumer was given these."""
        for entry in entries:
            serial = self._checks.serial_of(entry.key.topic, entry.key.entry_id)
            hold = Hold(entry.key.topic, entry.key.agent, serial, consumer.id)
            consumer.fetched.pop(hold, None)
            consumer.fetched[hold] = entry.key
            self._handles.append((hold, entry.key))

    async def together(self, consumer: Consumer, step: steps.Together) -> None:
        """Make several calls at one time."""
        backend, now = consumer.backend, self._subject.now()
        publications = await self._table.publications(step.pubs)
        calls = [model_together.publish(backend, publications, self._table.told(publications), now)]
        holds = self.in_hand(consumer)
        if holds:
            settled = sorted({holds[pick % len(holds)]: end for pick, end in step.picks}.items())
            if publications:  # whose come first could only be seen later
                settled = [(hold, replace(end, pubs=())) for hold, end in settled]
            endings = [(hold, consumer.fetched[hold], await self._settlement(hold, end)) for hold, end in settled]
            ended = [(hold, settlement) for hold, _, settlement in endings]
            released = [holds[pick % len(holds)] for pick in step.releases]
            calls += [
                model_together.settle(backend, consumer.id, ended, self._told(endings), now),
                model_together.release(backend, consumer.id, released, [consumer.fetched[hold] for hold in released]),
            ]
        want = self._want(consumer, step.ask)
        if want is not None:
            calls.append(model_together.fetch(backend, consumer.id, want, now))
            consumer.seen.pop(want.topic, None)
            consumer.asked.add((want.topic, want.agent))
        answers = await model_together.make(calls, self._table)
        for answer in answers:
            if isinstance(answer, Fetched):
                self._note(consumer, answer.entries)

    def in_hand(self, consumer: Consumer) -> list[Hold]:
        return [hold for hold in consumer.fetched if self._model.in_hand(consumer.id, hold)]

    async def claim(self, consumer: Consumer, number: int) -> None:
        for topic in steps.TOPICS:
            holds = [hold for hold in self.in_hand(consumer) if (hold.topic, hold.agent) == (topic, steps.ORDERED)]
            claims = [(hold, self._checks.ordering_key(hold.serial)) for hold in holds[:number]]
            flags = self._model.claim(consumer.id, claims)
            keys = [(consumer.fetched[hold], key) for hold, key in claims]
            if not keys:
                continue
            assert await consumer.backend.claim(keys) == flags
            if not all(flags):
                await trio.sleep(self._subject.pause)

    async def withdraw(self, consumer: Consumer) -> None:
        await self.claim(consumer, PLENTY)
        groups = sorted(group for group in consumer.asked if group[1] == steps.ORDERED)
        self._model.withdraw(consumer.id, groups)
        await consumer.backend.withdraw(groups)

    async def wait(self, consumer: Consumer) -> None:
        """Whoever can be given something that its last fetch was not given is woken."""
        due = {topic for topic, seen in consumer.seen.items() if self._must_wake(consumer, seen)}
        seen = {topic: consumer.seen.pop(topic) for topic in due}
        while due:
            positions = {topic: seen[topic].position for topic in due}
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
        return any(self._model.has_for(consumer.id, want, now) for want in wants)

    # -- settling -------------------------------------------------------------------------------

    async def settle(self, consumer: Consumer, picks: Sequence[tuple[int, steps.End]]) -> None:
        holds = self.in_hand(consumer)
        if not holds:
            return
        # Settlements of one call happen at one time: by the order of the ids it is all the same in
        # which order a store carries them out.
        chosen = sorted(((holds[pick % len(holds)], end) for pick, end in picks), key=lambda one: one[0])
        endings = [(hold, consumer.fetched[hold], await self._settlement(hold, end)) for hold, end in chosen]
        await self._settle_all(consumer, endings)

    async def _settle_all(self, consumer: Consumer, endings: Sequence[tuple[Hold, EntryKey, Settlement]]) -> None:
        flags = self._model.settle(consumer.id, [(hold, one) for hold, _, one in endings], self._subject.now())
        assert await consumer.backend.settle_many(self._told(endings)) == flags

    def _told(self, endings: Sequence[tuple[Hold, EntryKey, Settlement]]) -> list[Settlement]:
        """As the store takes them."""
        return [
            msgspec.structs.replace(one, key=key, publications=self._table.told(one.publications))
            for _, key, one in endings
        ]

    async def _settlement(self, hold: Hold, end: steps.End) -> Settlement:
        """As the model takes it, without a key."""
        number = next(self._table.numbers)
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
            publications=await self._table.publications(end.pubs),
            dead=Dead(reason=reason, error=error, attempts=number) if end.kind == "dead" else None,
            seconds=number * 0.5,
        )

    async def intrude(self, consumer: Consumer, step: steps.Intrude) -> None:
        known = [(hold, consumer.fetched[hold]) for hold in self.in_hand(consumer)] if step.is_forged else self._handles
        if not known:
            return
        hold, key = known[-1 - step.pick % len(known)]
        if step.is_forged:
            hold, key = Hold(*hold[:3], "nobody"), msgspec.structs.replace(key, consumer="nobody")
        if self._model.is_handed(hold):
            return  # its owner has not been given it and knows nothing of it
        if step.end is not None:
            await self._settle_all(consumer, [(hold, key, await self._settlement(hold, step.end))])
        else:
            self._model.release(consumer.id, [hold])
            await consumer.backend.release([key])

    async def release(self, consumer: Consumer, picks: Sequence[int]) -> None:
        holds = self.in_hand(consumer)
        if holds:
            chosen = [holds[pick % len(holds)] for pick in picks] or holds[::-1]
            self._model.release(consumer.id, chosen)
            await consumer.backend.release([consumer.fetched[hold] for hold in chosen])
