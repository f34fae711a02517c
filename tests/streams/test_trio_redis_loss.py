"""TrioRedis when things break: no half frame, no reply to the wrong caller, and the truth about what was sent."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from omniactors import ConnectionLost, TrioRedis
from omniactors.streams.redis.errors import ConnectFailed
from tests.redis_server import RedisServer, fresh_prefix
from tests.streams.trio_redis_kit import (
    CHUNK,
    Certificates,
    answer_handshake,
    cutting_proxy,
    scripted_server,
    tls_forwarder,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


SLOW = """
local now = redis.call('TIME')
local stop = now[1] * 1e6 + now[2] + 600000
repeat now = redis.call('TIME') until now[1] * 1e6 + now[2] > stop
return 1
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[TrioRedis]:
    async with TrioRedis(redis_server.url) as found:
        yield found


async def publish_through(port: int, stream: str, mode: str) -> ConnectionLost | None:
    """One XADD by a new client, then one that must work; gives back how the first was lost, None if it was not."""
    lost = None
    client = TrioRedis(f"redis://127.0.0.1:{port}")

    async def twice() -> object:
        nonlocal lost
        try:
            await client.xadd(stream, {"n": 1})
        except ConnectionLost as exc:
            lost = exc
        while True:
            with contextlib.suppress(ConnectionLost):  # the cut may come as late as now
                return await client.xadd(stream, {"n": 2})

    with trio.fail_after(10):
        if mode == "inside":
            async with client:
                await twice()
        else:
            await twice()
            await client.aclose()
    return lost


# -- cuts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inside", "outside"])
@pytest.mark.parametrize("direction", ["requests", "replies"])
async def test_a_cut_at_any_byte_tells_the_truth(redis_server: RedisServer, mode: str, direction: str) -> None:
    prefix = fresh_prefix()
    outcomes: dict[int, tuple[type, bool, int]] = {}
    uncut: list[int] = []
    eight = trio.CapacityLimiter(8)

    async def cut_at(offset: int) -> None:
        stream = f"{prefix}{offset:03}"
        async with eight, cutting_proxy(redis_server.port, **{direction: offset}) as (port, _):
            lost = await publish_through(port, stream, mode)
        entries = [fields[b"n"] for _, fields in redis_server.command("XRANGE", stream, "-", "+")]  # type: ignore[attr-defined]
        firsts = entries.count(b"1")
        assert entries.count(b"2") >= 1
        if lost is None:
            assert firsts == 1
            uncut.append(offset)
        else:
            assert firsts == 0 or lost.sent, "what was carried out must not be called unsent"
            outcomes[offset] = type(lost), lost.sent, firsts

    async with trio.open_nursery() as nursery:
        for offset in range(130):
            nursery.start_soon(cut_at, offset)
    found = [outcome for _, outcome in sorted(outcomes.items())]
    assert min(uncut) == len(found), "up to some offset all are lost, and none beyond it"
    # First the handshake is cut, then a command that is not carried out, then one that is.
    assert found == sorted(found, key=lambda outcome: outcome[1:])
    assert {(ConnectFailed, False, 0), (ConnectionLost, True, int(direction == "replies"))} <= set(found)
    # The end may also be noticed between the handshake and the command.
    between = (ConnectionLost, False, 0)
    assert set(found) <= {(ConnectFailed, False, 0), between, (ConnectionLost, True, 0), (ConnectionLost, True, 1)}
    carried_out = [firsts for _, _, firsts in found].count(1)
    # A cut right behind the request may come before or after the reply to it.
    assert carried_out <= 1 if direction == "requests" else carried_out > 10


@pytest.mark.parametrize("seed", range(5))
async def test_a_cut_under_load_answers_every_waiter_with_the_truth(redis_server: RedisServer, seed: int) -> None:
    chance = random.Random(seed)
    stream = fresh_prefix()
    acknowledged: set[int] = set()
    unknown: set[int] = set()
    unsent: set[int] = set()

    async def publish(client: TrioRedis, name: int) -> None:
        try:
            await client.xadd(stream, {"n": name})
        except ConnectionLost as lost:
            (unknown if lost.sent else unsent).add(name)
        else:
            acknowledged.add(name)

    limit = {"requests": chance.randrange(100, 15_000)} if seed % 2 else {"replies": chance.randrange(20, 5000)}
    async with (
        cutting_proxy(redis_server.port, **limit) as (port, _),
        TrioRedis(f"redis://127.0.0.1:{port}") as client,
    ):
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for name in range(300):
                    nursery.start_soon(publish, client, name)
            assert await client.ping() is True
    found = [int(fields[b"n"]) for _, fields in redis_server.command("XRANGE", stream, "-", "+")]  # type: ignore[attr-defined]
    assert len(found) == len(set(found)), "nothing is sent twice"
    assert acknowledged <= set(found)
    assert not unsent & set(found)
    assert len(acknowledged) + len(unknown) + len(unsent) == 300
    assert unknown, "the cut must have hit something"


async def test_what_had_not_left_is_said_to_be_unsent() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await answer_handshake(stream)
        await stream.receive_some(10)  # and then takes nothing more until it hangs up
        await hang_up.wait()

    hang_up = trio.Event()
    outcomes: dict[str, bool] = {}

    async def send(client: TrioRedis, name: str, size: int) -> None:
        with pytest.raises(ConnectionLost) as caught:
            await client.call("ECHO", b"x" * size)
        outcomes[name] = caught.value.sent

    async with scripted_server(handler) as port, TrioRedis(f"redis://127.0.0.1:{port}") as client:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, client, "stuck halfway", 2**25)
                while "1 replies owed" not in repr(client):  # noqa: ASYNC110 -- nothing tells when
                    await trio.sleep(0.01)
                await trio.sleep(0.1)  # the kernel's buffers are full now
                nursery.start_soon(send, client, "behind it", 1)
                await trio.testing.wait_all_tasks_blocked(0)
                hang_up.set()
    assert outcomes == {"stuck halfway": True, "behind it": False}


@pytest.mark.parametrize("mode", ["inside", "outside"])
async def test_a_reset_connection_is_not_written_to(mode: str) -> None:
    resets = 0
    replies: list[bytes] = []
    losses: list[ConnectionLost] = []

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal resets
        await answer_handshake(stream)
        await stream.receive_some(CHUNK)
        await stream.send_all(b"+PONG\r\n")
        if resets < 3:
            resets += 1
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with RST
        else:
            await stream.receive_some(CHUNK)
            await stream.send_all(b"+PONG\r\n")

    async def call_often(client: TrioRedis) -> None:
        for _ in range(5):
            with trio.fail_after(5):
                try:
                    replies.append(await client.call("PING"))
                except ConnectionLost as lost:
                    losses.append(lost)

    async with scripted_server(handler) as port:
        client = TrioRedis(f"redis://127.0.0.1:{port}")
        if mode == "inside":
            async with client:
                await call_often(client)
        else:
            await call_often(client)
            await client.aclose()
    assert resets == 3
    assert len(losses) <= resets, "a reset costs at most one call"
    assert replies == [b"PONG"] * (5 - len(losses))


# -- silence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inside", "outside"])
async def test_a_stopped_server_is_noticed(tmp_path: Path, mode: str) -> None:
    lost: list[ConnectionLost] = []

    async def ask(client: TrioRedis) -> None:
        with pytest.raises(ConnectionLost) as caught:
            await client.incr("n")
        lost.append(caught.value)

    async def stall(client: TrioRedis, server: RedisServer, callers: int) -> None:
        assert await client.ping() is True
        server.pause()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(callers):
                nursery.start_soon(ask, client)
        took = trio.current_time() - began
        assert 0.35 <= took < 3
        assert "did not answer within 0.4 s" in str(lost[0])
        server.resume()
        assert int(await client.incr("n")) <= callers + 1

    with RedisServer(tmp_path) as server:
        client = TrioRedis(server.url, response_timeout=0.4, connect_timeout=1)
        with trio.fail_after(20):
            if mode == "inside":
                async with client:
                    await stall(client, server, 20)
                assert [each.sent for each in lost] == [True] * 20
            else:
                await stall(client, server, 1)
                await client.aclose()
                assert [each.sent for each in lost] == [True]


async def test_a_slow_command_is_given_the_time_it_asks_for(redis_server: RedisServer) -> None:
    for mode in ("inside", "outside"):
        client = TrioRedis(redis_server.url, response_timeout=0.3)
        with trio.fail_after(10):
            if mode == "inside":
                async with client, trio.open_nursery() as nursery:
                    await client.ping()
                    nursery.start_soon(client.ping)
                    assert await client.call("EVAL", SLOW, 0, timeout=5) == 1
            else:
                assert await client.call("EVAL", SLOW, 0, timeout=5) == 1
            with pytest.raises(ConnectionLost, match=r"within 0\.3 s"):
                await client.call("EVAL", SLOW, 0)
            await client.aclose()


async def test_a_command_may_ask_for_less_time(redis_server: RedisServer) -> None:
    async with TrioRedis(redis_server.url, response_timeout=60) as client:
        await client.ping()
        with trio.fail_after(5), pytest.raises(ConnectionLost, match=r"within 0\.1 s"):
            await client.call("EVAL", SLOW, 0, timeout=0.1)


# -- coming back --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inside", "outside"])
async def test_a_restarted_server_is_found_again(tmp_path: Path, mode: str) -> None:
    async def live_through(client: TrioRedis, server: RedisServer) -> None:
        for turn in (1, 2, 3):
            with trio.fail_after(10):
                assert await client.incr("n") == turn
            server.kill()
            with pytest.raises(ConnectionLost):
                await client.incr("n")
            server.start()
            while True:
                with contextlib.suppress(ConnectionLost):
                    await client.ping()
                    break

    with RedisServer(tmp_path, appendonly="always") as server:
        client = TrioRedis(server.url)
        if mode == "inside":
            async with client:
                await live_through(client, server)
        else:
            await live_through(client, server)
            await client.aclose()


@pytest.mark.parametrize("mode", ["inside", "outside"])
async def test_a_killed_client_comes_back_at_its_next_call(redis_server: RedisServer, mode: str) -> None:
    async def live_through(client: TrioRedis) -> None:
        mine = await client.client_id()
        redis_server.command("CLIENT", "KILL", "ID", mine)
        await trio.sleep(0.05)
        assert await client.client_id() != mine, "a connection that ended while idle costs no call"

    client = TrioRedis(redis_server.url)
    if mode == "inside":
        async with client:
            await live_through(client)
    else:
        await live_through(client)
        await client.aclose()


async def test_closing_wakes_those_who_wait(client: TrioRedis) -> None:
    lost: list[ConnectionLost] = []

    async def ask() -> None:
        with pytest.raises(ConnectionLost, match="closed here") as caught:
            await client.call("EVAL", SLOW, 0)
        lost.append(caught.value)

    await client.ping()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.05)
        await client.aclose()
    assert lost[0].sent
    assert await client.ping() is True


# -- garbage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [b"what?\r\n", b"$-5\r\n", b"*99999999999\r\n", b"\x00\xff\r\n", b":12x\r\n"])
@pytest.mark.parametrize("mode", ["inside", "outside"])
async def test_a_garbled_reply_ends_the_connection(mode: str, garbage: bytes) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await answer_handshake(stream)
        await stream.receive_some(CHUNK)
        await stream.send_all(garbage)
        await trio.sleep_forever()

    async with scripted_server(handler) as port:
        client = TrioRedis(f"redis://127.0.0.1:{port}")
        if mode == "inside":
            async with client:
                with trio.fail_after(5), pytest.raises(ConnectionLost, match="not RESP") as caught:
                    await client.ping()
        else:
            with trio.fail_after(5), pytest.raises(ConnectionLost, match="not RESP") as caught:
                await client.ping()
        assert caught.value.sent


async def test_a_reply_that_nobody_asked_for_ends_the_connection() -> None:
    connections = 0
    extra = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await answer_handshake(stream)
        await stream.receive_some(CHUNK)
        await stream.send_all(b"+PONG\r\n")
        if connections == 1:
            await stream.send_all(b"+another\r\n")
            extra.set()
        await trio.sleep_forever()

    for mode in ("inside", "outside"):
        connections, extra = 0, trio.Event()
        async with scripted_server(handler) as port:
            client = TrioRedis(f"redis://127.0.0.1:{port}")
            with trio.fail_after(5):
                if mode == "inside":
                    async with client:
                        assert await client.call("PING") == b"PONG"
                        await extra.wait()
                        await trio.sleep(0.05)
                        assert await client.call("PING") == b"PONG"
                else:
                    assert await client.call("PING") == b"PONG"
                    await extra.wait()
                    await trio.sleep(0.05)
                    assert await client.call("PING") == b"PONG"
                    await client.aclose()
        assert connections == 2


@pytest.mark.parametrize("mode", ["inside", "outside"])
async def test_replies_may_come_a_byte_at_a_time(mode: str) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await answer_handshake(stream)
        await stream.receive_some(CHUNK)
        for byte in b"*3\r\n$2\r\nab\r\n:5\r\n*1\r\n$-1\r\n":
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.001)
        await trio.sleep_forever()

    async with scripted_server(handler) as port:
        client = TrioRedis(f"redis://127.0.0.1:{port}")
        if mode == "inside":
            async with client:
                assert await client.call("X") == [b"ab", 5, [None]]
        else:
            assert await client.call("X") == [b"ab", 5, [None]]
            await client.aclose()


# -- cancellation -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inside", "outside"])
async def test_a_cancel_at_any_turn_leaves_the_others_their_replies(redis_server: RedisServer, mode: str) -> None:
    counter = fresh_prefix()

    async def sweep(client: TrioRedis) -> None:
        for turns in range(12):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    for number in range(5):
                        nursery.start_soon(client.call, "ECHO", f"{turns}-{number}")
                    nursery.start_soon(client.incr, counter)
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            assert await client.call("ECHO", f"after {turns}") == f"after {turns}".encode()

    client = TrioRedis(redis_server.url)
    with trio.fail_after(20):
        if mode == "inside":
            async with client:
                await sweep(client)
        else:
            await sweep(client)
            await client.aclose()


async def test_cancelled_neighbours_do_not_shift_replies(client: TrioRedis) -> None:
    chance = random.Random(7)
    answers: dict[int, bytes] = {}

    def filling(number: int) -> bytes:
        # Some fill the kernel's buffers, so that a send is cut in two and others wait behind it.
        return b"%d " % number * (100_000 if number % 20 == 0 else 1)

    async def ask(number: int) -> None:
        with trio.CancelScope() as scope:
            if number % 3 == 0:
                scope.deadline = trio.current_time() + chance.random() * 0.005
            answers[number] = await client.call("ECHO", filling(number))

    for _ in range(5):
        answers.clear()
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, number)
        assert all(answer == filling(number) for number, answer in answers.items())
        assert len(answers) >= 133


@pytest.mark.parametrize("mode", ["inside", "outside"])
async def test_who_is_cancelled_before_sends_nothing(redis_server: RedisServer, mode: str) -> None:
    key = fresh_prefix()
    client = TrioRedis(redis_server.url)

    async def cancelled_from_the_start() -> None:
        await client.ping()
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.incr(key)
        assert scope.cancelled_caught
        assert await client.exists(key) == 0

    if mode == "inside":
        async with client:
            await cancelled_from_the_start()
    else:
        await cancelled_from_the_start()
        await client.aclose()


async def test_a_call_cancelled_outside_closes_its_connection(redis_server: RedisServer) -> None:
    client = TrioRedis(redis_server.url)
    key = fresh_prefix()
    before = await client.client_id()
    with trio.move_on_after(0.05):
        await client.blpop([key], timeout=0)
    assert await client.client_id() != before
    redis_server.command("RPUSH", key, 1)
    assert await client.llen(key) == 1, "the connection that waited is gone, and takes nothing"
    await client.aclose()


# -- TLS ---------------------------------------------------------------------------------------


async def test_tls_that_says_good_bye(certificates: Certificates) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, certificates.server, server_side=True)
        request = b""
        while not request.endswith(b"ID\r\n"):
            request += await secure.receive_some(CHUNK)
        await secure.send_all(b":7\r\n")
        await secure.receive_some(CHUNK)
        await secure.send_all(b"+PONG\r\n")
        await secure.unwrap()

    async with scripted_server(handler) as port:
        url = f"rediss://localhost:{port}?ssl_ca_certs={certificates.authority}"
        async with TrioRedis(url) as client:
            own = await client.connect()
            with trio.fail_after(5):
                assert await own.call("PING") == b"PONG"
                with pytest.raises(ConnectionLost, match="the server closed it"):
                    await own.receive()
        assert not own.is_usable


@pytest.mark.parametrize("offset", range(0, 4000, 311))
async def test_tls_cut_anywhere(redis_server: RedisServer, certificates: Certificates, offset: int) -> None:
    stream = fresh_prefix()
    async with (
        tls_forwarder(certificates.server, redis_server.port) as secure,
        cutting_proxy(secure, replies=offset) as (port, _),
    ):
        client = TrioRedis(f"rediss://localhost:{port}?ssl_ca_certs={certificates.authority}")
        async with client:
            with trio.fail_after(10):
                try:
                    await client.xadd(stream, {"n": 1})
                    sent = True
                except ConnectionLost as lost:
                    sent = lost.sent
                assert await client.xlen(stream) <= sent
