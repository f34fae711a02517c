"""What every backend promises about the dead letters: filters, replay and purge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from omniactors.errors import StreamFull
from omniactors.streams.backend import EVERY_DEAD_LETTER, Backend, DeadFilter, DeadLetter
from tests.streams.contract_kit import (
    AGENT,
    TOPIC,
    bury,
    dead,
    done,
    event,
    fetch,
    fetch_when_due,
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


def bodies(letters: list[DeadLetter]) -> list[int]:
    return [letter.failed_message["n"] for letter in letters]


async def dead_of_two_agents(backend: Backend) -> list[DeadLetter]:
    """Six dead letters of two agents with several reasons, oldest first: each event once per agent."""
    for agent in ("one", "two"):
        await backend.create_groups([(TOPIC, agent)])
    await backend.publish(numbered(3))
    kinds = (dead("timeout", "A"), dead("rejected", "B"), dead("timeout", "B"))
    for agent in ("one", "two"):
        for entry, kind in zip(await fetch(backend, agent=agent), kinds, strict=True):
            await settle_all(backend, [entry], dead=kind)
    letters = await backend.dead_letters(TOPIC, limit=100)
    return letters[::-1]


FILTERS = {
    "all": EVERY_DEAD_LETTER,
    "agent": DeadFilter(agent="one"),
    "unknown agent": DeadFilter(agent="nobody"),
    "reason": DeadFilter(reason="timeout"),
    "type": DeadFilter(error_type="B"),
    "several": DeadFilter(agent="two", reason="timeout", error_type="B"),
    "none": DeadFilter(ids=()),
    "unknown ids": DeadFilter(ids=("1-1", "garbage", "")),
    "long ago": DeadFilter(until=1.0),
    "not yet": DeadFilter(since=1e10),
}


class ReplayContract:
    @pytest.mark.parametrize("name", FILTERS)
    async def test_a_filter_admits_what_it_says(self, backend: Backend, name: str) -> None:
        async with serving(backend):
            letters = await dead_of_two_agents(backend)
            wanted = [letter for letter in letters if FILTERS[name].matches(letter)]
            assert await backend.dead_letters(TOPIC, limit=100, where=FILTERS[name]) == wanted[::-1]
            assert await backend.dead_letters(TOPIC, limit=1, where=FILTERS[name]) == wanted[::-1][:1]
            assert await backend.purge_dead(TOPIC, FILTERS[name], limit=100) == len(wanted)
            left = [letter for letter in letters if letter not in wanted]
            assert await backend.dead_letters(TOPIC, limit=100) == left[::-1]

    async def test_ids_and_times_narrow(self, backend: Backend) -> None:
        async with serving(backend):
            letters = await dead_of_two_agents(backend)
            chosen = DeadFilter(ids=(letters[4].id, letters[1].id), agent="one")
            assert await backend.dead_letters(TOPIC, limit=9, where=chosen) == [letters[1]]
            span = DeadFilter(since=letters[1].failed_at, until=letters[4].failed_at)
            wanted = [letter for letter in letters if span.matches(letter)]
            assert await backend.dead_letters(TOPIC, limit=9, where=span) == wanted[::-1]

    async def test_a_replayed_event_is_as_new(self, backend: Backend) -> None:
        body = b'{"n":7, "odd" :  "bytes \xf0\x9f\x90\x8d"}'
        await backend.publish([event("a", body=body), event("b", body=b"\xff\x00 no text")])
        async with serving(backend):
            for _ in range(2):
                assert len(await bury(backend)) == 2
                assert await backend.replay_dead(TOPIC, EVERY_DEAD_LETTER, limit=100) == 2
                assert await backend.dead_letters(TOPIC, limit=10) == []
                assert (await stream(backend)).length == 2
            assert (await group(backend)).waiting == 2
            entries = await fetch(backend)
            assert [entry.body for entry in entries] == [body, b"\xff\x00 no text"]
            assert {(entry.attempts, entry.crashes) for entry in entries} == {(0, 0)}
            await settle_all(backend, entries)
            assert await length(backend) == 0
            assert await backend.replay_dead(TOPIC, EVERY_DEAD_LETTER, limit=100) == 0

    async def test_the_failure_of_a_replayed_event_is_forgotten(self, backend: Backend) -> None:
        await backend.create_groups([(TOPIC, AGENT), (TOPIC, "two")])
        await backend.publish([event("a", body=b'{"content": 1, "task_id": "a"}')])
        async with serving(backend):
            (entry,) = await fetch(backend)
            await settle_all(backend, [entry], dead=dead(), result=record("a", failed=True))
            (entry,) = await fetch(backend, agent="two")
            await settle_all(backend, [entry], dead=dead(), result=record("a", agent="two", failed=True))
            assert await backend.replay_dead(TOPIC, DeadFilter(agent=AGENT), limit=9) == 1
            assert [result.agent for result in await backend.get_results("a")] == ["two"]
            await settle_all(backend, await fetch(backend), result=record("a", result=1))
            assert await backend.replay_dead(TOPIC, EVERY_DEAD_LETTER, limit=9) == 1
            assert [result.result for result in await backend.get_results("a")] == [1]

    async def test_the_oldest_come_first_and_no_more_than_asked_for(self, backend: Backend) -> None:
        await backend.publish(numbered(4))
        async with serving(backend):
            await bury(backend)
            assert await backend.replay_dead(TOPIC, EVERY_DEAD_LETTER, limit=2) == 2
            assert numbers(await fetch(backend)) == [0, 1]
            assert await backend.purge_dead(TOPIC, EVERY_DEAD_LETTER, limit=1) == 1
            assert bodies(await backend.dead_letters(TOPIC, limit=9)) == [3]
            assert await backend.replay_dead(TOPIC, EVERY_DEAD_LETTER, limit=0) == 0
            assert await backend.purge_dead("unknown", EVERY_DEAD_LETTER, limit=9) == 0

    async def test_it_comes_after_what_was_published_before(self, backend: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend):
            await bury(backend)
            await backend.publish(numbered(2, start=2))
            await backend.replay_dead(TOPIC, EVERY_DEAD_LETTER, limit=9)
            await backend.publish(numbered(1, start=4))
            assert numbers(await fetch(backend, 3)) == [2, 3, 0]
            assert numbers(await fetch(backend)) == [1, 4]

    async def test_only_its_own_group_gets_it(self, backend: Backend) -> None:
        await backend.create_groups([(TOPIC, AGENT), (TOPIC, "two")])
        await backend.publish(numbered(2))
        async with serving(backend):
            await bury(backend)
            assert await backend.replay_dead(TOPIC, EVERY_DEAD_LETTER, limit=9) == 2
            await backend.create_groups([(TOPIC, "late")])
            late = await fetch(backend, agent="late")
            assert numbers(late) == [0, 1], "what another group still needs, and no more"
            await settle_all(backend, late)
            theirs = await fetch(backend, agent="two")
            assert numbers(theirs) == [0, 1]
            await settle_all(backend, theirs)
            assert await fetch(backend, agent="two") == []
            assert await fetch(backend, agent="later still") == []
            assert (await group(backend, "two")).waiting == 0
            mine = await fetch(backend)
            assert numbers(mine) == [0, 1]
            await settle_all(backend, mine)
            assert await length(backend) == 0

    async def test_it_may_be_retried_released_and_die_again(self, backend: Backend) -> None:
        await backend.publish(numbered(1))
        async with serving(backend):
            await bury(backend)
            await backend.replay_dead(TOPIC, EVERY_DEAD_LETTER, limit=9)
            (entry,) = await fetch(backend)
            await backend.release([entry.key])
            (entry,) = await fetch(backend)
            await settle_all(backend, [entry], dead=dead("timeout"))
            assert await backend.settle_many([done(entry)]) == [False]
            (letter,) = await backend.dead_letters(TOPIC, limit=9)
            assert (letter.reason, bodies([letter])) == ("timeout", [0])
            assert await length(backend) == 0

    async def test_a_replay_wakes(self, backend: Backend) -> None:
        await backend.publish(numbered(1))
        async with serving(backend):
            await bury(backend)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch_when_due, backend)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await backend.replay_dead(TOPIC, EVERY_DEAD_LETTER, limit=9)

    async def test_a_full_stream_refuses_a_replay_whole(self, store: Store) -> None:
        backend = store.open(stream_limit=3)
        await backend.publish(numbered(2))
        async with serving(backend):
            await bury(backend)
            await backend.publish(numbered(2))
            with pytest.raises(StreamFull):
                await backend.replay_dead(TOPIC, EVERY_DEAD_LETTER, limit=9)
            assert len(await backend.dead_letters(TOPIC, limit=9)) == 2
            assert await backend.replay_dead(TOPIC, EVERY_DEAD_LETTER, limit=1) == 1
            assert await length(backend) == 3
        await backend.close()
