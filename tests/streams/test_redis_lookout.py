"""Looking out for a reply: when, how often, and what it must not change."""

from __future__ import annotations

import pytest
import trio

from omniactors.streams.redis import lookout
from omniactors.streams.redis.client import TrioRedis
from omniactors.streams.redis.lookout import AGAIN, MISSES, Lookout
from tests.streams.trio_redis_kit import answer_handshake, scripted_server


@pytest.fixture(autouse=True)
def several_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "TURNS", 5)


def test_a_server_that_is_quick_is_looked_out_for_each_time() -> None:
    looking = Lookout()
    for _ in range(1000):
        assert looking.turns() == 5
        looking.note(has_come=True)


def test_a_distant_server_is_found_out_and_tried_again_now_and_then() -> None:
    looking = Lookout()
    for _ in range(MISSES):
        assert looking.turns() == 5
        looking.note(has_come=False)
    turns = [looking.turns() for _ in range(10 * AGAIN)]
    assert sum(map(bool, turns)) == 10
    looking.note(has_come=True)
    assert looking.turns() == 5


def test_a_machine_with_one_processor_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "TURNS", 0)
    assert {Lookout().turns() for _ in range(100)} == {0}


@pytest.mark.parametrize("is_shared", [False, True])
async def test_other_tasks_run_while_it_is_looked_out(*, is_shared: bool) -> None:
    ticks = 0
    is_asked = trio.Event()
    may_answer = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        await answer_handshake(stream)
        await stream.receive_some()
        is_asked.set()
        await may_answer.wait()
        await stream.send_all(b"+PONG\r\n")
        await trio.sleep_forever()

    async def tick() -> None:
        nonlocal ticks
        while not may_answer.is_set():
            ticks += 1
            await trio.lowlevel.checkpoint()

    async with scripted_server(handler) as port, trio.open_nursery() as nursery:
        client = TrioRedis(f"redis://127.0.0.1:{port}")
        if is_shared:
            await nursery.start(client.run)
        nursery.start_soon(tick)

        async def call() -> None:
            assert await client.call("PING") == b"PONG"
            await client.aclose()
            nursery.cancel_scope.cancel()

        nursery.start_soon(call)
        await is_asked.wait()
        before = ticks
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        assert ticks > before
        may_answer.set()


@pytest.mark.parametrize("is_shared", [False, True])
async def test_a_call_may_be_cancelled_while_it_is_looked_out(*, is_shared: bool) -> None:
    calls = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal calls
        await answer_handshake(stream)
        while await stream.receive_some():
            calls += 1
            if calls > 1:
                await stream.send_all(b"+PONG\r\n" * (2 if is_shared else 1))

    async with scripted_server(handler) as port, trio.open_nursery() as nursery:
        client = TrioRedis(f"redis://127.0.0.1:{port}")
        if is_shared:
            await nursery.start(client.run)
        with trio.move_on_after(0.05) as scope:
            await client.call("PING")
        assert scope.cancelled_caught
        with trio.fail_after(5):
            assert await client.call("PING") == b"PONG"
        await client.aclose()
        nursery.cancel_scope.cancel()
