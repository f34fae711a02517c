"""What every backend promises about publishing, fetching, settling and waking."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors.errors import BackendClosed, BackendError
from omniactors.streams.backend import Backend, Want
from omniactors.streams.settlement import Dead, EntryKey, ErrorInfo, Publication, Retry, Settlement
from tests.streams.contract_kit import (
    AGENT,
    LIMIT,
    TOPIC,
    done,
    event,
    fetch,
    length,
    numbered,
    numbers,
    record,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class PublishContract:
    async def test_entries_come_in_the_order_of_their_publication(self, backend: Backend) -> None:
        await backend.publish(numbered(5)[:2])
        await backend.publish(numbered(5)[2:])
        async with serving(backend):
            assert numbers(await fetch(backend)) == [0, 1, 2, 3, 4]

    async def test_publish_tells_the_fate_of_each_in_order(self, backend: Backend) -> None:
        fates = await backend.publish(numbered(300))
        assert [fate.task_id for fate in fates] == [f"t{number}" for number in range(300)]
        assert not any(fate.duplicate for fate in fates)
        ids = [tuple(map(int, fate.entry_id.split("-"))) for fate in fates]
        assert ids == sorted(set(ids))

    async def test_concurrent_publishes_are_all_there_each_in_its_own_order(self, backend: Backend) -> None:
        async def publish_some(publisher: int) -> None:
            for number in range(10):
                await backend.publish([event(f"{publisher}-{number}", body=b'{"n":%d}' % (publisher * 10 + number))])

        async with trio.open_nursery() as nursery:
            for publisher in range(20):
                nursery.start_soon(publish_some, publisher)
        async with serving(backend):
            found = numbers(await fetch(backend, 1000))
        assert sorted(found) == list(range(200))
        for publisher in range(20):
            assert [n for n in found if n // 10 == publisher] == list(range(publisher * 10, publisher * 10 + 10))

    async def test_an_empty_publish_is_nothing(self, backend: Backend) -> None:
        assert await backend.publish([]) == []
        assert await backend.streams() == []

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"\xff\xfe\x00",
            b"\x00",
            b'{"n":"\xf0\x9f\x90\x8d \\u0000"}',
            b"not json",
            b"\xed\xa0\x80",
            b'"' * 70_000,
        ],
    )
    async def test_a_body_comes_back_byte_for_byte_among_others(self, backend: Backend, body: bytes) -> None:
        await backend.publish([event("a", body=b'{"n":1}'), event("b", body=body), event("c", body=b'{"n":2}')])
        async with serving(backend):
            assert [entry.body for entry in await fetch(backend)] == [b'{"n":1}', body, b'{"n":2}']

    async def test_a_bad_publication_fails_alone(self, backend: Backend) -> None:
        failures = []

        async def publish_bad() -> None:
            try:
                await backend.publish([Publication(topic=TOPIC, task_id="bad", body=7)])  # type: ignore[arg-type]
            except BackendError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_bad)
            for number in range(5):
                nursery.start_soon(backend.publish, [event(str(number))])
        assert len(failures) == 1
        assert await length(backend) == 5


class DedupeContract:
    async def test_a_repeated_id_is_appended_once(self, backend: Backend) -> None:
        (first,) = await backend.publish([event("a", dedupe=True)])
        (second,) = await backend.publish([event("a", dedupe=True)])
        assert (first.duplicate, second.duplicate) == (False, True)
        assert second.entry_id == first.entry_id
        assert await length(backend) == 1

    async def test_a_repeat_inside_one_call_is_seen(self, backend: Backend) -> None:
        fates = await backend.publish([event("a", dedupe=True), event("b", dedupe=True), event("a", dedupe=True)])
        assert [fate.duplicate for fate in fates] == [False, False, True]
        assert fates[0].entry_id == fates[2].entry_id
        assert await length(backend) == 2

    async def test_concurrent_repeats_are_appended_once(self, backend: Backend) -> None:
        fates = []

        async def publish() -> None:
            fates.extend(await backend.publish([event("a", dedupe=True)]))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(publish)
        assert sorted(fate.duplicate for fate in fates) == [False] + [True] * 19
        assert len({fate.entry_id for fate in fates}) == 1
        assert await length(backend) == 1

    async def test_ids_are_remembered_per_topic_and_only_when_asked(self, backend: Backend) -> None:
        await backend.publish([event("a", dedupe=True), event("a", topic="else", dedupe=True)])
        await backend.publish([event("b"), event("b")])
        assert await length(backend) == 3
        assert await length(backend, "else") == 1

    async def test_a_settled_event_is_still_remembered(self, backend: Backend) -> None:
        async with serving(backend):
            await backend.create_groups([(TOPIC, AGENT)])
            await backend.publish([event("a", dedupe=True)])
            (entry,) = await fetch(backend)
            await backend.settle_many([done(entry)])
            (fate,) = await backend.publish([event("a", dedupe=True)])
            assert fate.duplicate
            assert await fetch(backend) == []


class FetchContract:
    async def test_a_fetch_never_exceeds_its_credit(self, backend: Backend) -> None:
        await backend.publish(numbered(10))
        async with serving(backend):
            assert numbers(await fetch(backend, 3)) == [0, 1, 2]
            assert await fetch(backend, 0) == []
            assert await fetch(backend, -1) == []
            held = await fetch(backend, 1)
            await backend.release([entry.key for entry in held])
            assert numbers(await fetch(backend, 2)) == [3, 4]
            assert numbers(await fetch(backend, 100)) == [5, 6, 7, 8, 9]

    async def test_many_wants_are_served_at_once(self, backend: Backend) -> None:
        topics = [f"topic-{number}" for number in range(230)]
        await backend.publish([event("t", topic=topic) for topic in topics for _ in range(3)])
        async with serving(backend):
            fetched = await backend.fetch([Want(topic, AGENT, 1 + place % 2) for place, topic in enumerate(topics)])
        taken = [entry.key.topic for entry in fetched.entries]
        assert [taken.count(topic) for topic in topics] == [1 + place % 2 for place in range(230)]

    async def test_two_groups_of_a_topic_get_every_entry(self, backend: Backend) -> None:
        await backend.create_groups([(TOPIC, "one"), (TOPIC, "two")])
        await backend.publish(numbered(3))
        async with serving(backend):
            first = await fetch(backend, agent="one")
            assert all(await backend.settle_many([done(entry) for entry in first]))
            assert await length(backend) == 3
            second = await fetch(backend, agent="two")
            assert numbers(second) == [0, 1, 2]
            assert all(await backend.settle_many([done(entry) for entry in second]))
            assert await length(backend) == 0

    async def test_a_group_made_late_starts_with_what_is_stored(self, backend: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend):
            await backend.create_groups([(TOPIC, "early")])
            (entry, _) = await fetch(backend, agent="early")
            await backend.settle_many([done(entry)])
            await backend.create_groups([(TOPIC, "late"), (TOPIC, "early")])
            assert numbers(await fetch(backend, agent="late")) == [1]
            assert await fetch(backend, agent="early") == []

    async def test_concurrent_fetches_share_no_entry(self, backend: Backend) -> None:
        await backend.publish(numbered(50))
        taken: list[int] = []

        async def take() -> None:
            taken.extend(numbers(await fetch(backend, 5)))

        async with serving(backend), trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
        assert sorted(taken) == list(range(50))

    async def test_a_fetch_is_refused_while_nobody_serves(self, backend: Backend) -> None:
        await backend.publish(numbered(1))
        with pytest.raises(BackendError, match="serve"):
            await fetch(backend)
        async with serving(backend):
            assert len(await fetch(backend)) == 1

    async def test_a_backend_serves_once_at_a_time(self, backend: Backend) -> None:
        async with serving(backend) as first:
            with pytest.raises(BackendError, match="already"):
                await backend.serve()
        async with serving(backend) as second:
            assert second != first


class SettleContract:
    async def test_a_settlement_writes_all_of_its_parts(self, backend: Backend) -> None:
        await backend.publish([event("a")])
        async with serving(backend):
            (entry,) = await fetch(backend)
            follow_ups = (event("b", topic="next", body=b'{"n":1}'), event("c", topic="next", body=b'{"n":2}'))
            settlement = done(entry, result=record("a", result={"x": [1, None]}), publications=follow_ups)
            before = time.time()
            assert await backend.settle_many([settlement]) == [True]
            (result,) = await backend.get_results("a")
            assert (result.status, result.result) == ("success", {"x": [1, None]})
            assert before - 1 <= result.processed_at <= time.time() + 1
            assert numbers(await fetch(backend, topic="next")) == [1, 2]
            assert await length(backend) == 0

    async def test_what_a_settlement_publishes_is_unseen_before(self, backend: Backend) -> None:
        await backend.publish([event("a")])
        async with serving(backend):
            (entry,) = await fetch(backend)
            assert await length(backend, "next") == 0
            await backend.settle_many([done(entry, publications=(event("b", topic="next"),))])
            assert await length(backend, "next") == 1

    async def test_a_second_settlement_writes_nothing(self, backend: Backend) -> None:
        await backend.publish([event("a")])
        async with serving(backend):
            (entry,) = await fetch(backend)
            first = done(entry, result=record("a", result=1))
            second = done(
                entry,
                result=record("a", result=2),
                publications=(event("b", topic="next"),),
                dead=Dead(reason="rejected", error=ErrorInfo(type="E", message="m"), attempts=1),
            )
            assert await backend.settle_many([first, second]) == [True, False]
            assert await backend.settle_many([second]) == [False]
            assert [result.result for result in await backend.get_results("a")] == [1]
            assert await length(backend, "next") == 0
            assert await backend.dead_letters(TOPIC, limit=10) == []

    async def test_an_unknown_entry_is_not_ours(self, backend: Backend) -> None:
        await backend.publish([event("a")])
        async with serving(backend):
            for key in (EntryKey(TOPIC, AGENT, "1-1"), EntryKey("no", "one", "garbage"), EntryKey(TOPIC, AGENT, "")):
                assert await backend.settle_many([Settlement(key=key, result=record("a"))]) == [False]
        assert await backend.get_results("a") == []

    async def test_settlements_of_all_kinds_go_together(self, backend: Backend) -> None:
        await backend.publish(numbered(5))
        async with serving(backend):
            a, b, c, d, e = await fetch(backend)
            await backend.release([e.key])
            dead = Dead(reason="timeout", error=ErrorInfo(type="E", message="m"), attempts=4)
            flags = await backend.settle_many(
                [
                    done(a, result=record("t0", result="fine")),
                    done(b, dead=dead, result=record("t1", failed=True)),
                    done(c, retry=Retry(after=0, attempts=1)),
                    done(d),
                    done(e),
                ]
            )
            assert flags == [True, True, True, True, False]
            assert [(entry.key, entry.attempts) for entry in await fetch(backend)] == [(e.key, 0), (c.key, 1)]
            assert len(await backend.dead_letters(TOPIC, limit=10)) == 1
            assert [result.status for result in await backend.get_results("t1")] == ["failed"]

    async def test_a_topic_without_groups_keeps_its_entries(self, backend: Backend) -> None:
        await backend.publish(numbered(3))
        assert await length(backend) == 3


class WakeContract:
    @pytest.mark.parametrize("is_returned", [False, True])
    async def test_a_fetch_is_bounded_in_bytes_as_well_and_says_that_there_is_more(
        self, backend: Backend, *, is_returned: bool
    ) -> None:
        body = b'{"n":0}' + b" " * (2 << 20)
        for number in range(40):
            await backend.publish([event(f"t{number}", body=body)])
        await backend.publish(numbered(1, "other"))
        wants = [Want(TOPIC, AGENT, 40), Want("other", AGENT, 1)]
        async with serving(backend):
            taken: list[str] = []
            while len(taken) < 41:
                fetched = await backend.fetch(wants)
                assert sum(len(entry.body) for entry in fetched.entries) <= 32 << 20
                assert fetched.entries
                assert fetched.has_more or len(taken) + len(fetched.entries) == 41
                if is_returned and not taken:
                    await backend.release([entry.key for entry in fetched.entries])
                    is_returned = False
                else:
                    taken += [entry.key.entry_id for entry in fetched.entries]
                    wants = [Want(TOPIC, AGENT, 41 - len(taken)), Want("other", AGENT, 1)]
            assert len(taken) == len(set(taken)) == 41

    async def test_a_wait_ends_with_a_publish_to_one_of_its_topics(self, backend: Backend) -> None:
        async with serving(backend):
            position = (await backend.fetch([Want(TOPIC, AGENT, 1), Want("else", AGENT, 1)])).position
            with trio.fail_after(LIMIT):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(backend.wait, {TOPIC: position, "else": position})
                    await trio.testing.wait_all_tasks_blocked()
                    await backend.publish([event("a", topic="else")])

    async def test_a_wait_tells_which_topics_changed(self, backend: Backend) -> None:
        async with serving(backend):
            old = (await backend.fetch([Want(TOPIC, AGENT, 9), Want("else", AGENT, 9)])).position
            await backend.publish(numbered(1))
            new = (await backend.fetch([Want(TOPIC, AGENT, 9)])).position
            await backend.publish(numbered(1, "else"))
            with trio.fail_after(LIMIT):
                changed: frozenset[str] = frozenset()
                while "else" not in changed:
                    changed = await backend.wait({TOPIC: new, "else": old})
                    assert changed
                    assert changed <= {TOPIC, "else"}
                assert TOPIC in await backend.wait({TOPIC: old})

    async def test_no_change_is_lost_between_fetch_and_wait(self, backend: Backend) -> None:
        async with serving(backend):
            for number in range(20):
                position = (await backend.fetch([Want(TOPIC, AGENT, 100)])).position
                await backend.publish([event(str(number))])
                with trio.fail_after(LIMIT):
                    await backend.wait({TOPIC: position})

    async def test_a_release_and_a_retry_wake(self, backend: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend):
            fetched = await backend.fetch([Want(TOPIC, AGENT, 5)])
            first, second = fetched.entries
            with trio.fail_after(LIMIT):
                await backend.release([first.key])
                await backend.wait({TOPIC: fetched.position})
                position = (await backend.fetch([Want(TOPIC, AGENT, 5)])).position
                await backend.settle_many([done(second, retry=Retry(after=9, attempts=1))])
                await backend.wait({TOPIC: position})

    async def test_a_cancelled_wait_leaves_nothing_behind(self, backend: Backend) -> None:
        async with serving(backend):
            position = (await backend.fetch([Want(TOPIC, AGENT, 5)])).position
            for _ in range(3):
                with trio.move_on_after(0.03):
                    await backend.wait({TOPIC: position})
            await backend.publish(numbered(1))
            assert numbers(await fetch(backend)) == [0]


class CallContract:
    async def test_close_may_come_first_and_twice(self, backend: Backend) -> None:
        await backend.close()
        await backend.publish(numbered(1))
        await backend.close()
        await backend.close()
        await backend.publish(numbered(1))

    async def test_close_finishes_what_was_accepted_and_sends_away_who_waits(self, backend: Backend) -> None:
        ended = []

        async def wait_on() -> None:
            while True:  # one wait may return for nothing
                await backend.wait({TOPIC: (await backend.fetch([Want(TOPIC, AGENT, 1)])).position})

        async def wait() -> None:
            with pytest.raises(BackendClosed):
                await wait_on()
            ended.append("wait")

        async def wait_results() -> None:
            with pytest.raises(BackendClosed):
                await backend.wait_results("a", ())
            ended.append("wait_results")

        async def call(operation: Callable[[], Awaitable[object]]) -> None:
            await operation()
            ended.append("call")

        async with serving(backend), trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait_results)
            await trio.testing.wait_all_tasks_blocked(0.05)
            for _ in range(3):
                nursery.start_soon(call, lambda: backend.publish(numbered(1, "else")))
                nursery.start_soon(call, lambda: backend.fetch([Want("else", AGENT, 1)]))
            await trio.testing.wait_all_tasks_blocked()
            await backend.close()
        assert sorted(ended) == ["call"] * 6 + ["wait", "wait_results"]

    async def test_a_cancelled_publish_is_whole_or_nothing_and_the_next_one_works(self, backend: Backend) -> None:
        acknowledged = 0
        for attempt in range(40):
            with trio.move_on_after(attempt * 0.0001):
                await backend.publish([event(f"{attempt}-a"), event(f"{attempt}-b")])
                acknowledged += 2
        await backend.publish([event("last-a"), event("last-b")])
        async with serving(backend):
            found = await fetch(backend, 1000)
        assert len(found) % 2 == 0
        assert acknowledged + 2 <= len(found) <= 82

    async def test_a_call_cancelled_before_it_began_does_nothing(self, backend: Backend) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await backend.publish(numbered(1))
        assert scope.cancelled_caught
        assert await length(backend) == 0
