"""What every backend promises about retries, dead letters, results and what it tells of itself."""

from __future__ import annotations

import time

import msgspec
import pytest
import trio
import trio.testing

from omniactors.errors import BackendError
from omniactors.streams.backend import AgentRecord, Backend, Entry, Want
from omniactors.streams.settlement import Dead, EntryKey, ErrorInfo, ResultRecord, Retry, Settlement
from tests.streams.contract_kit import (
    AGENT,
    LIMIT,
    TOPIC,
    dead,
    done,
    event,
    fetch,
    fetch_when_due,
    length,
    numbered,
    numbers,
    record,
    serving,
    settle_all,
)


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

    @pytest.mark.parametrize("count", [2, 9, 40])
    async def test_a_delayed_retry_keeps_no_entry_but_its_own_however_many_agents_read(
        self, backend: Backend, count: int
    ) -> None:
        agents = [f"a{number}" for number in range(count)]
        await backend.create_groups([(TOPIC, agent) for agent in agents])
        await backend.publish(numbered(1))
        async with serving(backend):
            (first,) = await fetch(backend, agent=agents[0])
            await settle_all(backend, [first], retry=Retry(after=600, attempts=1))
            for start in (1, 129, 257):
                await backend.publish(numbered(128, start=start))
                for agent in agents:
                    await settle_all(backend, await fetch(backend, 200, agent=agent))
            assert await length(backend) == 1

    @pytest.mark.parametrize("count", [2, 12])
    async def test_an_entry_stays_until_the_last_agent_has_finished_it(self, backend: Backend, count: int) -> None:
        agents = [f"a{number}" for number in range(count)]
        await backend.create_groups([(TOPIC, agent) for agent in agents])
        await backend.publish(numbered(100))
        async with serving(backend):
            held = [await fetch(backend, agent=agent) for agent in agents]
            left = []
            for number, entries in enumerate(held):
                await settle_all(backend, [entry for entry in entries if number == 0 or numbers([entry])[0] % 10])
                left.append(await length(backend))
            assert left == [100] * (count - 1) + [10]
            for entries in held[1:]:
                await settle_all(backend, [entry for entry in entries if not numbers([entry])[0] % 10])
            assert await length(backend) == 0

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


class FencingContract:
    async def test_what_an_earlier_consumer_was_given_is_not_ours(self, backend: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend) as first:
            old = await fetch(backend)
            assert {entry.key.consumer for entry in old} == {first}
        async with serving(backend) as second:
            new = await fetch(backend)
            assert numbers(new) == [0, 1]
            assert {entry.key.consumer for entry in new} == {second}
            assert await backend.settle_many([done(old[0], result=record("t0"))]) == [False]
            assert await backend.claim([(old[0].key, "key")]) == [False]
            await backend.release([entry.key for entry in old])
            assert await fetch(backend) == []
            assert await backend.get_results("t0") == []
            assert await backend.settle_many([done(entry) for entry in new]) == [True, True]

    async def test_a_key_without_a_consumer_is_nobodys(self, backend: Backend) -> None:
        await backend.publish(numbered(1))
        async with serving(backend):
            (entry,) = await fetch(backend)
            nobodys = msgspec.structs.replace(entry.key, consumer="")
            assert await backend.settle_many([Settlement(key=nobodys)]) == [False]
            await backend.release([nobodys])
            assert await backend.settle_many([done(entry)]) == [True]


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
        assert letter.error.startswith("ValueError: no ")
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
            found.extend(await backend.wait_results("a", ()))

        with trio.fail_after(LIMIT):
            async with serving(backend):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    await self.settle_each(backend, record("b"))
                    assert found == []
                    await self.settle_each(backend, record("a", result=5))
                assert [result.result for result in found] == [5]
                assert await backend.wait_results("a", ()) == found
                with trio.move_on_after(0.05) as scope:
                    await backend.wait_results("a", found)
                assert scope.cancelled_caught

    async def test_a_wait_for_results_is_told_of_one_that_takes_the_place_of_another(self, backend: Backend) -> None:
        """As many as before, or fewer, and still news: one has expired meanwhile, or a failure became a success."""
        found: list[ResultRecord] = []

        async def wait(known: list[ResultRecord]) -> None:
            found.extend(await backend.wait_results("a", known))

        with trio.fail_after(LIMIT):
            async with serving(backend):
                await self.settle_each(backend, record("a", agent="other"), ttl=0.05)
                before = await backend.get_results("a")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait, before)
                    await trio.sleep(0.1)  # the store has a clock of its own
                    await self.settle_each(backend, record("a", failed=True))
                assert [(one.agent, one.status) for one in found] == [(AGENT, "failed")]
                before = found.copy()
                found.clear()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait, before)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    await self.settle_each(backend, record("a", result=1))
                assert [(one.agent, one.status) for one in found] == [(AGENT, "success")]

    async def test_deliveries_count_hand_outs_and_attempts_tries_with_an_outcome(self, backend: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend):

            async def counts(number: int) -> list[Entry]:
                entries = (await fetch_when_due(backend)).entries
                assert len(entries) == number
                seen.append([(entry.deliveries, entry.attempts) for entry in entries])
                return entries

            seen: list[list[tuple[int, int]]] = []
            first, second = await counts(2)
            await backend.release([first.key])
            (first,) = await counts(1)
            await settle_all(backend, [first], retry=Retry(after=0.0, attempts=1))
            (first,) = await counts(1)
            await backend.release([first.key, second.key])
            await counts(2)
            assert seen == [[(1, 0), (1, 0)], [(2, 0)], [(3, 1)], [(4, 1), (2, 0)]]
        async with serving(backend):
            assert [(entry.deliveries, entry.attempts) for entry in await fetch(backend)] == [(5, 1), (3, 0)]

    async def test_of_two_ends_of_one_entry_the_first_counts(self, backend: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend):
            one, two = await fetch(backend, 2)
            again = done(one, retry=Retry(after=60, attempts=1))
            buried = done(two, dead=dead(), result=record("two", failed=True))
            settlements = [again, done(one, result=record("one")), buried, done(two, result=record("two"))]
            assert await backend.settle_many(settlements) == [True, False, True, False]
            assert await backend.get_results("one") == []
            assert [result.status for result in await backend.get_results("two")] == ["failed"]

    async def test_of_two_results_of_one_task_in_one_write_the_last_stays(self, backend: Backend) -> None:
        await backend.publish(numbered(2))
        async with serving(backend):
            one, two = await fetch(backend, 2)
            first = done(one, result=record("a", result="first"), publications=(event("x", topic="next"),))
            last = done(two, result=record("a", result="last"))
            assert await backend.settle_many([first, last]) == [True, True]
            assert [result.result for result in await backend.get_results("a")] == ["last"]


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
            assert runtime.gateway_problem is None
            await backend.announce(None, "it broke: \ud800")
            (runtime,) = await backend.runtimes()
            assert runtime.gateway is None
            assert (runtime.gateway_problem or "").startswith("it broke")
            await backend.announce("http://[::1]:1")
            (runtime,) = await backend.runtimes()
            assert (runtime.gateway, runtime.gateway_problem) == ("http://[::1]:1", None)
        assert await backend.runtimes() == []
