"""TrioRedis: redis-py's commands over trio, on one shared connection or on one that tasks take in turns."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from redis import exceptions

from omniactors import TrioRedis
from omniactors.streams.redis.refusals import Refused
from tests.redis_server import RedisServer, fresh_prefix
from tests.streams.trio_redis_kit import CHUNK, answer_handshake, scripted_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(params=["inside", "outside"])
async def client(request: pytest.FixtureRequest, redis_server: RedisServer) -> AsyncIterator[TrioRedis]:
    """A client in each of its two modes."""
    found = TrioRedis(redis_server.url)
    if request.param == "inside":
        async with found:
            yield found
    else:
        yield found
        await found.aclose()


@pytest.fixture
async def shared(redis_server: RedisServer) -> AsyncIterator[TrioRedis]:
    async with TrioRedis(redis_server.url) as found:
        yield found


async def test_commands_have_the_shapes_of_redis_py(client: TrioRedis) -> None:
    key = fresh_prefix()
    assert await client.set(key, "é") is True
    assert await client.get(key) == "é".encode()
    assert await client.hset(f"{key}h", mapping={"a": 1.5, "b": b"\xff"}) == 2
    assert await client.hgetall(f"{key}h") == {b"a": b"1.5", b"b": b"\xff"}
    assert await client.expire(key, 100) is True
    assert isinstance((await client.config_get("maxmemory"))["maxmemory"], str)
    assert await client.mget([]) == []


async def test_streams(client: TrioRedis) -> None:
    stream = fresh_prefix()
    entry = await client.xadd(stream, {"data": "1"})
    assert await client.xgroup_create(stream, "g", id="0") is True
    assert await client.xreadgroup("g", "c", {stream: ">"}, count=5) == [[stream.encode(), [(entry, {b"data": b"1"})]]]
    assert (await client.xinfo_groups(stream))[0]["pending"] == 1
    claimed = await client.xautoclaim(stream, "g", "other", min_idle_time=0)
    assert claimed[1] == [(entry, {b"data": b"1"})]
    assert await client.xack(stream, "g", entry) == 1


async def test_scan_iter(client: TrioRedis) -> None:
    prefix = fresh_prefix()
    names = {f"{prefix}{number}".encode() for number in range(50)}
    for name in names:
        await client.set(name, 1)
    assert {name async for name in client.scan_iter(match=f"{prefix}*", count=7)} == names


async def test_scripts_are_loaded_when_the_server_lost_them(client: TrioRedis) -> None:
    script = client.register_script("return {KEYS[1], ARGV[1]}")
    await client.script_flush()
    assert await script(keys=["a"], args=[1]) == [b"a", b"1"]
    with pytest.raises(exceptions.NoScriptError):
        await client.evalsha("0" * 40, 0)


async def test_errors_are_those_of_redis_py(client: TrioRedis) -> None:
    key = fresh_prefix()
    await client.set(key, "text")
    with pytest.raises(exceptions.ResponseError, match=r"^WRONGTYPE "):
        await client.lpush(key, 1)
    with pytest.raises(exceptions.ResponseError, match=r"^unknown command"):
        await client.execute_command("NOSUCHCOMMAND")
    await client.xgroup_create(f"{key}s", "g", mkstream=True)
    with pytest.raises(exceptions.ResponseError, match=r"^BUSYGROUP "):
        await client.xgroup_create(f"{key}s", "g", mkstream=True)
    assert await client.get(key) == b"text"


async def test_refusals_of_the_server_have_their_classes(tmp_path: Path) -> None:
    with RedisServer(tmp_path, options={"maxmemory-policy": "noeviction"}) as server:
        async with TrioRedis(server.url) as client:
            await client.config_set("maxmemory", 1)
            with pytest.raises(exceptions.OutOfMemoryError):
                await client.set("another", 1)
            await client.config_set("maxmemory", 0)
            await client.execute_command("ACL", "SETUSER", "default", "-set")
            with pytest.raises(exceptions.NoPermissionError):
                await client.set("a", 1)
            await client.replicaof("127.0.0.1", 1)
            with pytest.raises(exceptions.ReadOnlyError):
                await client.incr("a")


@pytest.mark.parametrize("word", [None, True, object(), [1]])
async def test_words_that_are_none_are_refused(client: TrioRedis, word: object) -> None:
    with pytest.raises(exceptions.DataError):
        await client.execute_command("ECHO", word)
    with pytest.raises(exceptions.DataError):
        await client.call("ECHO", word)  # type: ignore[arg-type]
    assert await client.call("ECHO", 1.5) == b"1.5"


async def test_replies_are_decoded_when_the_url_says_so(redis_server: RedisServer) -> None:
    key = fresh_prefix()
    async with TrioRedis(f"{redis_server.url}?decode_responses=true") as client:
        await client.hset(key, "field", "é")
        assert await client.hgetall(key) == {"field": "é"}
        assert await client.call("HGET", key, "field") == "é".encode(), "raw is raw"
        dumped = await client.dump(key)
        assert isinstance(dumped, bytes), "NEVER_DECODE"
        await client.restore(f"{key}2", 0, dumped)
        assert await client.hgetall(f"{key}2") == {"field": "é"}
    async with TrioRedis(f"{redis_server.url}?decode_responses=false") as client:
        assert await client.hgetall(key) == {b"field": "é".encode()}


async def test_the_encoding_of_the_url_holds(redis_server: RedisServer) -> None:
    key = fresh_prefix()
    async with TrioRedis(f"{redis_server.url}?encoding=latin-1&decode_responses=true") as client:
        await client.set(key, "é")
        assert await client.call("GET", key) == b"\xe9"
        assert await client.get(key) == "é"


async def test_every_task_gets_its_own_reply(client: TrioRedis) -> None:
    wrong = []

    async def ask(number: int) -> None:
        for turn in range(20):
            word = f"{number}-{turn}".encode()
            if await client.call("ECHO", word) != word:
                wrong.append(word)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(ask, number)
    assert not wrong


async def test_what_is_ready_together_leaves_together() -> None:
    chunks: list[bytes] = []

    async def handler(stream: trio.SocketStream) -> None:
        await answer_handshake(stream)
        while data := await stream.receive_some(CHUNK):
            chunks.append(data)
            await stream.send_all(b"+OK\r\n" * data.count(b"PING"))

    async with scripted_server(handler) as port, TrioRedis(f"redis://127.0.0.1:{port}") as client:
        await client.call("PING")
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(client.call, "PING")
    assert [data.count(b"PING") for data in chunks] == [1, 100]


@pytest.mark.parametrize("size", [2**16, 2**24 + 7])
async def test_large_words_and_replies(client: TrioRedis, size: int) -> None:
    key = fresh_prefix()
    value = bytes(range(256)) * (size // 256)

    async def small() -> None:
        assert await client.call("ECHO", "small") == b"small"

    async def large() -> None:
        await client.set(key, value)
        assert await client.get(key) == value

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(small)
        nursery.start_soon(large)
    assert await client.delete(key) == 1


async def test_one_object_serves_one_run_after_the_other(redis_server: RedisServer) -> None:
    client = TrioRedis(redis_server.url)
    key = fresh_prefix()

    async def outside() -> int:
        return int(await client.incr(key))

    async def inside() -> int:
        async with client:
            return int(await client.incr(key))

    def elsewhere() -> list[int]:
        # The connection of the first run is still open, and of no use to the next ones.
        return [trio.run(each) for each in (outside, outside, inside, inside, outside)]

    assert await trio.to_thread.run_sync(elsewhere) == [1, 2, 3, 4, 5]
    assert await outside() == 6
    assert repr(client).endswith("[one connection]>")
    await client.aclose()
    assert await inside() == 7


def test_a_forked_child_has_a_connection_of_its_own(redis_server: RedisServer) -> None:
    program = """
import os, sys, threading, trio
from omniactors import TrioRedis
client = TrioRedis(sys.argv[1])
async def main():
    async with client:
        before = await client.client_id()
        pid = os.fork()
        if pid == 0:
            in_child(before)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code if await client.client_id() == before else 4
def in_child(before):
    # The parent's loop is still on the stack of this thread; another one is free for a loop of its own.
    thread = threading.Thread(target=lambda: found.append(trio.run(ask)))
    found = []
    thread.start()
    thread.join()
    os._exit(0 if found and found[0] != before else 3)
async def ask():
    found = await client.client_id()
    await client.aclose()
    return found
sys.exit(trio.run(main))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, redis_server.url], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "command",
    [
        "SUBSCRIBE c", "psubscribe c", "SSUBSCRIBE c", "UNSUBSCRIBE", "MONITOR", "SYNC", "PSYNC ? -1", "MULTI", "EXEC",
        "DISCARD", "WATCH k", "UNWATCH", "SELECT 1", "AUTH p", "HELLO 3", "RESET", "QUIT", "CLIENT REPLY OFF",
        "client tracking on", "SHUTDOWN NOSAVE", "READONLY", "ASKING",
    ],
)  # fmt: skip
async def test_what_no_shared_connection_carries_is_refused(client: TrioRedis, command: str) -> None:
    with pytest.raises(Refused, match=r"connect\(\)"):
        await client.call(*command.split())
    with pytest.raises(Refused):
        await client.call(*(word.encode() for word in command.split()))
    with pytest.raises(Refused):
        await client.execute_command(command)
    assert await client.ping() is True


@pytest.mark.parametrize(
    "command",
    [
        "BLPOP k 0", "brpop k 0x1", "BRPOPLPUSH a b 0", "BLMOVE a b LEFT LEFT 0", "BZPOPMIN k 0", "BZPOPMAX k 0",
        "BLMPOP 0 1 k LEFT", "BZMPOP 0 1 k MIN", "WAIT 1 0", "WAITAOF 1 0 0", "XREAD BLOCK 0 STREAMS k $",
        "XREAD COUNT 1 block 5 STREAMS k $", "XREADGROUP GROUP STREAMS c BLOCK 0 STREAMS k >",
    ],
)  # fmt: skip
async def test_what_makes_others_wait_is_refused_inside(shared: TrioRedis, command: str) -> None:
    with pytest.raises(Refused, match="would make all tasks"):
        await shared.call(*command.split())


async def test_what_only_looks_like_blocking_is_carried(shared: TrioRedis) -> None:
    stream = f"BLOCK{fresh_prefix()}"
    await shared.call("XGROUP", "CREATE", stream, "BLOCK", "0", "MKSTREAM")
    assert await shared.call("XREADGROUP", "GROUP", "BLOCK", "BLOCK", "STREAMS", stream, ">") is None
    assert await shared.call("XREAD", "COUNT", "1", "STREAMS", stream, "0") is None
    assert await shared.call("CLIENT", "ID")


async def test_the_first_call_inside_is_judged_like_the_others(redis_server: RedisServer) -> None:
    async with TrioRedis(redis_server.url) as client:
        with pytest.raises(Refused):
            await client.blpop(["nothing"], timeout=1)


async def test_blocking_commands_work_outside(redis_server: RedisServer) -> None:
    client = TrioRedis(redis_server.url, response_timeout=0.3)
    key = fresh_prefix()
    assert await client.blpop([key], timeout=0.6) is None, "the server's own time limit is longer than ours"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.blpop, [key], 0)
        await trio.sleep(0.5)
        redis_server.command("RPUSH", key, 1)
    assert await client.xread({key: "$"}, block=1) == []
    await client.aclose()


@pytest.mark.parametrize("name", ["pipeline", "transaction", "pubsub", "monitor"])
def test_what_is_not_offered_says_what_to_do(name: str) -> None:
    with pytest.raises(Refused, match=rf"^{name}\(\) is not offered: "):
        getattr(TrioRedis("redis://nowhere.invalid"), name)()


async def test_an_error_of_the_block_stays_what_it_is(redis_server: RedisServer) -> None:
    async def use() -> None:
        async with TrioRedis(redis_server.url) as client:
            await client.ping()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await use()


async def test_running_twice_at_once_is_refused(shared: TrioRedis) -> None:
    with pytest.raises(RuntimeError, match="running already"):
        await shared.run()
    with pytest.raises(RuntimeError, match="running already"):
        await shared.__aenter__()
    assert await shared.ping() is True


async def test_inside_and_outside_follow_each_other(redis_server: RedisServer) -> None:
    client = TrioRedis(redis_server.url)
    assert await client.ping() is True
    for _ in range(2):
        async with client:
            assert await client.ping() is True
            assert "shared connection, 0 replies owed" in repr(client)
        assert "not connected" in repr(client)
    assert await client.ping() is True
    await client.aclose()
    assert "not connected" in repr(client)


async def test_a_call_that_is_under_way_ends_as_it_began(redis_server: RedisServer) -> None:
    client, key = TrioRedis(redis_server.url), fresh_prefix()
    found = []

    async def wait() -> None:
        found.append(await client.blpop([key], timeout=0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        while repr(client).endswith("[not connected]>"):  # noqa: ASYNC110 -- nothing tells when
            await trio.sleep(0.01)
        async with client:
            await client.rpush(key, 1)
            while not found:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert "not connected" in repr(client)
    assert found == [(key.encode(), b"1")]


async def test_a_nursery_may_run_it(redis_server: RedisServer) -> None:
    client = TrioRedis(redis_server.url)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        assert await client.ping() is True
        nursery.cancel_scope.cancel()
    assert "not connected" in repr(client)
