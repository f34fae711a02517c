"""What is Redis' own: leases and their loss, lost replies, flushes, other programs on the same streams."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import redis
import trio

from omniactors.errors import BackendError, BackendRefused
from omniactors.streams.backend import AgentRecord, Entry, Want
from omniactors.streams.redis.backend import RedisBackend
from omniactors.streams.settlement import Retry
from tests.redis_server import RedisServer, fresh_prefix
from tests.streams.contract_kit import (
    AGENT,
    LIMIT,
    TOPIC,
    done,
    event,
    eventually,
    fetch,
    fetch_ordered,
    group,
    length,
    next_fetch,
    numbered,
    numbers,
    record,
    serving,
    settle_all,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

LEASE = 0.6
STREAM = f"omni-stream:{TOPIC}"
GROUP = f"group:{TOPIC}:{AGENT}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def raw(server: RedisServer) -> Iterator[Any]:
    """Another program's connection."""
    with redis.Redis.from_url(server.url, protocol=2) as client:
        client.flushall()
        yield client


@pytest.fixture
async def backend(server: RedisServer, raw: Any) -> AsyncIterator[RedisBackend]:
    backend = RedisBackend(server.url, lease=LEASE)
    with trio.fail_after(6 * LIMIT):
        yield backend
    await backend.close()


@asynccontextmanager
async def another(server: RedisServer) -> AsyncIterator[RedisBackend]:
    backend = RedisBackend(server.url, lease=LEASE)
    yield backend
    await backend.close()


def vanish(raw: Any, consumer: str) -> None:
    """Let the lease of a consumer end as if its process had been killed, and never come back."""
    raw.delete(f"omni-lease:{consumer}")


class TestLease:
    async def test_a_lease_lives_as_long_as_its_consumer(self, backend: RedisBackend, raw: Any) -> None:
        async with serving(backend) as consumer:
            for _ in range(4):
                await trio.sleep(LEASE / 2)
                assert raw.pttl(f"omni-lease:{consumer}") > 0
        assert raw.keys("omni-lease:*") == []
        assert raw.hlen("omni-consumers") == 0

    async def test_the_work_of_a_killed_process_is_taken_over_within_the_lease(
        self, server: RedisServer, backend: RedisBackend, raw: Any
    ) -> None:
        """The killed one is a consumer that nobody renews."""
        raw.hset(
            "omni-consumers",
            "ghost",
            msgspec.json.encode({"consumer": "ghost", "pid": 1, "host": "h", "started_at": 1.0}),
        )
        raw.set("omni-lease:ghost", "1", px=round(LEASE * 1000))
        await backend.publish(numbered(2500))
        await backend.create_groups([(TOPIC, AGENT)])
        taken = raw.xreadgroup(GROUP, "ghost", {STREAM: ">"}, count=2500)
        assert len(taken[0][1]) == 2500
        async with serving(backend):
            found: list[int] = []
            with trio.fail_after(LEASE + 1):
                while len(found) < 2500:
                    entries = (await next_fetch(backend, Want(TOPIC, AGENT, 1000))).entries
                    found += numbers(entries)
                    assert {(entry.attempts, entry.crashes) for entry in entries} == {(0, 1)}
            assert found == list(range(2500))
        assert raw.hexists("omni-consumers", "ghost") is False
        assert {info["name"] for info in raw.xinfo_consumers(STREAM, GROUP)} == {b"omni:waiting"}

    async def test_a_fresh_process_judges_nobody_before_its_own_lease_is_steady(
        self, server: RedisServer, raw: Any
    ) -> None:
        """After an outage all leases have ended, and the living renew theirs one after another."""
        backend = RedisBackend(server.url, lease=3.0)
        ghost = {"consumer": "ghost", "pid": 1, "host": "h", "started_at": 1.0}
        raw.hset("omni-consumers", "ghost", msgspec.json.encode(ghost))
        async with serving(backend):
            await trio.sleep(1.5)
            assert raw.hexists("omni-consumers", "ghost")
            await eventually(lambda: _is_gone(raw, "ghost"))
        await backend.close()

    async def test_a_member_that_cannot_be_read_keeps_nobody_from_the_others(
        self, backend: RedisBackend, raw: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        ghost = {"consumer": "ghost", "pid": 1, "host": "h", "started_at": 1.0}
        raw.hset("omni-consumers", "ghost", msgspec.json.encode(ghost))
        raw.hset("omni-consumers", "broken", b"\xffno record")
        raw.sadd("omni-groups", "no group", b"\xff\xfe", "group:taken:worker")
        raw.set("omni-stream:taken", "by another program")
        raw.set("omni-later:taken", "as well")
        raw.zadd("omni-scheduled", {"taken": 1.0})
        await backend.save_agents([AgentRecord(topic=TOPIC, name=AGENT)])
        raw.hset("omni-agents", "broken:topic", b"{]")
        await backend.create_groups([(TOPIC, AGENT)])
        await backend.publish([*numbered(2), msgspec.structs.replace(event("late"), delay=0.2)])
        taken = raw.xreadgroup(GROUP, "ghost", {STREAM: ">"}, count=2)
        assert len(taken[0][1]) == 2
        async with serving(backend) as consumer:
            await eventually(lambda: _is_gone(raw, "ghost"))
            await eventually(lambda: _is_gone(raw, "broken"))
            found: list[Entry] = []
            while len(found) < 3:
                found += (await next_fetch(backend, Want(TOPIC, AGENT, 9))).entries
            raw.hset("omni-consumers", "other", b"{]")
            raw.set("omni-lease:other", "1")
            assert [runtime.consumer for runtime in await backend.runtimes()] == [consumer]
            assert [agent.name for agent in await backend.list_agents()] == [AGENT]
            await trio.sleep(LEASE)
        assert caplog.text.count("housekeeping leaves no group out") == 1

    async def test_a_lost_lease_makes_a_new_consumer_and_late_settlements_void(
        self, backend: RedisBackend, raw: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        await backend.publish(numbered(2))
        async with serving(backend) as consumer:
            held = await fetch(backend)
            # Another one took everything over while this process was stopped.
            raw.hdel("omni-consumers", consumer)
            raw.xclaim(STREAM, GROUP, "omni:waiting", 0, [entry.key.entry_id for entry in held])
            for entry in held:
                ms, seq = entry.key.entry_id.split("-")
                raw.zadd(f"omni-waiting:{GROUP}", {f"{ms:>014}-{seq:>010}": 0})
            again = (await next_fetch(backend, Want(TOPIC, AGENT, 9))).entries
            assert numbers(again) == [0, 1]
            assert again[0].key.consumer != consumer
            assert await backend.settle_many([done(entry) for entry in held]) == [False, False]
            assert await backend.settle_many([done(entry) for entry in again]) == [True, True]
            (runtime,) = await backend.runtimes()
            assert runtime.consumer == again[0].key.consumer
        assert "registered no more" in caplog.text

    async def test_a_consumer_whose_loop_is_blocked_keeps_its_lease(self, backend: RedisBackend, raw: Any) -> None:
        async with serving(backend) as consumer:
            time.sleep(3 * LEASE)  # noqa: ASYNC251 -- as above
            assert raw.pttl(f"omni-lease:{consumer}") > 0


class TestLostReplies:
    async def test_what_a_lost_fetch_took_comes_with_the_next_one(self, backend: RedisBackend, raw: Any) -> None:
        await backend.publish(numbered(3))
        async with serving(backend) as consumer:
            (held,) = await fetch(backend, 1)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(backend.fetch, [Want(TOPIC, AGENT, 9)])
                    await eventually(lambda: _pending(raw, consumer, 3))
                    scope.cancel()
            entries = await fetch(backend)
            assert numbers([held, *entries]) == [0, 1, 2] or numbers(entries) == []
            assert await backend.settle_many([done(entry) for entry in [held, *entries]]) == [True] * (1 + len(entries))

    async def test_connections_killed_again_and_again_lose_nothing(self, backend: RedisBackend, raw: Any) -> None:
        published: list[str] = []
        settled: list[int] = []

        async def publish() -> None:
            for number in range(300):
                await backend.publish([event(f"t{number}", body=b'{"n":%d}' % number)])
                published.append(f"t{number}")

        async def work() -> None:
            while len(settled) < 300:
                try:
                    fetched = await backend.fetch([Want(TOPIC, AGENT, 7)])
                except BackendError:
                    continue
                if not fetched.entries:
                    await backend.wait({TOPIC: fetched.position})
                flags = await backend.settle_many([done(entry) for entry in fetched.entries])
                settled.extend(number for number, flag in zip(numbers(fetched.entries), flags, strict=True) if flag)

        async with serving(backend), trio.open_nursery() as nursery:
            nursery.start_soon(kill_connections, raw)
            async with trio.open_nursery() as users:
                users.start_soon(publish)
                users.start_soon(work)
            nursery.cancel_scope.cancel()
        assert sorted(settled) == list(range(300))
        assert await length(backend) == 0

    async def test_scripts_may_be_flushed(self, backend: RedisBackend, raw: Any) -> None:
        async with serving(backend):
            for number in range(3):
                raw.script_flush()
                await backend.publish([event(str(number))])
                assert len(await fetch(backend)) == 1


async def kill_connections(raw: Any) -> None:
    """All but our own, again and again."""
    while True:
        await trio.sleep(0.15)
        raw.client_kill_filter(skipme=True, _type="normal")


async def _pending(raw: Any, consumer: str, count: int) -> bool:
    return len(raw.xpending_range(STREAM, GROUP, "-", "+", 100, consumername=consumer)) >= count


class TestFlush:
    async def test_all_goes_on_after_a_flush(
        self, backend: RedisBackend, raw: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serving(backend):
            await backend.save_agents([AgentRecord(topic=TOPIC, name=AGENT)])
            await backend.publish(numbered(2))
            (held, _) = await fetch(backend)
            raw.flushall()
            assert await backend.settle_many([done(held, result=record("t0"))]) == [False]
            await backend.publish(numbered(3))
            entries = (await next_fetch(backend, Want(TOPIC, AGENT, 9))).entries
            assert numbers(entries) == [0, 1, 2]
            assert await backend.settle_many([done(entry) for entry in entries]) == [True] * 3
            assert [agent.name for agent in await backend.list_agents()] == [AGENT]
            await eventually(lambda: _has_lease(raw))
        assert "registered no more" in caplog.text
        assert "made anew" in caplog.text

    async def test_a_destroyed_group_delivers_what_is_left(
        self, backend: RedisBackend, raw: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serving(backend):
            await backend.publish(numbered(3))
            (held,) = await fetch(backend, 1)
            raw.xgroup_destroy(STREAM, GROUP)
            assert numbers(await fetch(backend)) == [0, 1, 2]
            assert await backend.settle_many([done(held)]) == [True]
        assert "made anew" in caplog.text


async def _has_lease(raw: Any) -> bool:
    return len(raw.keys("omni-lease:*")) == 1


class TestOtherPrograms:
    async def test_what_others_trim_is_told(
        self, backend: RedisBackend, raw: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        await backend.publish(numbered(4))
        async with serving(backend):
            held = await fetch(backend, 2)
            await backend.release([entry.key for entry in held])
            raw.xtrim(STREAM, maxlen=1, approximate=False)
            assert numbers(await fetch(backend)) == [3]
            assert (await group(backend)).pending == 1
        assert "trimmed away" in caplog.text

    async def test_entries_that_every_foreign_group_finished_are_trimmed(self, backend: RedisBackend, raw: Any) -> None:
        await backend.create_groups([(TOPIC, AGENT), (TOPIC, "foreign")])
        await backend.publish(numbered(5))
        async with serving(backend):
            for entry in await fetch(backend):
                await backend.settle_many([done(entry)])
            assert await length(backend) == 5
            taken = raw.xreadgroup(f"group:{TOPIC}:foreign", "them", {STREAM: ">"}, count=4)
            raw.xack(STREAM, f"group:{TOPIC}:foreign", *[entry[0] for entry in taken[0][1]])

            async def is_trimmed() -> bool:
                return await length(backend) == 1

            await eventually(is_trimmed)

    async def test_an_entry_without_data_reaches_the_agent_as_it_is(self, backend: RedisBackend, raw: Any) -> None:
        raw.xadd(STREAM, {"what": "ever"})
        async with serving(backend):
            (entry,) = await fetch(backend)
        assert msgspec.json.decode(entry.body) == {"what": "ever"}


class TestWaiting:
    async def test_thousands_of_bells_are_caught_up_with(self, backend: RedisBackend, raw: Any) -> None:
        async with serving(backend):
            fetched = await backend.fetch([Want(TOPIC, AGENT, 9), Want("else", AGENT, 9)])
            for _ in range(3000):
                raw.xadd("omni-ctl", {"t": "else"}, maxlen=1000)
            changed = await backend.wait({TOPIC: fetched.position, "else": fetched.position})
            assert "else" in changed

    async def test_one_connection_listens_for_all_results(self, backend: RedisBackend, raw: Any) -> None:
        found: dict[str, object] = {}

        async def wait(task_id: str) -> None:
            (result,) = await backend.wait_results(task_id, ())
            found[task_id] = result.result

        async with serving(backend):
            await backend.publish([event(str(number)) for number in range(50)])
            entries = await fetch(backend)
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(wait, str(number))
                await trio.testing.wait_all_tasks_blocked(0.1)
                assert len(raw.client_list()) <= 5
                for number, entry in enumerate(entries):
                    await backend.settle_many([done(entry, result=record(str(number), result=number))])
        assert found == {str(number): number for number in range(50)}
        assert raw.pubsub_channels() == []

    async def test_a_wait_for_results_survives_its_connection(self, backend: RedisBackend, raw: Any) -> None:
        async with serving(backend):
            await backend.publish([event("a")])
            (entry,) = await fetch(backend)
            found = []

            async def wait() -> None:
                found.extend(await backend.wait_results("a", ()))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await eventually(lambda: _is_heard(raw))
                for client in raw.client_list(_type="pubsub"):
                    raw.client_kill_filter(_id=client["id"])
                await backend.settle_many([done(entry, result=record("a", result=1))])
        assert [result.result for result in found] == [1]


async def _is_heard(raw: Any) -> bool:
    return raw.pubsub_numpat() == 0 and bool(raw.pubsub_channels())


class TestOrder:
    async def test_keys_of_a_killed_consumer_go_on_in_order(
        self, server: RedisServer, backend: RedisBackend, raw: Any
    ) -> None:
        await backend.publish(numbered(6))
        async with another(server) as other, serving(backend), trio.open_nursery() as nursery:
            killed = await nursery.start(other.serve)
            theirs = await fetch_ordered(other, 2)
            assert await other.claim([(entry.key, "k") for entry in theirs]) == [True, True]
            mine = await fetch_ordered(backend, 2)
            assert await backend.claim([(entry.key, "k") for entry in mine]) == [False, False]
            last = await fetch_ordered(backend, 2)
            # Killed before our claim: what it held comes first, what we just fetched goes back behind it.
            await other._here().consumer.lease.end(is_left=True)  # noqa: SLF001 -- it is as if killed
            vanish(raw, killed)
            await eventually(lambda: _is_gone(raw, killed))
            assert await backend.claim([(entry.key, "k") for entry in last]) == [False, False]
            entries = (await next_fetch(backend, Want(TOPIC, AGENT, 9, is_ordered=True))).entries
            assert numbers(entries) == [0, 1, 2, 3, 4, 5]
            assert [entry.crashes for entry in entries] == [1, 1, 0, 0, 0, 0]
            assert await backend.claim([(entry.key, "k") for entry in entries]) == [True] * 6
            nursery.cancel_scope.cancel()


async def _is_gone(raw: Any, consumer: str) -> bool:
    return not raw.hexists("omni-consumers", consumer)


async def test_a_prefix_stands_before_every_key(server: RedisServer, raw: Any, tmp_path: Path) -> None:
    prefix = "{" + fresh_prefix() + "}:"
    backend = RedisBackend(server.url, prefix=prefix, lease=LEASE)
    async with serving(backend):
        await backend.publish([event("a", dedupe=True), msgspec.structs.replace(event("b"), delay=9)])
        (entry,) = await fetch_ordered(backend)
        await backend.claim([(entry.key, "k")])
        await backend.settle_many([done(entry, result=record("a"))])
        await backend.pause("x")
        await backend.save_config("k", 1)
        names = raw.keys("*")
        assert names
        assert [name for name in names if not name.decode().startswith(prefix)] == []
    await backend.close()


class TestStrangers:
    async def test_what_a_program_that_is_gone_held_is_taken_over_in_time(
        self, backend: RedisBackend, raw: Any
    ) -> None:
        await backend.create_groups([(TOPIC, AGENT)])
        await backend.publish(numbered(3))
        taken = raw.xreadgroup(GROUP, "consumer:them-1", {STREAM: ">"}, count=2)
        old, fresh = (entry[0] for entry in taken[0][1])
        raw.xclaim(STREAM, GROUP, "consumer:them-1", 0, [old], idle=3_700_000, justid=True)
        async with serving(backend):
            found: dict[str, int] = {}
            while len(found) < 2:
                entries = (await next_fetch(backend, Want(TOPIC, AGENT, 9))).entries
                found |= {entry.key.entry_id: entry.crashes for entry in entries}
            assert found.pop(old.decode()) == 1
            assert list(found.values()) == [0]
            assert (
                raw.xpending_range(STREAM, GROUP, "-", "+", 9, consumername="consumer:them-1")[0]["message_id"] == fresh
            )

    async def test_streams_that_only_strangers_read_are_trimmed_by_their_publishers(
        self, backend: RedisBackend, raw: Any
    ) -> None:
        raw.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        for number in range(300):
            await backend.publish([event(str(number))])
            taken = raw.xreadgroup(GROUP, "consumer:them-1", {STREAM: ">"})
            raw.xack(STREAM, GROUP, taken[0][1][0][0])
        assert raw.xlen(STREAM) < 100

    async def test_a_missing_permission_is_told(self, server: RedisServer, raw: Any) -> None:
        raw.acl_setuser(
            "weak", enabled=True, passwords=["+s3cr3t"], keys=["*"], categories=["+@all"], commands=["-xpending"]
        )
        backend = RedisBackend(server.url.replace("redis://", "redis://weak:s3cr3t@"), lease=LEASE)
        async with serving(backend):
            await backend.publish(numbered(1))
            (error,) = await backend.settle_many([done(entry) for entry in await fetch(backend)])
            assert isinstance(error, BackendError)
            assert not isinstance(error, BackendRefused), "nobody knows whether the event is at fault"
            assert "s3cr3t" not in str(error)
            raw.acl_setuser("weak", commands=["+xpending"])
        await backend.close()


class TestLookingAround:
    async def test_a_backup_is_the_server_s_own_business_and_that_is_said(
        self, backend: RedisBackend, tmp_path: Path
    ) -> None:
        with pytest.raises(BackendRefused, match="redis-cli --rdb"):
            await backend.backup(tmp_path / "copy.db")
        with pytest.raises(BackendRefused, match="dbfilename"):
            await backend.restore(tmp_path / "copy.db")

    async def test_what_was_trimmed_unread_waits_no_more(self, backend: RedisBackend, raw: Any) -> None:
        await backend.create_groups([(TOPIC, AGENT)])
        await backend.publish(numbered(3))
        raw.xtrim(STREAM, maxlen=0, approximate=False)
        assert (await group(backend)).waiting == 0

    async def test_an_agent_of_another_program_may_have_a_colon_in_its_name(
        self, backend: RedisBackend, raw: Any
    ) -> None:
        raw.xgroup_create(STREAM, f"group:{TOPIC}:a:b", "0", mkstream=True)
        raw.xadd(f"omni-dlq:group:{TOPIC}:a:b", {"data": '{"topic": "work", "failed_message": {"x": 1}}'})
        assert (await group(backend, "a:b")).dead == 1
        (letter,) = await backend.dead_letters(TOPIC, limit=9)
        assert (letter.agent, letter.failed_message) == ("a:b", {"x": 1})


class TestReviewed:
    """What a review found; each was wrong once."""

    async def test_a_repeated_release_leaves_a_later_delivery_alone(self, backend: RedisBackend, raw: Any) -> None:
        await backend.publish(numbered(1))
        async with serving(backend) as consumer:
            (entry,) = await fetch(backend)
            calls = backend._here().calls  # noqa: SLF001 -- the repeat is the transport's, so it is sent here by hand
            ticket = calls.open()
            arguments = [consumer, [[TOPIC, AGENT, [entry.key.entry_id]]]]
            await calls.numbered(ticket, "release", arguments)
            (again,) = await fetch(backend)
            await calls.numbered(ticket, "release", arguments)
            assert await fetch(backend) == []
            assert await backend.settle_many([done(again)]) == [True]

    async def test_a_fetch_that_the_network_held_up_takes_nothing(self, backend: RedisBackend, raw: Any) -> None:
        await backend.publish(numbered(2))
        async with serving(backend) as consumer:
            await fetch(backend, 1)
            calls, number = backend._here().calls, backend._fetches + 1  # noqa: SLF001 -- as above
            backend._fetches, backend._here().is_unsure = number, True  # noqa: SLF001
            assert numbers(await fetch(backend, 0)) == []
            with pytest.raises(BackendError, match="over"):
                await calls.script("fetch", [calls.client, number, consumer, 9000, [[TOPIC, AGENT, 9, -1, 0]]])
            assert numbers(await fetch(backend)) == [1]

    async def test_a_settlement_that_the_server_refuses_holds_up_no_other(
        self, backend: RedisBackend, raw: Any
    ) -> None:
        raw.set("omni-stream:taken", "by another program")
        await backend.publish(numbered(3))
        async with serving(backend):
            one, two, three = await fetch(backend)
            bad = done(two, result=record("t1"), publications=(event("x", topic="taken"),))
            also = done(three, publications=(event("y", topic="next"),))
            first, refused, last = await backend.settle_many([done(one), bad, also])
            assert (first, type(refused), last) == (True, BackendRefused, True)
            assert (await length(backend, "next"), await length(backend)) == (1, 1)

    async def test_a_key_that_holds_something_else_stops_only_its_own_topic(
        self, backend: RedisBackend, raw: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        raw.set("omni-stream:taken", "by another program")
        failures = []

        async def publish_bad() -> None:
            try:
                await backend.publish([event("x"), event("x", topic="taken")])
            except BackendError as error:
                failures.append(error)

        async with serving(backend):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish_bad)
                for number in range(3):
                    nursery.start_soon(backend.publish, numbered(1, start=number))
            assert len(failures) == 1
            fetched = await backend.fetch([Want("taken", AGENT, 9), Want(TOPIC, AGENT, 9)])
            assert sorted(numbers(fetched.entries)) == [0, 1, 2]
            with trio.move_on_after(0.1) as scope:
                await backend.wait({"taken": fetched.position, TOPIC: fetched.position})
            assert scope.cancelled_caught, "it would be asked again and again"
            assert {stream.topic for stream in await backend.streams()} == {TOPIC}
        assert "holds no stream" in caplog.text

    @pytest.mark.parametrize("delay", [1e20, 1e308])
    async def test_times_beyond_all_measure_are_far_away(self, backend: RedisBackend, delay: float) -> None:
        (fate,) = await backend.publish([msgspec.structs.replace(event("a"), delay=delay)])
        assert fate.entry_id == ""
        await backend.publish(numbered(1))
        async with serving(backend):
            (entry,) = await fetch(backend)
            assert await backend.settle_many([done(entry, retry=Retry(after=delay, attempts=1))]) == [True]

    async def test_big_settlements_go_in_parts(self, backend: RedisBackend) -> None:
        await backend.publish(numbered(8))
        async with serving(backend):
            entries = await fetch(backend)
            settlements = [
                done(entry, result=record(f"t{number}", result="x" * 3_000_000)) for number, entry in enumerate(entries)
            ]
            assert await backend.settle_many(settlements) == [True] * 8
            assert [len((await backend.get_results(f"t{number}"))[0].result) for number in range(8)] == [3_000_000] * 8

    async def test_what_was_taken_while_being_taken_over_from_comes_back(
        self, server: RedisServer, backend: RedisBackend, raw: Any
    ) -> None:
        await backend.create_groups([(TOPIC, AGENT)])
        async with serving(backend) as lost:
            await fetch(backend)
            await backend.publish(numbered(2))
            await fetch(backend, 1)
            raw.hdel("omni-consumers", lost)
            entries = (await next_fetch(backend, Want(TOPIC, AGENT, 9))).entries
            while len(entries) < 2:
                entries += (await next_fetch(backend, Want(TOPIC, AGENT, 9))).entries
            assert sorted(numbers(entries)) == [0, 1]

    async def test_a_key_whose_entry_others_acknowledged_is_free(self, server: RedisServer, raw: Any) -> None:
        async with another(server) as one, another(server) as two, serving(two):
            async with serving(one):
                await one.publish(numbered(3))
                (mine,) = await fetch_ordered(one, 1)
                assert await one.claim([(mine.key, "k")]) == [True]
                raw.xack(STREAM, GROUP, mine.key.entry_id)
            entries = (await next_fetch(two, Want(TOPIC, AGENT, 9, is_ordered=True))).entries
            assert await two.claim([(entry.key, "k") for entry in entries]) == [True] * len(entries)

    async def test_many_groups_do_not_make_settling_slow(self, backend: RedisBackend) -> None:
        agents = [f"agent-{number}" for number in range(40)]
        await backend.create_groups([(TOPIC, agent) for agent in agents])
        await backend.publish(numbered(50))
        async with serving(backend):
            for agent in agents:
                await settle_all(backend, await fetch(backend, agent=agent))

            async def is_trimmed() -> bool:
                return await length(backend) == 0

            await eventually(is_trimmed)


class TestLonePublish:
    """One publication that is only appended goes to a script of its own, which keeps the promises of the other."""

    async def append(self, backend: RedisBackend, number: int, limit: str = "") -> Any:
        calls = backend._here().calls  # noqa: SLF001 -- the repeat is the transport's, so it is sent here by hand
        names = (f"omni-calls:{calls.client}", 7, number, STREAM, f"omni-later:{TOPIC}")
        return await calls.words("append", *names, limit, 0, b"{}")

    async def test_it_happens_once_however_often_it_is_sent(self, backend: RedisBackend, raw: Any) -> None:
        first = await self.append(backend, 5)
        assert await self.append(backend, 5) == first
        assert raw.xlen(STREAM) == 1
        assert await self.append(backend, 6) != first
        assert raw.xlen(STREAM) == 2
        with pytest.raises(BackendError, match="over"):
            await self.append(backend, 5)
        assert raw.xlen(STREAM) == 2

    async def test_what_it_noted_is_understood_by_the_other_scripts_and_the_other_way_round(
        self, backend: RedisBackend, raw: Any
    ) -> None:
        await self.append(backend, 5)
        calls = backend._here().calls  # noqa: SLF001 -- as above
        arguments = [-1, 1000, [[TOPIC, 2]]]
        reply = await calls.numbered((7, 8), "publish", arguments, [b"{}", b"{}"])
        assert await calls.numbered((7, 8), "publish", arguments, [b"{}", b"{}"]) == reply
        assert raw.xlen(STREAM) == 3
        with pytest.raises(BackendError, match="over"):
            await self.append(backend, 6)
        await self.append(backend, 9)
        with pytest.raises(BackendError, match="over"):
            await calls.numbered((7, 8), "publish", arguments, [b"{}", b"{}"])
        assert raw.xlen(STREAM) == 4

    async def test_where_there_may_be_no_room_it_leaves_the_judgement_to_the_other(
        self, backend: RedisBackend, raw: Any
    ) -> None:
        await self.append(backend, 1)
        assert await self.append(backend, 2, limit="1") is None
        assert raw.xlen(STREAM) == 1
        assert await self.append(backend, 2, limit="2") is not None

    async def test_its_notes_expire(self, backend: RedisBackend, raw: Any) -> None:
        await backend.publish(numbered(1))
        (key,) = [key for key in raw.keys("omni-calls:*") if b"omni-calls:" in key]
        assert raw.pttl(key) > 86_000_000

    async def test_every_so_often_a_publisher_trims_what_all_have_finished(
        self, backend: RedisBackend, raw: Any
    ) -> None:
        raw.xgroup_create(STREAM, "another", "0", mkstream=True)
        for number in range(300):
            await backend.publish(numbered(1, start=number))
            raw.xreadgroup("another", "c", {STREAM: ">"}, noack=True)
        assert raw.xlen(STREAM) < 100

    async def test_a_packet_held_up_between_both_scripts_is_the_publish_itself(
        self, backend: RedisBackend, raw: Any
    ) -> None:
        assert await self.append(backend, 3, limit="0") is None
        late = await self.append(backend, 3)
        calls = backend._here().calls  # noqa: SLF001 -- as above
        assert await calls.numbered((7, 3), "publish", [-1, 1000, [[TOPIC, 1]]], [b"{}"]) == [late]
        assert raw.xlen(STREAM) == 1

    async def test_what_was_refused_is_not_appended_by_a_packet_that_comes_when_there_is_room(
        self, backend: RedisBackend, raw: Any
    ) -> None:
        calls = backend._here().calls  # noqa: SLF001 -- as above
        await self.append(backend, 1)
        full = await calls.numbered((7, 3), "publish", [1, 1000, [[TOPIC, 1]]], [b"{}"])
        assert full[0] == b"full"
        raw.xtrim(STREAM, maxlen=0, approximate=False)
        await self.append(backend, 3)
        assert await calls.numbered((7, 3), "publish", [1, 1000, [[TOPIC, 1]]], [b"{}"]) == full
        assert raw.xlen(STREAM) == 0


class TestPublishTogether:
    """Plain publications in a row are counted, others are named; each gets its own fate."""

    async def test_what_cannot_be_delayed_is_refused_before_anything_is_written(
        self, backend: RedisBackend, raw: Any
    ) -> None:
        raw.set("omni-later:late", "by another program")
        late = msgspec.structs.replace(event("x", topic="late"), delay=60.0)
        with pytest.raises(BackendError, match="WRONGTYPE"):
            await backend.publish([*numbered(1), late])
        assert raw.xlen(STREAM) == 0

    async def test_plain_remembered_and_delayed_ones_in_one_call(self, backend: RedisBackend, raw: Any) -> None:
        known, later = event("known", dedupe=True), msgspec.structs.replace(event("later"), delay=60.0)
        others = numbered(2, "else")
        sent = [*numbered(3), known, later, known, *others, *numbered(2, start=3)]
        fates = await backend.publish(sent)
        assert [fate.task_id for fate in fates] == [publication.task_id for publication in sent]
        assert [place for place, fate in enumerate(fates) if fate.duplicate] == [5]
        assert [place for place, fate in enumerate(fates) if not fate.entry_id] == [4]
        assert fates[5].entry_id == fates[3].entry_id
        ids = [fate.entry_id.encode() for fate in fates]
        assert [entry_id for entry_id, _ in raw.xrange(STREAM)] == [*ids[:4], *ids[8:]]
        assert [entry_id for entry_id, _ in raw.xrange("omni-stream:else")] == ids[6:8]
        bodies = [fields[b"data"] for _, fields in raw.xrange(STREAM)]
        assert bodies == [publication.body for publication in (*sent[:4], *sent[8:])]

    async def test_settlements_of_many_kinds_in_one_call(self, backend: RedisBackend, raw: Any) -> None:
        await backend.publish(numbered(8))
        async with serving(backend):
            entries = await fetch(backend, 8)
            settlements = [
                done(entries[0], result=record("t0")),
                done(entries[1], publications=(event("x", topic="next"),), result=record("t1")),
                msgspec.structs.replace(done(entries[2], result=record("t2")), result_ttl=5.0),
                done(entries[3]),
                msgspec.structs.replace(done(entries[4]), result=None, retry=Retry(after=60.0, attempts=1)),
                done(entries[5], result=record("t5")),
                done(entries[5], result=record("again")),
                done(entries[6], result=record("t0")),
            ]
            flags = await backend.settle_many(settlements)
            assert flags == [True, True, True, True, True, True, False, True]
        assert raw.pttl("omni-result:t2") <= 5000 < raw.pttl("omni-result:t0")
        assert not raw.exists("omni-result:again")
        assert await length(backend, "next") == 1
        found = await group(backend)
        assert (found.delayed, found.pending, found.waiting) == (1, 0, 1)
        (agent,) = await backend.metrics()
        assert (agent.completed, agent.retried) == (6, 1)

    async def test_a_shorter_result_never_shortens_the_life_of_another_agents(
        self, backend: RedisBackend, raw: Any
    ) -> None:
        await backend.create_groups([(TOPIC, AGENT), (TOPIC, "other")])
        await backend.publish(numbered(1))
        async with serving(backend):
            fetched = await backend.fetch([Want(TOPIC, AGENT, 1), Want(TOPIC, "other", 1)])
            long, short = fetched.entries
            assert await backend.settle_many([done(long, result=record("t"))]) == [True]
            brief = msgspec.structs.replace(done(short, result=record("t", agent="other")), result_ttl=5.0)
            assert await backend.settle_many([brief]) == [True]
        assert raw.pttl("omni-result:t") > 5000

    async def test_many_at_once_go_in_several_calls_and_each_flag_is_at_its_place(
        self, backend: RedisBackend, raw: Any
    ) -> None:
        await backend.publish(numbered(700))
        async with serving(backend):
            entries = await fetch(backend, 700)
            gone = set(range(0, 700, 7))
            raw.xack(STREAM, GROUP, *(entries[place].key.entry_id for place in gone))
            flags = await backend.settle_many(
                [done(entry, result=record(f"r{place}")) for place, entry in enumerate(entries)]
            )
            assert [place for place, flag in enumerate(flags) if not flag] == sorted(gone)
        assert len(raw.keys("omni-result:*")) == 600
