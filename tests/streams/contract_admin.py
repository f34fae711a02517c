"""What every backend promises about delays, full streams, pauses, counters, settings and its own health."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from omniactors.errors import StreamFull
from omniactors.streams.backend import AgentMetrics, Backend, Entry, Finding, Want
from omniactors.streams.settlement import Publication, Retry
from tests.streams.contract_kit import (
    AGENT,
    LIMIT,
    TOPIC,
    dead,
    done,
    event,
    eventually,
    fetch,
    fetch_when_due,
    length,
    next_fetch,
    numbered,
    numbers,
    serving,
    settle_all,
    stream,
)

if TYPE_CHECKING:
    from tests.streams.contract_kit import Store


def delayed(publication: Publication, seconds: float) -> Publication:
    return msgspec.structs.replace(publication, delay=seconds)


class DelayContract:
    async def test_a_delayed_event_is_unseen_until_it_is_due(self, backend: Backend) -> None:
        async with serving(backend):
            await backend.create_groups([(TOPIC, AGENT)])
            published = time.monotonic()
            (fate,) = await backend.publish([delayed(event("a"), 0.4)])
            assert (fate.entry_id, fate.duplicate) == ("", False)
            fetched = await backend.fetch([Want(TOPIC, AGENT, 9)])
            assert fetched.entries == []
            assert fetched.next_due is not None
            assert 0 < fetched.next_due <= 0.4
            info = await stream(backend)
            assert (info.length, info.scheduled, info.groups[0].waiting) == (0, 1, 0)
            (entry,) = (await fetch_when_due(backend)).entries
            assert time.monotonic() - published >= 0.35
            assert (entry.body, entry.attempts, entry.crashes) == (b"{}", 0, 0)
            info = await stream(backend)
            assert (info.length, info.scheduled) == (1, 0)
            await settle_all(backend, [entry])
            assert await length(backend) == 0

    async def test_a_time_that_is_past_is_now(self, backend: Backend) -> None:
        past = msgspec.structs.replace(event("b"), at=time.time() - 60, delay=60.0)
        fates = await backend.publish([event("a"), past, delayed(event("c"), -1.0)])
        assert all(fate.entry_id for fate in fates)
        assert await length(backend) == 3

    async def test_they_come_in_the_order_of_their_times_then_of_their_publication(self, backend: Backend) -> None:
        due = time.time() + 0.3
        early, late = ([msgspec.structs.replace(p, at=due + more) for p in numbered(3)] for more in (0.0, 0.05))
        async with serving(backend):
            await backend.publish([late[0], early[1], late[2], early[0], early[2], late[1]])
            found: list[int] = []
            while len(found) < 6:
                found += numbers((await fetch_when_due(backend)).entries)
        assert found == [1, 0, 2, 0, 2, 1]

    async def test_a_waiting_consumer_learns_of_an_earlier_time(self, backend: Backend) -> None:
        taken: list[Entry] = []

        async def take() -> None:
            taken.extend((await fetch_when_due(backend)).entries)

        async with serving(backend):
            await backend.publish([delayed(event("later", body=b'{"n":9}'), 60)])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await backend.publish([delayed(event("soon", body=b'{"n":1}'), 0.1)])
        assert numbers(taken) == [1]

    async def test_every_group_gets_it(self, backend: Backend) -> None:
        async with serving(backend):
            await backend.create_groups([(TOPIC, "one"), (TOPIC, "two")])
            await backend.publish([delayed(event("a"), 0.1)])
            for agent in ("one", "two", "late"):
                assert len((await fetch_when_due(backend, agent)).entries) == 1

    async def test_an_id_is_remembered_from_the_publish_on(self, backend: Backend) -> None:
        await backend.publish([delayed(event("a", dedupe=True), 0.1), delayed(event("b", dedupe=True), 60)])
        fates = await backend.publish([event("a", dedupe=True), delayed(event("b", dedupe=True), 1)])
        assert [fate.duplicate for fate in fates] == [True, True]
        async with serving(backend):
            assert len((await fetch_when_due(backend)).entries) == 1
            (fate,) = await backend.publish([event("a", dedupe=True)])
            assert fate.duplicate
            assert await fetch(backend) == []

    async def test_a_settlement_may_publish_for_later(self, backend: Backend) -> None:
        await backend.publish([event("a")])
        async with serving(backend):
            (entry,) = await fetch(backend)
            await backend.settle_many([done(entry, publications=(delayed(event("b", topic="next"), 0.1),))])
            assert (await stream(backend, "next")).scheduled == 1
            assert len((await next_fetch(backend, Want("next", AGENT, 9))).entries) == 1

    async def test_what_nobody_fetches_becomes_visible_too(self, backend: Backend) -> None:
        await backend.publish([delayed(event("a"), 0.1)])

        async def is_visible() -> bool:
            info = await stream(backend)
            return (info.length, info.scheduled) == (1, 0)

        async with serving(backend):
            await eventually(is_visible)

    async def test_a_body_that_is_no_text_comes_back(self, backend: Backend) -> None:
        async with serving(backend):
            await backend.publish([delayed(event("a", body=b"\xff\x00"), 0.05)])
            assert [entry.body for entry in (await fetch_when_due(backend)).entries] == [b"\xff\x00"]


class StreamLimitContract:
    async def test_a_publish_that_does_not_fit_is_refused_whole(self, store: Store) -> None:
        backend = store.open(stream_limit=3)
        await backend.publish(numbered(2))
        with pytest.raises(StreamFull) as caught:
            await backend.publish([event("x", topic="else"), *numbered(2)])
        assert (caught.value.topic, caught.value.length, caught.value.limit) == (TOPIC, 2, 3)
        assert caught.value.outcome_known
        assert [await length(backend), await length(backend, "else")] == [2, 0]
        await backend.publish([*numbered(1), *numbered(3, "else")])
        with pytest.raises(StreamFull, match="full"):
            await backend.publish(numbered(1))
        await backend.close()

    async def test_there_is_room_again_when_something_is_done(self, store: Store) -> None:
        backend = store.open(stream_limit=2)
        async with serving(backend):
            await backend.create_groups([(TOPIC, "one"), (TOPIC, "two")])
            await backend.publish(numbered(2))
            await settle_all(backend, await fetch(backend, agent="one"))
            with pytest.raises(StreamFull):
                await backend.publish(numbered(1))
            (entry, _) = await fetch(backend, agent="two")
            await settle_all(backend, [entry])
            await backend.publish(numbered(1))
            with pytest.raises(StreamFull):
                await backend.publish(numbered(1))
        await backend.close()

    async def test_delayed_events_count_and_repeats_do_not(self, store: Store) -> None:
        backend = store.open(stream_limit=3)
        first = [event("a", dedupe=True), delayed(event("b", dedupe=True), 60), delayed(event("c"), 60)]
        await backend.publish(first)
        assert [fate.duplicate for fate in await backend.publish(first[:2])] == [True, True]
        for publication in (event("d"), delayed(event("e"), 60), event("f", dedupe=True)):
            with pytest.raises(StreamFull):
                await backend.publish([publication])
        assert not (await backend.publish([event("a", topic="else", dedupe=True)] * 4))[0].duplicate
        await backend.close()

    async def test_what_a_settlement_publishes_always_fits(self, store: Store) -> None:
        backend = store.open(stream_limit=1)
        await backend.publish(numbered(1))
        async with serving(backend):
            (entry,) = await fetch(backend)
            follow_ups = (*numbered(3), *numbered(2, "next"), delayed(event("d", topic="next"), 60))
            assert await backend.settle_many([done(entry, publications=follow_ups)]) == [True]
            assert await length(backend) == 3
            assert (await stream(backend, "next")).scheduled == 1
        await backend.close()

    async def test_a_refusal_harms_no_other_call(self, store: Store) -> None:
        backend = store.open(stream_limit=5)
        refused = []

        async def publish_too_much() -> None:
            try:
                await backend.publish(numbered(6))
            except StreamFull as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(publish_too_much)
                nursery.start_soon(backend.publish, numbered(1))
        assert len(refused) == 5
        assert await length(backend) == 5
        await backend.close()


class PauseContract:
    async def test_a_paused_agent_gets_nothing_and_others_do(self, backend: Backend) -> None:
        await backend.publish([*numbered(3), *numbered(1, "else")])
        wants = [Want(TOPIC, AGENT, 9), Want("else", AGENT, 9), Want(TOPIC, "other", 9)]
        async with serving(backend):
            (held, *_) = await fetch(backend, 1)
            assert await backend.paused() == frozenset()
            await backend.pause(AGENT)
            await backend.pause(AGENT)
            await backend.pause("somebody")
            assert await backend.paused() == {AGENT, "somebody"}
            fetched = await backend.fetch(wants)
            assert fetched.paused == {AGENT}
            assert {entry.key.agent for entry in fetched.entries} == {"other"}
            await settle_all(backend, [held])
            await backend.resume(AGENT)
            await backend.resume(AGENT)
            assert await backend.paused() == {"somebody"}
            fetched = await backend.fetch(wants)
            assert fetched.paused == frozenset()
            assert sorted(numbers(fetched.entries)) == [0, 1, 2]

    async def test_pause_and_resume_wake_all_of_the_agent(self, backend: Backend) -> None:
        await backend.create_groups([(TOPIC, AGENT), ("else", AGENT)])
        async with serving(backend):
            for operation in (backend.pause, backend.resume):
                for topic in (TOPIC, "else"):
                    position = (await backend.fetch([Want(topic, AGENT, 1)])).position
                    with trio.fail_after(LIMIT):
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(backend.wait, {topic: position})
                            await trio.testing.wait_all_tasks_blocked(0.02)
                            await operation(AGENT)

    async def test_a_pause_survives_the_consumer(self, backend: Backend) -> None:
        await backend.publish(numbered(1))
        async with serving(backend):
            await backend.pause(AGENT)
        async with serving(backend):
            assert await fetch(backend) == []
            await backend.resume(AGENT)
            assert numbers(await fetch(backend)) == [0]


class MetricsContract:
    async def test_each_settled_try_is_counted(self, backend: Backend) -> None:
        await backend.publish([*numbered(5), *numbered(1, "else")])
        async with serving(backend):
            a, b, c, d, e = await fetch(backend)
            settlements = [
                done(a, seconds=1.0),
                done(b, seconds=0.5),
                done(c, seconds=2.0, retry=Retry(after=60, attempts=1)),
                done(d, seconds=4.0, dead=dead()),
            ]
            assert await backend.settle_many(settlements[:2]) == [True, True]
            assert await backend.settle_many(settlements) == [False, False, True, True]
            await backend.release([e.key])
            (entry,) = await fetch(backend, topic="else", agent="other")
            await backend.settle_many([done(entry)])
        other, mine = await backend.metrics()
        assert other == AgentMetrics(topic="else", agent="other", completed=1)
        assert mine == AgentMetrics(topic=TOPIC, agent=AGENT, completed=2, retried=1, dead=1, seconds=7.5)

    async def test_nothing_done_is_nothing_counted(self, backend: Backend) -> None:
        assert sum(counter.completed + counter.retried + counter.dead for counter in await backend.metrics()) == 0


class ConfigContract:
    async def test_values_are_kept_replaced_and_forgotten(self, backend: Backend) -> None:
        assert await backend.config() == {}
        values = {"a": None, "b": [1, {"x": "🐍"}], "": 2.5, "long": "x" * 10_000, 'odd " key\n': True}
        for key, value in values.items():
            await backend.save_config(key, value)
        assert await backend.config() == values
        await backend.save_config("a", "new")
        assert await backend.delete_config("b")
        assert not await backend.delete_config("b")
        assert await backend.config() == {key: value for key, value in values.items() if key != "b"} | {"a": "new"}


class DiagnoseContract:
    def check(self, findings: list[Finding]) -> None:
        assert findings
        assert findings[0].status == "ok", findings[0]
        assert len({finding.check for finding in findings}) == len(findings)
        for finding in findings:
            assert finding.message
            assert (finding.status == "ok") == (not finding.advice), finding
            assert "\n" not in finding.message + finding.advice

    async def test_a_store_in_use_reports_about_itself(self, backend: Backend) -> None:
        self.check(await backend.diagnose())
        await backend.publish(numbered(1))
        async with serving(backend):
            findings = await backend.diagnose()
        self.check(findings)
        assert "error" not in {finding.status for finding in findings}, findings
