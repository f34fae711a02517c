"""What several backends over one store promise each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from omniactors.errors import StreamFull
from omniactors.streams.backend import Backend, Want
from tests.streams.contract_kit import (
    AGENT,
    LIMIT,
    TOPIC,
    done,
    event,
    fetch,
    fetch_when_due,
    numbered,
    numbers,
    record,
    serving,
)

if TYPE_CHECKING:
    from omniactors.streams.settlement import ResultRecord
    from tests.streams.contract_kit import Store


class SharedCallContract:
    async def test_one_publishes_and_another_fetches(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(3))
        async with serving(other):
            assert numbers(await fetch(other)) == [0, 1, 2]
        assert {stream.topic for stream in await backend.streams()} == {TOPIC}

    async def test_ids_and_repeats_are_common(self, backend: Backend, other: Backend) -> None:
        (first,) = await backend.publish([event("a", dedupe=True)])
        (second,) = await other.publish([event("a", dedupe=True)])
        assert second.duplicate
        assert second.entry_id == first.entry_id

    async def test_two_consumers_share_no_entry(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(40))
        async with serving(backend), serving(other):
            mine, theirs = await fetch(backend, 15), await fetch(other, 15)
            assert not set(numbers(mine)) & set(numbers(theirs))
            assert await other.settle_many([done(mine[0], result=record("t0"))]) == [False]
            await other.release([mine[0].key])
            assert await backend.settle_many([done(mine[0], result=record("t0"))]) == [True]

    async def test_a_publish_elsewhere_wakes(self, backend: Backend, other: Backend) -> None:
        async with serving(backend):
            for number in range(5):
                position = (await backend.fetch([Want(TOPIC, AGENT, 100)])).position
                with trio.fail_after(LIMIT):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(backend.wait, {TOPIC: position})
                        await other.publish([event(str(number))])

    async def test_a_result_elsewhere_wakes(self, backend: Backend, other: Backend) -> None:
        found: list[ResultRecord] = []

        async def wait() -> None:
            found.extend(await other.wait_results("a", ()))

        await other.publish([event("a")])
        with trio.fail_after(LIMIT):
            async with serving(backend), trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                (entry,) = await fetch(backend)
                await backend.settle_many([done(entry, result=record("a", result=1))])
        assert [result.result for result in found] == [1]

    async def test_a_consumer_that_ends_frees_its_entries_for_others(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(other):
            async with serving(backend):
                assert len(await fetch(backend)) == 2
                assert await fetch(other) == []
            again = (await fetch_when_due(other)).entries
            assert [(entry.attempts, entry.crashes) for entry in again] == [(0, 0), (0, 0)]

    async def test_runtimes_lists_all_that_live(self, backend: Backend, other: Backend) -> None:
        async with serving(backend) as first, serving(other) as second:
            assert {runtime.consumer for runtime in await other.runtimes()} == {first, second}
        assert await other.runtimes() == []

    async def test_a_key_from_before_a_close_is_not_ours(self, backend: Backend) -> None:
        await backend.publish(numbered(1))
        async with serving(backend):
            (old,) = await fetch(backend)
        await backend.close()
        async with serving(backend):
            (new,) = (await fetch_when_due(backend)).entries
            assert await backend.settle_many([done(old, result=record("t0"))]) == [False]
            assert await backend.settle_many([done(new)]) == [True]

    async def test_delays_pauses_settings_and_counters_are_common(self, backend: Backend, other: Backend) -> None:
        await backend.pause(AGENT)
        await backend.save_config("k", [1])
        await backend.publish([msgspec.structs.replace(event("a"), delay=0.1)])
        async with serving(other):
            fetched = await other.fetch([Want(TOPIC, AGENT, 1)])
            assert fetched.paused == {AGENT} == await other.paused()
            assert fetched.next_due is not None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch_when_due, other)
                await backend.resume(AGENT)
            assert await other.delete_config("k")
        assert await backend.config() == {}

    async def test_a_limit_counts_what_others_published(self, store: Store) -> None:
        one, two = store.open(stream_limit=3), store.open(stream_limit=3)
        await one.publish(numbered(2))
        await two.publish(numbered(1))
        with pytest.raises(StreamFull):
            await one.publish(numbered(1))
        async with serving(two):
            (entry, *_) = await fetch(two)
            assert await two.settle_many([done(entry)]) == [True]
        await one.publish(numbered(1))
        await one.close()
        await two.close()
