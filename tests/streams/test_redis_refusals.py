"""What the server refuses: for that one alone and for good, or for now and then for all together; by its code.

Both kinds of servers are asked: Redis 6.2 hides what failed in a script behind its own words, Redis 7 adds to them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import redis
import trio

from omniactors import Agent, BatchFailed, EventEnvelope, OmniActors, TaskFailed
from omniactors.errors import BackendError, BackendRefused, BackendUnusable
from omniactors.streams.backend import Want
from omniactors.streams.redis.backend import RedisBackend
from omniactors.streams.redis.calls import GeneralError
from omniactors.streams.redis.codes import meaning_of, unwrapped
from omniactors.streams.redis.errors import server_error
from omniactors.streams.settlement import Retry
from tests.redis_server import RedisServer, oldest_binary, redis_binary
from tests.streams.contract_kit import (
    AGENT,
    TOPIC,
    dead,
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
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

BULK = 1 << 20
"""The least `proto-max-bulk-len` that a server takes."""

BIG = b'{"content":"' + b"x" * (2 * BULK) + b'"}'


@pytest.fixture(scope="module", params=[redis_binary, oldest_binary], ids=["newest", "oldest"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    options = {"proto-max-bulk-len": str(BULK)}
    with RedisServer(tmp_path_factory.mktemp("redis"), options=options, binary=request.param()) as server:
        yield server


@pytest.fixture
def raw(server: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(server.url, protocol=2) as client:
        client.flushall()
        yield client
        client.config_set("maxmemory", 0)
        client.config_set("min-replicas-to-write", 0)
        client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.fixture
async def backend(server: RedisServer, raw: Any) -> AsyncIterator[RedisBackend]:
    backend = RedisBackend(server.url, patience=0.5)
    with trio.fail_after(60):
        yield backend
    await backend.close()


# -- for good, and for that one alone -----------------------------------------------------------


@pytest.mark.parametrize("is_inside", [False, True])
async def test_a_publish_that_is_too_big_is_refused_to_its_caller_alone(
    backend: RedisBackend, raw: Any, *, is_inside: bool
) -> None:
    refused: list[BackendError] = []

    async def publish(number: int) -> None:
        try:
            await backend.publish([event(f"t{number}", body=BIG if number == 5 else b"{}")])
        except BackendRefused as error:
            refused.append(error)

    async def publish_all() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(publish, number)

    if is_inside:
        async with serving(backend):
            await publish_all()
    else:
        await publish_all()
    assert (len(refused), raw.xlen(f"omni-stream:{TOPIC}")) == (1, 9)
    await backend.publish(numbered(1))


async def test_a_result_that_is_too_big_holds_up_no_other(backend: RedisBackend, raw: Any) -> None:
    await backend.publish(numbered(20))
    async with serving(backend):
        entries = await fetch(backend)
        results = ["x" * (2 * BULK) if number == 7 else number for number in range(20)]
        ends = [done(entry, result=record(f"t{n}", result=results[n])) for n, entry in enumerate(entries)]
        outcomes = await backend.settle_many(ends)
        assert [outcome for outcome in outcomes if outcome is not True] == [outcomes[7]]
        assert isinstance(outcomes[7], BackendRefused)
        assert await backend.settle_many([done(entries[7], dead=dead())]) == [True]
        assert await length(backend) == 0
        (letter,) = await backend.dead_letters(TOPIC, limit=9)
        assert letter.failed_message == {"n": 7}


@pytest.mark.slow
async def test_a_result_for_which_the_server_ends_the_connection_without_a_word_holds_up_no_other(
    tmp_path: Path,
) -> None:
    with RedisServer(tmp_path / "redis", options={"client-query-buffer-limit": str(BULK)}) as server:
        backend = RedisBackend(server.url)
        await backend.publish(numbered(6))
        async with serving(backend):
            entries = await fetch(backend)
            results = ["x" * (3 * BULK) if number == 2 else number for number in range(6)]
            ends = [done(entry, result=record(f"t{n}", result=results[n])) for n, entry in enumerate(entries)]
            with trio.fail_after(60):
                outcomes = await backend.settle_many(ends)
            assert [number for number, outcome in enumerate(outcomes) if outcome is not True] == [2]
            assert isinstance(outcomes[2], BackendRefused)
        await backend.close()


async def test_many_results_that_are_too_big_together_are_written(backend: RedisBackend, raw: Any) -> None:
    await backend.publish(numbered(40))
    async with serving(backend):
        entries = await fetch(backend)
        result = "x" * (BULK // 4)
        follower = event("after", topic="next", body=b"{}" + b" " * (BULK // 4))
        ends = [
            done(entry, result=record(f"t{number}", result=result), publications=(follower,) * (number % 2))
            for number, entry in enumerate(entries)
        ]
        assert await backend.settle_many(ends) == [True] * 40
        assert (await length(backend), await length(backend, "next")) == (0, 20)


async def test_the_dead_letter_of_an_event_fits_where_the_event_did(backend: RedisBackend, raw: Any) -> None:
    bodies = [b'{"content":"' + b"x" * (BULK - 20_000) + b'"}', b'{"content":1}']
    await backend.publish([event(f"t{number}", body=body) for number, body in enumerate(bodies)])
    async with serving(backend):
        entries = await fetch(backend)
        assert await backend.settle_many([done(entry, dead=dead()) for entry in entries]) == [True, True]
        letters = await backend.dead_letters(TOPIC, limit=9)
        assert [letter.body.encode() for letter in reversed(letters)] == bodies
        assert await backend.replay_dead(TOPIC, _every(), limit=9) == 2
        assert [entry.body for entry in await fetch(backend)] == bodies


@pytest.mark.parametrize("key", ["omni-result:t3", "omni-stream:taken"])
async def test_a_key_that_holds_something_else_leaves_no_settlement_in_part(
    backend: RedisBackend, raw: Any, key: str
) -> None:
    raw.set(key, "by another program")
    await backend.publish(numbered(8))
    async with serving(backend):
        entries = await fetch(backend)
        ends = [
            done(
                entry,
                result=record(f"t{number}"),
                publications=(event(f"p{number}", topic="taken" if number == 3 else "next"),) * (number % 2),
            )
            for number, entry in enumerate(entries)
        ]
        outcomes = await backend.settle_many(ends)
        assert [number for number, outcome in enumerate(outcomes) if outcome is not True] == [3]
        assert isinstance(outcomes[3], BackendRefused)
        assert (await length(backend, "next"), await length(backend)) == (3, 1), "something was written twice"


class Reader(Agent, topic="big", name="reader"):
    async def handle(self, event: EventEnvelope[int]) -> str:
        return "x" * event.payload.content


async def test_the_waiter_of_a_result_that_is_too_big_is_told(
    server: RedisServer, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    omni = OmniActors(server.url)
    omni.add(Reader)
    with trio.fail_after(30), caplog.at_level(logging.CRITICAL, logger="omniactors"):
        async with omni:
            small, big, other = await omni.publish_batch([("big", 5), ("big", 2 * BULK), ("big", 6)])
            with pytest.raises(TaskFailed):
                await omni.wait_result(big)
            assert [await omni.wait_result(task) for task in (small, other)] == ["x" * 5, "x" * 6]
            assert [letter.topic for letter in await omni.streams.dlq("big")] == ["big"]


# -- for now ------------------------------------------------------------------------------------


def _fill(raw: Any) -> None:
    raw.config_set("maxmemory", 1)


def _lose_replicas(raw: Any) -> None:
    raw.config_set("min-replicas-to-write", 1)


def _demote(raw: Any) -> None:
    raw.execute_command("REPLICAOF", "127.0.0.1", "1")


@pytest.mark.parametrize("happens", [_fill, _lose_replicas, _demote])
async def test_a_publish_that_the_server_does_not_take_for_now_is_not_refused_for_good(
    backend: RedisBackend, raw: Any, happens: Any
) -> None:
    happens(raw)
    for publication in (event("lone"), event("kept", dedupe=True)):
        with pytest.raises(BackendError) as caught:
            await backend.publish([publication])
        assert not isinstance(caught.value, BackendRefused | BackendUnusable)
        assert caught.value.outcome_known


async def test_the_patience_of_those_who_wait_together_is_had_once(backend: RedisBackend, raw: Any) -> None:
    await backend.publish(numbered(1))
    _lose_replicas(raw)
    failures: list[BackendError] = []

    async def publish(number: int) -> None:
        try:
            await backend.publish([event(f"t{number}", body=b"x" * 200_000)])
        except BackendError as error:
            failures.append(error)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(60):  # a dozen calls, by their bytes
            nursery.start_soon(publish, number)
    assert len(failures) == 60
    assert trio.current_time() - began < 4, "each call had half a second of its own"


async def test_a_batch_behind_one_that_was_not_taken_for_now_is_not_tried(server: RedisServer, raw: Any) -> None:
    omni = OmniActors(server.url)
    await omni.publish("t", 1)
    raw.config_set("maxmemory", 1)
    with pytest.raises(BatchFailed) as caught:
        await omni.publish_batch([("t", number) for number in range(1200)])
    assert sorted(caught.value.failed) == list(range(1200))
    assert "not tried" in str(caught.value.failed[1199])
    await omni.shutdown()


async def test_settlements_wait_while_nothing_can_be_written_and_are_written_then(
    backend: RedisBackend, raw: Any
) -> None:
    await backend.publish(numbered(3))
    async with serving(backend), trio.open_nursery() as nursery:
        one, two, three = await fetch(backend)
        _lose_replicas(raw)
        ends = [done(one, result=record("t0")), done(two, retry=Retry(after=0, attempts=1)), done(three, dead=dead())]
        found: list[object] = []

        async def settle() -> None:
            found.extend(await backend.settle_many(ends))

        nursery.start_soon(settle)
        await trio.sleep(0.3)
        assert found == []
        raw.config_set("min-replicas-to-write", 0)
        with trio.fail_after(10):
            while not found:  # noqa: ASYNC110 -- the server tells nobody that it takes writes again
                await trio.sleep(0.01)
        assert found == [True, True, True]
        assert numbers((await backend.fetch([Want(TOPIC, AGENT, 9)])).entries) == [1]


# -- what an error means ------------------------------------------------------------------------

SHA = "ee80828773966a99bb568e35056dd07fd71932a8"


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        *[(code, "not now") for code in ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS")],
        *[(code, "not now") for code in ("READONLY", "TRYAGAIN", "UNBLOCKED")],
        *[(code, "unclear") for code in ("OOM", "ERR", "BUSYGROUP", "NOPERM", "CROSSSLOT", "NEWCODE")],
        ("WRONGTYPE", "never"),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        "{code} {text}",
        "{code} {text} script: " + SHA + ", on @user_script:6.",
        "ERR Error running script (call to f_" + SHA + "): @user_script:6: {code} {text}",
        "ERR Error running script (call to f_" + SHA + "): @user_script:16: @user_script: 16: -{code} {text}",
        "@user_script: 6: -{code} {text}",
    ],
)
@pytest.mark.parametrize("text", ["", "WRONGTYPE OOM LOADING user_script Protocol error invalid expire"])
def test_what_an_error_means_is_told_by_its_code_in_whatever_a_server_wraps_it(
    code: str, meaning: str, form: str, text: str
) -> None:
    error = unwrapped(server_error(form.format(code=code, text=text)))
    assert meaning_of(error) == meaning
    assert SHA not in str(error)


def test_a_topic_with_the_name_of_an_error_is_a_topic_like_any_other(server: RedisServer, raw: Any) -> None:
    async def main() -> None:
        for topic in ("WRONGTYPE", "NOGROUP", "BUSYGROUP", "no such key"):
            backend = RedisBackend(server.url)
            async with serving(backend):
                await backend.publish(numbered(1, topic))
                assert len(await fetch(backend, topic=topic)) == 1
            await backend.close()

    trio.run(main)


def test_an_error_without_a_code_is_the_fault_of_the_call_whose_neighbours_are_taken() -> None:
    from omniactors.streams.redis.settling import blamed  # noqa: PLC0415 -- a rule of its own

    error = GeneralError("value is not an integer")
    assert blamed([error, error]) == [error, error]
    assert blamed([False, error]) == [False, error]
    first, second = blamed([True, error])
    assert (first, type(second)) == (True, BackendRefused)


def _every() -> Any:
    from omniactors.streams.backend import EVERY_DEAD_LETTER  # noqa: PLC0415 -- one word

    return EVERY_DEAD_LETTER
