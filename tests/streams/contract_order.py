"""What every backend promises about ordering keys, and about how much one agent may have in hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from omniactors.streams.backend import Backend, Entry, Want
from omniactors.streams.settlement import EntryKey, Retry
from tests.streams.contract_kit import (
    AGENT,
    LIMIT,
    TOPIC,
    dead,
    done,
    event,
    fetch,
    fetch_ordered,
    group,
    next_fetch,
    numbered,
    numbers,
    serving,
    settle_all,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

ORDERED = Want(TOPIC, AGENT, 100, is_ordered=True)


async def claim(backend: Backend, entries: Sequence[Entry], *keys: str) -> list[bool]:
    """Claim the entries, each with its ordering key; the last key stands for all that follow."""
    padded = [*keys, *[keys[-1]] * (len(entries) - len(keys))]
    return await backend.claim([(entry.key, key) for entry, key in zip(entries, padded, strict=True)])


class OrderContract:
    async def test_what_one_consumer_fetched_is_all_its_own(self, backend: Backend) -> None:
        await backend.publish(numbered(5))
        async with serving(backend) as consumer:
            first = await fetch_ordered(backend, 3)
            assert {entry.key.consumer for entry in first} == {consumer}
            assert await claim(backend, first, "a", "b", "a") == [True] * 3
            second = await fetch_ordered(backend)
            assert await claim(backend, second, "a", "c") == [True] * 2
            assert numbers([*first, *second]) == [0, 1, 2, 3, 4]
            await settle_all(backend, [*second, *first])

    async def test_a_claim_may_be_repeated(self, backend: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend):
            entries = await fetch_ordered(backend)
            assert await claim(backend, entries, "a") == [True, True]
            assert await claim(backend, entries, "a") == [True, True]
            assert await backend.claim([]) == []

    async def test_what_is_not_ours_is_not_claimed(self, backend: Backend) -> None:
        await backend.publish(numbered(3))
        async with serving(backend):
            settled, released, retried = await fetch_ordered(backend)
            await settle_all(backend, [settled])
            await backend.release([released.key])
            await settle_all(backend, [retried], retry=Retry(after=60, attempts=1))
            unknown = EntryKey(TOPIC, AGENT, "1-1", released.key.consumer)
            keys = [settled.key, released.key, retried.key, unknown]
            assert await backend.claim([(key, "a") for key in keys]) == [False] * 4
            assert numbers(await fetch_ordered(backend)) == [1]

    async def test_entries_may_be_settled_and_released_unclaimed(self, backend: Backend) -> None:
        await backend.publish(numbered(3))
        async with serving(backend):
            unreadable, other, third = await fetch_ordered(backend)
            await settle_all(backend, [unreadable], dead=dead("decode"))
            assert await claim(backend, [other, third], "a") == [True, True]
            await backend.release([other.key, third.key])
            assert numbers(await fetch_ordered(backend)) == [1, 2]

    @pytest.mark.parametrize("key", ["", "a\0b", "\udc80", "🐍" * 100, '"', "="])
    async def test_any_text_is_a_key(self, backend: Backend, key: str) -> None:
        await backend.publish(numbered(3))
        async with serving(backend):
            entries = await fetch_ordered(backend)
            assert await claim(backend, entries, key, "else", key) == [True] * 3
            await settle_all(backend, entries)


class SharedOrderContract:
    async def test_an_ordered_fetch_keeps_others_out_until_its_claim(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(4))
        async with serving(backend), serving(other):
            mine = await fetch_ordered(backend, 2)
            assert await fetch_ordered(other) == []
            await claim(backend, mine, "a", "b")
            assert numbers(await fetch_ordered(other)) == [2, 3]

    async def test_the_gate_is_that_of_one_group(self, backend: Backend, other: Backend) -> None:
        await backend.publish([*numbered(2), *numbered(1, "else")])
        async with serving(backend), serving(other):
            await fetch_ordered(backend, 1)
            assert len(await fetch(other, topic="else")) == 1
            assert len((await other.fetch([Want(TOPIC, "another", 9, is_ordered=True)])).entries) == 2

    async def test_a_release_and_a_settlement_open_the_gate(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(3))
        async with serving(backend), serving(other):
            for number in range(2):
                (entry,) = await fetch_ordered(backend, 1)
                assert numbers([entry]) == [number]
                await backend.release([entry.key])
                (entry,) = await fetch_ordered(other, 1)
                await settle_all(other, [entry])
            assert numbers(await fetch_ordered(backend)) == [2]

    async def test_who_stands_before_the_gate_is_woken_by_the_claim(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend), serving(other):
            mine = await fetch_ordered(backend, 1)
            taken: list[Entry] = []

            async def take() -> None:
                taken.extend((await next_fetch(other, ORDERED)).entries)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert taken == []
                await claim(backend, mine, "a")
            assert numbers(taken) == [1]

    async def test_the_end_of_a_consumer_opens_its_gate(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(other):
            async with serving(backend):
                await fetch_ordered(backend, 1)
                assert await fetch_ordered(other) == []
            entries = (await next_fetch(other, ORDERED)).entries
            assert numbers(entries) == [0, 1]
            assert {entry.crashes for entry in entries} == {0}

    async def test_an_entry_whose_key_is_at_work_is_handed_over(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(5))
        async with serving(backend) as owner, serving(other):
            mine = await fetch_ordered(backend, 1)
            await claim(backend, mine, "a")
            theirs = await fetch_ordered(other, 3)
            assert await claim(other, theirs, "a", "b", "a") == [False, True, False]
            first, _, third = theirs
            assert await other.settle_many([done(first)]) == [False]
            await other.release([third.key])
            (handed,) = (await next_fetch(backend, msgspec.structs.replace(ORDERED, credit=1))).entries
            assert (numbers([handed]), handed.key.consumer, handed.attempts, handed.crashes) == ([1], owner, 0, 0)
            # Ahead of what is new.
            rest = await fetch_ordered(backend)
            assert numbers(rest) == [3, 4]
            assert await claim(backend, [handed, *rest], "a", "a", "c") == [True, True, True]
            await settle_all(backend, [*mine, handed, *rest])

    async def test_the_owner_of_a_key_is_woken_by_a_handover(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend), serving(other):
            await claim(backend, await fetch_ordered(backend, 1), "a")
            taken: list[Entry] = []

            async def take() -> None:
                taken.extend((await next_fetch(backend, ORDERED)).entries)

            theirs = await fetch_ordered(other)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert await claim(other, theirs, "a") == [False]
            assert numbers(taken) == [1]

    @pytest.mark.parametrize("end", ["settle", "retry", "release", "serve"])
    async def test_a_key_is_free_after_its_last_entry(self, backend: Backend, other: Backend, end: str) -> None:
        await backend.publish(numbered(3))
        async with serving(other):
            async with serving(backend):
                mine = await fetch_ordered(backend, 1)
                await claim(backend, mine, "a")
                match end:
                    case "settle":
                        await settle_all(backend, mine)
                    case "retry":
                        await settle_all(backend, mine, retry=Retry(after=60, attempts=1))
                    case "release":
                        await backend.release([entry.key for entry in mine])
                    case _:
                        pass
                if end != "serve":
                    theirs = await fetch_ordered(other)
                    assert await claim(other, theirs, "a") == [True] * len(theirs)
            if end == "serve":
                theirs = (await next_fetch(other, ORDERED)).entries
                assert await claim(other, theirs, "a") == [True] * 3

    async def test_a_key_stays_while_something_handed_over_waits(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(3))
        async with serving(backend), serving(other):
            mine = await fetch_ordered(backend, 1)
            await claim(backend, mine, "a")
            assert await claim(other, await fetch_ordered(other, 1), "a") == [False]
            await settle_all(backend, mine)
            assert await claim(other, await fetch_ordered(other, 1), "a") == [False]
            handed = (await next_fetch(backend, ORDERED)).entries
            assert numbers(handed) == [1, 2]
            assert await claim(backend, handed, "a") == [True, True]

    async def test_a_consumer_that_ends_gives_back_what_was_handed_to_it(
        self, backend: Backend, other: Backend
    ) -> None:
        await backend.publish(numbered(4))
        async with serving(other):
            async with serving(backend):
                await claim(backend, await fetch_ordered(backend, 1), "a")
                theirs = await fetch_ordered(other, 2)
                assert await claim(other, theirs, "a", "b") == [False, True]
            again = (await next_fetch(other, ORDERED)).entries
            assert numbers(again) == [0, 1, 3]
            assert {(entry.attempts, entry.crashes) for entry in again} == {(0, 0)}
            assert await claim(other, again, "a") == [True] * 3

    async def test_what_came_back_meanwhile_goes_first(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(5))
        async with serving(backend), serving(other):
            mine = await fetch_ordered(backend, 2)
            await claim(backend, mine, "a", "b")
            theirs = await fetch_ordered(other, 2)
            await backend.release([mine[1].key])
            assert await claim(other, theirs, "b", "c") == [False, False]
            again = (await next_fetch(other, ORDERED)).entries
            assert numbers(again) == [1, 2, 3, 4]
            assert {(entry.attempts, entry.crashes) for entry in again} == {(0, 0)}
            assert await claim(other, again, "b") == [True] * 4

    async def test_a_retry_that_waits_is_no_reason_to_give_back(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(3))
        async with serving(backend), serving(other):
            mine = await fetch_ordered(backend, 1)
            await claim(backend, mine, "a")
            theirs = await fetch_ordered(other)
            await settle_all(backend, mine, retry=Retry(after=0, attempts=1))
            assert await claim(other, theirs, "a") == [True, True]

    async def test_who_withdraws_gives_back_what_was_handed_over_and_gets_no_more(
        self, backend: Backend, other: Backend
    ) -> None:
        await backend.publish(numbered(3))
        async with serving(backend), serving(other):
            mine = await fetch_ordered(backend, 1)
            await claim(backend, mine, "a")
            assert await claim(other, await fetch_ordered(other, 1), "a") == [False]
            await backend.withdraw([(TOPIC, AGENT)])
            again = (await next_fetch(other, msgspec.structs.replace(ORDERED, credit=1))).entries
            assert numbers(again) == [1]
            assert await claim(other, again, "a") == [False], "it goes back, because its key is at work"
            await settle_all(backend, mine)
            again = (await next_fetch(other, ORDERED)).entries
            assert numbers(again) == [1, 2]
            assert await claim(other, again, "a") == [True, True]

    async def test_a_withdrawal_ends_with_the_next_fetch(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(3))
        async with serving(backend), serving(other):
            await claim(backend, await fetch_ordered(backend, 1), "a")
            await backend.withdraw([(TOPIC, AGENT)])
            await claim(backend, await fetch_ordered(backend, 1), "b")
            assert await claim(other, await fetch_ordered(other, 1), "a") == [False]
            assert numbers((await next_fetch(backend, ORDERED)).entries) == [2]

    async def test_two_consumers_keep_the_order_of_every_key(self, backend: Backend, other: Backend) -> None:
        total, keys = 60, 4
        handled: list[int] = []

        async def consume(consumer: Backend, credit: int) -> None:
            queue: list[Entry] = []
            while len(handled) < total:
                fetched = await consumer.fetch([Want(TOPIC, AGENT, credit, is_ordered=True)])
                queue += fetched.entries
                flags = await consumer.claim([(entry.key, str(numbers([entry])[0] % keys)) for entry in queue])
                queue = [entry for entry, is_ours in zip(queue, flags, strict=True) if is_ours]
                for entry in queue[:2]:
                    handled.extend(numbers([entry]))
                    await settle_all(consumer, [entry])
                queue = queue[2:]
                if not queue:
                    with trio.move_on_after(0.05):  # the other one may have handled the last
                        await consumer.wait({TOPIC: fetched.position})

        await backend.publish(numbered(total))
        with trio.fail_after(3 * LIMIT):
            async with serving(backend), serving(other), trio.open_nursery() as nursery:
                nursery.start_soon(consume, backend, 3)
                nursery.start_soon(consume, other, 5)
        assert sorted(handled) == list(range(total))
        for key in range(keys):
            assert [n for n in handled if n % keys == key] == list(range(key, total, keys))


class GroupLimitContract:
    async def test_a_group_never_has_more_in_hand_than_its_limit(self, backend: Backend) -> None:
        await backend.publish(numbered(6))
        want = Want(TOPIC, AGENT, 100, limit=3)
        async with serving(backend):
            entries = (await backend.fetch([want])).entries
            assert numbers(entries) == [0, 1, 2]
            assert (await backend.fetch([want])).entries == []
            a, b, c = entries
            await settle_all(backend, [a])
            await backend.release([b.key])
            await settle_all(backend, [c], retry=Retry(after=60, attempts=1))
            assert numbers((await backend.fetch([msgspec.structs.replace(want, credit=2)])).entries) == [1, 3]
            assert numbers((await backend.fetch([want])).entries) == [4]
            assert (await group(backend)).pending == 3

    async def test_a_limit_counts_what_was_taken_without_it(self, backend: Backend) -> None:
        await backend.publish(numbered(4))
        async with serving(backend):
            await fetch(backend, 2)
            assert (await backend.fetch([Want(TOPIC, AGENT, 9, limit=1)])).entries == []
            assert numbers((await backend.fetch([Want(TOPIC, AGENT, 9, limit=3)])).entries) == [2]

    @pytest.mark.parametrize("end", ["settle", "retry", "release"])
    async def test_who_was_clipped_is_woken_when_there_is_room(self, backend: Backend, end: str) -> None:
        await backend.publish(numbered(2))
        want = Want(TOPIC, AGENT, 100, limit=1)
        async with serving(backend):
            held = (await backend.fetch([want])).entries
            taken: list[Entry] = []

            async def take() -> None:
                taken.extend((await next_fetch(backend, want)).entries)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert taken == []
                match end:
                    case "settle":
                        await settle_all(backend, held)
                    case "retry":
                        await settle_all(backend, held, retry=Retry(after=60, attempts=1))
                    case _:
                        await backend.release([entry.key for entry in held])
            assert numbers(taken) == [0 if end == "release" else 1]


class SharedGroupLimitContract:
    async def test_the_limit_is_that_of_all_consumers(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(6))
        want = Want(TOPIC, AGENT, 2, limit=3)
        async with serving(other):
            async with serving(backend):
                assert numbers((await backend.fetch([want])).entries) == [0, 1]
                assert numbers((await other.fetch([want])).entries) == [2]
                assert (await other.fetch([want])).entries == []
            # What the one that ended held is free, and so is its part of the limit.
            assert numbers((await next_fetch(other, want)).entries) == [0, 1]
            assert (await other.fetch([want])).entries == []

    async def test_who_was_clipped_is_woken_by_another_consumer(self, backend: Backend, other: Backend) -> None:
        await backend.publish(numbered(2))
        want = Want(TOPIC, AGENT, 100, limit=1)
        async with serving(backend), serving(other):
            held = (await backend.fetch([want])).entries
            taken: list[Entry] = []

            async def take() -> None:
                taken.extend((await next_fetch(other, want)).entries)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await settle_all(backend, held)
            assert numbers(taken) == [1]

    async def test_a_handed_over_entry_passes_the_limit(self, backend: Backend, other: Backend) -> None:
        await backend.publish([*numbered(2), event("last")])
        want = Want(TOPIC, AGENT, 1, limit=2, is_ordered=True)
        async with serving(backend), serving(other):
            mine = (await backend.fetch([want])).entries
            await claim(backend, mine, "a")
            theirs = (await other.fetch([want])).entries
            assert await claim(other, theirs, "a") == [False]
            assert (await other.fetch([want])).entries == []
            assert numbers((await next_fetch(backend, want)).entries) == [1]
