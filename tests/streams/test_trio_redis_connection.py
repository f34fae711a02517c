"""A Redis connection of one's own: blocking reads, subscriptions, transactions, and what ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from redis import exceptions

from omniactors import ConnectionLost, TrioRedis
from tests.redis_server import fresh_prefix
from tests.streams.trio_redis_kit import answer_handshake, scripted_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from omniactors.streams.redis.connection import RedisConnection
    from tests.redis_server import RedisServer


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[TrioRedis]:
    async with TrioRedis(redis_server.url) as found:
        yield found


@pytest.fixture
async def own(client: TrioRedis) -> AsyncIterator[RedisConnection]:
    async with await client.connect() as connection:
        yield connection


async def test_a_cancelled_receive_loses_nothing(own: RedisConnection, redis_server: RedisServer) -> None:
    key = fresh_prefix()
    await own.send("BLPOP", key, 0)
    for _ in range(5):
        with trio.move_on_after(0.02):
            await own.receive()
    redis_server.command("RPUSH", key, 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await own.receive()
    assert await own.receive() == [key.encode(), b"1"]
    assert own.is_usable


async def test_messages_of_a_subscription(own: RedisConnection, redis_server: RedisServer) -> None:
    channel = fresh_prefix()
    await own.send("SUBSCRIBE", channel)
    assert await own.receive() == [b"subscribe", channel.encode(), 1]
    for number in range(3):
        redis_server.command("PUBLISH", channel, number)
    assert [(await own.receive())[2] for _ in range(3)] == [b"0", b"1", b"2"]


async def test_a_transaction(own: RedisConnection) -> None:
    key = fresh_prefix()
    assert await own.call("MULTI") == b"OK"
    assert await own.call("INCR", key) == b"QUEUED"
    assert await own.call("EXEC") == [1]
    with pytest.raises(exceptions.ResponseError, match="without MULTI"):
        await own.call("EXEC")
    assert own.is_usable, "an error reply is a reply"


async def test_a_cancelled_call_closes_its_connection(own: RedisConnection) -> None:
    with trio.move_on_after(0.05):
        await own.call("BLPOP", fresh_prefix(), 0)
    assert not own.is_usable
    with pytest.raises(ConnectionLost) as caught:
        await own.call("PING")
    assert not caught.value.sent
    with pytest.raises(ConnectionLost):
        await own.receive()
    assert "[closed]" in repr(own)


async def test_two_tasks_at_once_are_refused(own: RedisConnection, redis_server: RedisServer) -> None:
    key = fresh_prefix()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own.call, "BLPOP", key, 0)
        await trio.testing.wait_all_tasks_blocked(0)
        with pytest.raises(trio.BusyResourceError):
            await own.call("PING")
        with pytest.raises(trio.BusyResourceError):
            await own.receive()
        assert own.is_usable
        redis_server.command("RPUSH", key, 1)


async def test_an_unblocked_wait(client: TrioRedis, own: RedisConnection) -> None:
    async with trio.open_nursery() as nursery:

        async def unblock() -> None:
            while not await client.call("CLIENT", "UNBLOCK", own.client_id or 0):
                pass

        nursery.start_soon(unblock)
        assert await own.call("XREAD", "BLOCK", 0, "STREAMS", fresh_prefix(), "$", timeout=5) is None


async def test_closing_ends_a_receive(own: RedisConnection) -> None:
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(ConnectionLost, match="closed"):
                await own.receive()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked(0)
        await own.aclose()


async def test_silence_ends_a_receive(own: RedisConnection) -> None:
    with trio.fail_after(5), pytest.raises(ConnectionLost, match=r"within 0\.05 s") as caught:
        await own.receive(0.05)
    assert caught.value.sent
    assert not own.is_usable


async def test_a_send_that_is_not_taken_ends_the_connection() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await answer_handshake(stream)
        await trio.sleep_forever()

    async with scripted_server(handler) as port:
        client = TrioRedis(f"redis://127.0.0.1:{port}", response_timeout=0.2)
        own = await client.connect()
        with trio.fail_after(5), pytest.raises(ConnectionLost, match="takes no more bytes") as caught:
            await own.send("ECHO", b"x" * 2**25)
        assert caught.value.sent
        assert not own.is_usable
        own = await client.connect()
        with trio.move_on_after(0.05) as scope:
            await own.send("ECHO", b"x" * 2**25)
        assert scope.cancelled_caught
        assert not own.is_usable, "half a frame has left"
