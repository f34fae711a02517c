"""What every backend promises: inherit from these classes and give them a `store` fixture."""

from __future__ import annotations

import math
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import msgspec
import pytest
import trio

from omniactors.errors import BackendClosed, BackendError
from omniactors.streams.backend import AgentRecord, Backend, Entry, Fetched, Want
from omniactors.streams.settlement import (
    Dead,
    EntryKey,
    ErrorInfo,
    Publication,
    ResultRecord,
    Retry,
    Settlement,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

TOPIC, AGENT = "work", "worker"
LIMIT = 10.0
"""Seconds of real time after which a wait for another thread or process has failed."""


class Store(Protocol):
    """A place for data; each `open()` gives another backend over it."""

    def open(self) -> Backend: ...


@pytest.fixture
async def backend(store: Store) -> AsyncIterator[Backend]:
    backend = store.open()
    with trio.fail_after(6 * LIMIT):
        yield backend
    await backend.close()


@pytest.fixture
async def other(store: Store) -> AsyncIterator[Backend]:
    backend = store.open()
    yield backend
    await backend.close()


@asynccontextmanager
async def serving(backend: Backend) -> AsyncIterator[str]:
    """The backend is a consumer inside the block."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(backend.serve)
        nursery.cancel_scope.cancel()


def event(task_id: str, *, topic: str = TOPIC, body: bytes = b"{}", dedupe: bool = False) -> Publication:
    return Publication(topic=topic, task_id=task_id, body=body, dedupe=dedupe)


def numbered(count: int, topic: str = TOPIC) -> list[Publication]:
    return [event(f"t{number}", topic=topic, body=b'{"n":%d}' % number) for number in range(count)]


def numbers(entries: list[Entry]) -> list[int]:
    return [msgspec.json.decode(entry.body)["n"] for entry in entries]


def record(task_id: str, *, agent: str = AGENT, result: object = None, failed: bool = False) -> ResultRecord:
    return ResultRecord(
        task_id=task_id,
        topic=TOPIC,
        agent=agent,
        status="failed" if failed else "success",
        result=result,
        error="it broke" if failed else None,
    )


def done(entry: Entry, **parts: object) -> Settlement:
    return msgspec.structs.replace(Settlement(key=entry.key), **parts)


async def fetch(backend: Backend, credit: int = 100, *, topic: str = TOPIC, agent: str = AGENT) -> list[Entry]:
    return (await backend.fetch([Want(topic, agent, credit)])).entries


async def fetch_when_due(backend: Backend, agent: str = AGENT) -> Fetched:
    """The next fetch that takes something, as a router does it: by `wait` and `next_due`."""
    with trio.fail_after(LIMIT):
        while True:
            fetched = await backend.fetch([Want(TOPIC, agent, 100)])
            if fetched.entries:
                return fetched
            due = math.inf if fetched.next_due is None else fetched.next_due
            with trio.move_on_after(due):
                await backend.wait([TOPIC], fetched.position)


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition, which another thread or process brings about, holds."""
    with trio.fail_after(LIMIT):
        while not condition():  # noqa: ASYNC110 -- no event of ours tells what others have done
            await trio.sleep(0.01)


async def length(backend: Backend, topic: str = TOPIC) -> int:
    return next((stream.length for stream in await backend.streams() if stream.topic == topic), 0)


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


class RetryContract:
    async def test_a_retry_comes_back_after_its_delay(self, backend: Backend) -> None:
        await backend.publish(numbered(1))
        async with serving(backend):
            (entry,) = await fetch(backend)
            retry = Retry(after=0.3, attempts=1)
            assert await backend.settle_many([done(entry, retry=retry)]) == [True]
            settled = time.monotonic()
            fetched = await backend.fetch([Want(TOPIC, AGENT, 5)])
            assert fetched.entries == []
            assert fetched.next_due is not None
            assert 0 < fetched.next_due <= 0.3
            (again,) = (await fetch_when_due(backend)).entries
            assert time.monotonic() - settled >= 0.25
            assert (again.key, again.attempts, again.crashes) == (entry.key, 1, 0)

    async def test_next_due_is_that_of_the_groups_asked_for(self, backend: Backend) -> None:
        await backend.publish([*numbered(2), *numbered(1, "else")])
        async with serving(backend):
            assert (await backend.fetch([Want(TOPIC, AGENT, 0)])).next_due is None
            for entry, after in zip(await fetch(backend), (500, 50), strict=True):
                await backend.settle_many([done(entry, retry=Retry(after=after, attempts=1))])
            (entry,) = await fetch(backend, topic="else")
            await backend.settle_many([done(entry, retry=Retry(after=5, attempts=1))])
            due = (await backend.fetch([Want(TOPIC, AGENT, 0)])).next_due
            assert due is not None
            assert 40 < due <= 50

    async def test_a_retry_does_not_hold_up_new_entries(self, backend: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend):
            (entry,) = await fetch(backend, 1)
            await backend.settle_many([done(entry, retry=Retry(after=60, attempts=1))])
            assert numbers(await fetch(backend)) == [1]

    async def test_an_entry_of_a_former_try_is_not_ours(self, backend: Backend) -> None:
        await backend.publish(numbered(1))
        async with serving(backend):
            (entry,) = await fetch(backend)
            await backend.settle_many([done(entry, retry=Retry(after=60, attempts=1))])
            assert await backend.settle_many([done(entry, result=record("t0"))]) == [False]
            assert await backend.get_results("t0") == []

    async def test_released_entries_come_first_with_attempts_unchanged(self, backend: Backend) -> None:
        await backend.publish(numbered(3))
        async with serving(backend):
            (first,) = await fetch(backend, 1)
            await backend.settle_many([done(first, retry=Retry(after=0, attempts=1))])
            (first, second) = await fetch(backend, 2)
            await backend.release([second.key, first.key, EntryKey(TOPIC, AGENT, "7-7")])
            again = await fetch(backend)
            assert [(entry.attempts, entry.crashes) for entry in again] == [(1, 0), (0, 0), (0, 0)]
            assert numbers(again) == [0, 1, 2]

    async def test_serve_gives_back_what_it_holds(self, backend: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend):
            held = await fetch(backend)
        assert await backend.settle_many([done(held[0])]) == [False]
        async with serving(backend):
            again = await fetch(backend)
        assert numbers(again) == [0, 1]
        assert [(entry.attempts, entry.crashes) for entry in again] == [(0, 0), (0, 0)]


class DeadLetterContract:
    async def test_a_dead_letter_carries_all_the_facts(self, backend: Backend) -> None:
        (fate,) = await backend.publish([event("a", body=b'{"content": 1, "extra": "kept"}')])
        async with serving(backend):
            (entry,) = await fetch(backend)
            error = ErrorInfo(type="ValueError", message="no \0 \udc80 good", traceback="Traceback ...")
            dead = Dead(reason="handler-error", error=error, attempts=4)
            before = time.time()
            assert await backend.settle_many([done(entry, dead=dead)]) == [True]
        (letter,) = await backend.dead_letters(TOPIC, limit=10)
        assert (letter.topic, letter.agent, letter.original_id) == (TOPIC, AGENT, fate.entry_id)
        assert letter.original_stream == f"omni-stream:{TOPIC}"
        assert letter.failed_message == {"content": 1, "extra": "kept"}
        assert (letter.body, letter.body_encoding) == ('{"content": 1, "extra": "kept"}', "utf-8")
        assert letter.error.startswith("no ")
        assert letter.error.endswith(" good")
        assert (letter.reason, letter.error_type, letter.traceback) == ("handler-error", "ValueError", "Traceback ...")
        assert (letter.attempts, letter.retry_count) == (4, 3)
        assert before - 1 <= letter.failed_at <= time.time() + 1
        assert await length(backend) == 0

    async def test_a_body_that_is_no_text_is_kept(self, backend: Backend) -> None:
        await backend.publish([event("a", body=b"\xff\x00")])
        async with serving(backend):
            (entry,) = await fetch(backend)
            dead = Dead(reason="decode", error=ErrorInfo(type="E", message="m"), attempts=0)
            await backend.settle_many([done(entry, dead=dead)])
        (letter,) = await backend.dead_letters(TOPIC, limit=10)
        assert (letter.body, letter.body_encoding, letter.failed_message) == ("/wA=", "base64", None)
        assert letter.retry_count == 0

    async def test_the_newest_come_first_and_no_more_than_asked_for(self, backend: Backend) -> None:
        await backend.publish([*numbered(5), *numbered(1, "else")])
        async with serving(backend):
            entries = [*await fetch(backend), *await fetch(backend, topic="else")]
            for entry in entries:
                dead = Dead(reason="rejected", error=ErrorInfo(type="E", message=entry.key.entry_id), attempts=1)
                await backend.settle_many([done(entry, dead=dead)])
        letters = await backend.dead_letters(TOPIC, limit=3)
        assert [letter.original_id for letter in letters] == [entry.key.entry_id for entry in entries[4:1:-1]]
        assert len({letter.id for letter in letters}) == 3
        assert await backend.dead_letters("none", limit=3) == []


class ResultContract:
    async def settle_each(self, backend: Backend, *records: ResultRecord, ttl: float = 60.0) -> None:
        for result in records:
            topic = f"topic of {result.agent}"
            await backend.publish([event(result.task_id, topic=topic)])
            (entry,) = await fetch(backend, topic=topic, agent=result.agent)
            settlement = Settlement(key=entry.key, result=result, result_ttl=ttl)
            assert await backend.settle_many([settlement]) == [True]

    async def test_one_result_per_agent_oldest_first(self, backend: Backend) -> None:
        async with serving(backend):
            await self.settle_each(backend, record("a", agent="z", result=1))
            await self.settle_each(backend, record("a", agent="y", result=2), record("a", agent="z", result=3))
        results = await backend.get_results("a")
        assert sorted((result.agent, result.result) for result in results) == [("y", 2), ("z", 3)]
        assert [result.processed_at for result in results] == sorted(result.processed_at for result in results)
        assert await backend.get_results("b") == []

    async def test_a_failure_never_replaces_a_success(self, backend: Backend) -> None:
        async with serving(backend):
            await self.settle_each(backend, record("a", result=1), record("a", failed=True))
            assert [result.status for result in await backend.get_results("a")] == ["success"]
            await self.settle_each(backend, record("b", failed=True), record("b", result=2))
            assert [result.status for result in await backend.get_results("b")] == ["success"]

    async def test_an_expired_result_is_gone(self, backend: Backend) -> None:
        async with serving(backend):
            await self.settle_each(backend, record("a", result=1), ttl=0.0)
            assert await backend.get_results("a") == []
            await self.settle_each(backend, record("a", failed=True))
            assert [result.status for result in await backend.get_results("a")] == ["failed"]

    async def test_a_wait_for_results_ends_with_the_settlement(self, backend: Backend) -> None:
        found: list[ResultRecord] = []

        async def wait() -> None:
            found.extend(await backend.wait_results("a", 0))

        with trio.fail_after(LIMIT):
            async with serving(backend):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    await self.settle_each(backend, record("b"))
                    assert found == []
                    await self.settle_each(backend, record("a", result=5))
                assert [result.result for result in found] == [5]
                assert await backend.wait_results("a", 0) == found
                with trio.move_on_after(0.05) as scope:
                    await backend.wait_results("a", 1)
                assert scope.cancelled_caught


class WakeContract:
    async def test_a_wait_ends_with_a_publish_to_one_of_its_topics(self, backend: Backend) -> None:
        async with serving(backend):
            position = (await backend.fetch([Want(TOPIC, AGENT, 1), Want("else", AGENT, 1)])).position
            with trio.fail_after(LIMIT):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(backend.wait, [TOPIC, "else"], position)
                    await trio.testing.wait_all_tasks_blocked()
                    await backend.publish([event("a", topic="else")])

    async def test_no_change_is_lost_between_fetch_and_wait(self, backend: Backend) -> None:
        async with serving(backend):
            for number in range(20):
                position = (await backend.fetch([Want(TOPIC, AGENT, 100)])).position
                await backend.publish([event(str(number))])
                with trio.fail_after(LIMIT):
                    await backend.wait([TOPIC], position)

    async def test_a_release_and_a_retry_wake(self, backend: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend):
            fetched = await backend.fetch([Want(TOPIC, AGENT, 5)])
            first, second = fetched.entries
            with trio.fail_after(LIMIT):
                await backend.release([first.key])
                await backend.wait([TOPIC], fetched.position)
                position = (await backend.fetch([Want(TOPIC, AGENT, 5)])).position
                await backend.settle_many([done(second, retry=Retry(after=9, attempts=1))])
                await backend.wait([TOPIC], position)

    async def test_a_cancelled_wait_leaves_nothing_behind(self, backend: Backend) -> None:
        async with serving(backend):
            position = (await backend.fetch([Want(TOPIC, AGENT, 5)])).position
            for _ in range(3):
                with trio.move_on_after(0.03):
                    await backend.wait([TOPIC], position)
            await backend.publish(numbered(1))
            assert numbers(await fetch(backend)) == [0]


class InspectionContract:
    async def test_streams_counts_what_is_where(self, backend: Backend) -> None:
        await backend.publish([*numbered(6), event("x", topic="alone")])
        async with serving(backend):
            await backend.create_groups([(TOPIC, "idle")])
            a, b, c, _ = await fetch(backend, 4)
            dead = Dead(reason="rejected", error=ErrorInfo(type="E", message="m"), attempts=1)
            await backend.settle_many([done(a, dead=dead), done(b, retry=Retry(after=60, attempts=1))])
            await backend.release([c.key])
            alone, work = await backend.streams()
            assert (alone.topic, alone.length, alone.groups) == ("alone", 1, [])
            assert (work.topic, work.length) == (TOPIC, 6)
            idle, worker = work.groups
            assert (idle.agent, idle.waiting, idle.pending, idle.delayed, idle.dead) == ("idle", 6, 0, 0, 0)
            assert (worker.agent, worker.waiting, worker.pending, worker.delayed, worker.dead) == (AGENT, 3, 1, 1, 1)

    async def test_an_agent_keeps_the_time_of_its_first_registration(self, backend: Backend) -> None:
        first = AgentRecord(topic="b", name="x", callback="m:f", tools=("t",), config={"k": [1]}, created_at=5.0)
        await backend.save_agents([first, AgentRecord(topic="a", name="y")])
        await backend.save_agents([msgspec.structs.replace(first, description="new", created_at=9.0)])
        one, two = await backend.list_agents()
        assert (one.topic, one.name) == ("a", "y")
        assert abs(one.created_at - time.time()) < LIMIT
        assert two == msgspec.structs.replace(first, description="new")

    async def test_a_runtime_is_listed_while_it_serves(self, backend: Backend) -> None:
        with pytest.raises(BackendError):
            await backend.announce("http://127.0.0.1:1")
        async with serving(backend) as consumer:
            await backend.announce("http://127.0.0.1:1")
            (runtime,) = await backend.runtimes()
            assert (runtime.consumer, runtime.gateway) == (consumer, "http://127.0.0.1:1")
        assert await backend.runtimes() == []


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
                await backend.wait([TOPIC], (await backend.fetch([Want(TOPIC, AGENT, 1)])).position)

        async def wait() -> None:
            with pytest.raises(BackendClosed):
                await wait_on()
            ended.append("wait")

        async def wait_results() -> None:
            with pytest.raises(BackendClosed):
                await backend.wait_results("a", 0)
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


class BackendContract(
    PublishContract,
    DedupeContract,
    FetchContract,
    SettleContract,
    RetryContract,
    DeadLetterContract,
    ResultContract,
    WakeContract,
    InspectionContract,
    CallContract,
):
    """All that one backend promises by itself."""


class SharedContract:
    """What several backends over one store promise each other."""

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
                        nursery.start_soon(backend.wait, [TOPIC], position)
                        await other.publish([event(str(number))])

    async def test_a_result_elsewhere_wakes(self, backend: Backend, other: Backend) -> None:
        found: list[ResultRecord] = []

        async def wait() -> None:
            found.extend(await other.wait_results("a", 0))

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
