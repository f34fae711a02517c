"""What every backend promises about who serves what, agents that gave up, and deleting what is no longer wanted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from omniactors.streams.backend import AgentRecord, Backend, Want
from omniactors.streams.settlement import Publication, Retry
from tests.streams.contract_kit import (
    AGENT,
    TOPIC,
    bury,
    dead,
    done,
    event,
    fetch,
    group,
    length,
    numbered,
    numbers,
    record,
    serving,
    settle_all,
    stream,
)

if TYPE_CHECKING:
    from tests.streams.contract_kit import Store


class ServingContract:
    async def test_a_runtime_says_what_it_serves_and_which_agents_gave_up(self, backend: Backend) -> None:
        async with serving(backend):
            (runtime,) = await backend.runtimes()
            assert (runtime.groups, runtime.gave_up) == (None, {})
            await backend.create_groups([(TOPIC, AGENT), (TOPIC, "other")])
            await backend.report([(TOPIC, AGENT), (TOPIC, "other")], {AGENT: "OSError: no disk"})
            await backend.announce("http://127.0.0.1:1")
            (runtime,) = await backend.runtimes()
            assert runtime.groups == ((TOPIC, AGENT), (TOPIC, "other"))
            assert runtime.gave_up == {AGENT: "OSError: no disk"}
            await backend.report([], {})
            (runtime,) = await backend.runtimes()
            assert (runtime.groups, runtime.gave_up) == ((), {})

    async def test_a_group_tells_when_it_was_served_last(self, backend: Backend) -> None:
        await backend.create_groups([(TOPIC, AGENT), (TOPIC, "never")])
        assert (await group(backend)).served_at is None
        async with serving(backend):
            await backend.report([(TOPIC, AGENT)], {})
            began = (await group(backend)).served_at
            assert began is not None
            assert abs(began - time.time()) < 60
        ended = (await group(backend)).served_at
        assert ended is not None
        assert ended >= began
        assert (await group(backend, "never")).served_at is None

    async def test_an_agent_that_gave_up_is_wanted_again_until_the_next_report(self, backend: Backend) -> None:
        async with serving(backend):
            assert await backend.restart(AGENT) == 0
            await backend.report([(TOPIC, AGENT)], {AGENT: "it broke", "other": "it broke"})
            assert await backend.restarts() == frozenset()
            assert await backend.restart(AGENT) == 1
            assert await backend.restarts() == {AGENT}
            await backend.report([(TOPIC, AGENT)], {"other": "it broke"})
            assert await backend.restarts() == frozenset()
            assert await backend.restart(AGENT) == 0


class DeleteContract:
    async def test_a_deleted_group_keeps_nothing_back(self, backend: Backend) -> None:
        await backend.create_groups([(TOPIC, AGENT), (TOPIC, "old")])
        await backend.save_agents([AgentRecord(topic=TOPIC, name=name) for name in (AGENT, "old")])
        await backend.pause("old")
        await backend.publish(numbered(1500))
        async with serving(backend):
            await settle_all(backend, await fetch(backend, 1500))
            assert await length(backend) == 1500
            await backend.publish(numbered(1, start=1500))
            await backend.delete_groups([(TOPIC, "old")])
            assert [each.agent for each in (await stream(backend)).groups] == [AGENT]
            assert [agent.name for agent in await backend.list_agents()] == [AGENT]
            assert await backend.paused() == frozenset()
            assert await length(backend) == 1
            assert numbers(await fetch(backend)) == [1500]

    async def test_what_other_groups_still_need_stays(self, backend: Backend) -> None:
        await backend.create_groups([(TOPIC, AGENT), (TOPIC, "old")])
        await backend.publish(numbered(4))
        async with serving(backend):
            first, second, _third = await fetch(backend, 3)
            held = await fetch(backend, 2, agent="old")
            await settle_all(backend, [second])
            await backend.delete_groups([(TOPIC, "old")])
            assert await backend.settle_many([done(entry) for entry in held]) == [False, False]
            await backend.release([first.key])
            assert numbers(await fetch(backend)) == [0, 3]

    async def test_what_nobody_has_read_waits_for_whoever_comes_next(self, backend: Backend) -> None:
        await backend.publish(numbered(3))
        async with serving(backend):
            await settle_all(backend, await fetch(backend, 1))
            await backend.delete_groups([(TOPIC, AGENT)])
            assert numbers(await fetch(backend, agent="new")) == [1, 2]

    async def test_dead_letters_outlast_their_group(self, backend: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend):
            await bury(backend, as_dead=dead())
            await backend.delete_groups([(TOPIC, AGENT)])
            assert len(await backend.dead_letters(TOPIC, limit=9)) == 2

    async def test_groups_that_are_not_there_are_deleted_without_harm(self, backend: Backend) -> None:
        await backend.delete_groups([])
        await backend.delete_groups([("nowhere", AGENT)])
        await backend.create_groups([(TOPIC, AGENT)])
        await backend.delete_groups([(TOPIC, "other"), (TOPIC, AGENT)])
        assert await backend.streams() == []

    async def test_a_deleted_group_that_is_made_again_is_a_new_one(self, backend: Backend) -> None:
        want = Want(TOPIC, AGENT, 9, is_ordered=True)
        await backend.publish(numbered(2))
        async with serving(backend):
            (first, second) = (await backend.fetch([want])).entries
            await backend.claim([(first.key, "a"), (second.key, "a")])
            await backend.delete_groups([(TOPIC, AGENT)])
            again = (await backend.fetch([want])).entries
            assert numbers(again) == [0, 1]
            assert await backend.claim([(entry.key, "a") for entry in again]) == [True, True]
            await settle_all(backend, again)
        assert await length(backend) == 0

    async def test_a_stream_without_groups_is_removed_with_what_is_scheduled(self, backend: Backend) -> None:
        later = msgspec.structs.replace(event("later"), delay=3600.0)
        await backend.publish([*numbered(700), later])
        await backend.create_groups([(TOPIC, AGENT)])
        assert await backend.delete_stream(TOPIC) == 0
        await backend.delete_groups([(TOPIC, AGENT)])
        assert await backend.delete_stream(TOPIC) == 701
        assert await backend.streams() == []
        await backend.publish(numbered(1))
        assert await length(backend) == 1


class FindTaskContract:
    async def places(self, backend: Backend, task_id: str) -> list[tuple[str, str, str | None]]:
        return [(place.topic, place.state, place.agent) for place in await backend.find_task(task_id)]

    async def test_a_task_is_found_wherever_it_is(self, backend: Backend) -> None:
        def task(task_id: str, **more: object) -> Publication:
            body = msgspec.json.encode({"task_id": task_id, "content": "ü b"})
            return msgspec.structs.replace(event(task_id, body=body), **more)

        assert await self.places(backend, "a") == []
        await backend.publish([task("a"), task("b"), task("later", delay=3600.0), *numbered(2500)])
        assert await self.places(backend, "a") == [(TOPIC, "queued", None)]
        assert await self.places(backend, "later") == [(TOPIC, "scheduled", None)]
        assert await self.places(backend, "n") == []
        async with serving(backend):
            await backend.create_groups([(TOPIC, AGENT), (TOPIC, "other")])
            (first,) = await fetch(backend, 1)
            assert sorted(await self.places(backend, "a")) == [(TOPIC, "queued", "other"), (TOPIC, "running", AGENT)]
            await backend.settle_many([done(first, retry=Retry(after=60, attempts=1))])
            assert sorted(await self.places(backend, "a")) == [(TOPIC, "queued", "other"), (TOPIC, "retrying", AGENT)]
            await settle_all(backend, await fetch(backend, 1, agent="other"))
            assert await self.places(backend, "a") == [(TOPIC, "retrying", AGENT)]
            (second,) = await fetch(backend, 1)
            await backend.release([second.key])
            assert (TOPIC, "queued", AGENT) in await self.places(backend, "b")

    async def test_a_task_that_is_done_is_remembered_or_expired(self, backend: Backend) -> None:
        await backend.publish([event("given", body=b'{"task_id":"given"}', dedupe=True), event("short")])
        async with serving(backend):
            given, short = await fetch(backend)
            await settle_all(backend, [given])
            await backend.settle_many([done(short, result=record("short"), result_ttl=0.01)])
        assert await self.places(backend, "given") == [(TOPIC, "expired", None)]


class SharedCareContract:
    async def test_a_restart_reaches_the_runtimes_of_others(
        self, store: Store, backend: Backend, other: Backend
    ) -> None:
        third = store.open()
        async with serving(backend), serving(other):
            await backend.report([(TOPIC, AGENT)], {AGENT: "it broke"})
            await other.report([(TOPIC, AGENT)], {AGENT: "it broke"})
            assert await third.restart(AGENT) == 2
            assert await backend.restarts() == await other.restarts() == {AGENT}
            await other.report([(TOPIC, AGENT)], {})
            assert await third.restart(AGENT) == 1
        await third.close()
