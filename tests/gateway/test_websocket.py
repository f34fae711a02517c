"""Watchers over real sockets: simple ones, stalled ones, strangers, and the good-bye."""

from __future__ import annotations

import json
import logging
import random
import re

import pytest
import trio
import trio.lowlevel
from trio_websocket import ConnectionClosed, open_websocket_url

from omniactors.events.bus import RING_EVENTS, EventBus
from omniactors.events.event import Event
from omniactors.gateway.config import GatewayAddress, GatewayConfig
from omniactors.gateway.protocol import Sub
from omniactors.gateway.server import serve
from omniactors.gateway.watcher import subscribe
from tests.gateway.conftest import HANDSHAKE, PATIENCE, Client, Running, Start
from tests.gateway.test_fuzz import Talk, converse, make_gateway


async def wait_until_gone(running: Running) -> None:
    """Until the bus has no subscriber any more."""
    with trio.fail_after(PATIENCE):
        while running.bus.stats()["subscribers"]:  # noqa: ASYNC110 -- nothing tells the end of a foreign task
            await trio.sleep(0.01)


async def read_all(client: Client) -> None:
    while True:
        await client.frame()


async def closed_with(client: Client) -> int:
    """Read to the end and give the close code."""
    with trio.fail_after(PATIENCE):
        with pytest.raises(ConnectionClosed) as closed:
            await read_all(client)
    assert closed.value.reason is not None
    return closed.value.reason.code


async def test_two_lines_are_enough(start: Start) -> None:
    async with start() as running, open_websocket_url(running.url("?types=task.*")) as socket:
        frames = [json.loads(await socket.get_message()) for _ in range(3)]
        running.publish(2)
        running.publish(1, event_type="agent.started")
        frames.append(json.loads(await socket.get_message()))
    welcome, subbed, live, batch = frames
    assert (welcome["t"], welcome["v"], welcome["epoch"]) == ("welcome", 1, running.bus.epoch)
    assert (subbed["t"], subbed["s"], subbed["from"], subbed["resumed"]) == ("subbed", 0, 0, True)
    assert (live["t"], live["o"]) == ("live", 0)
    assert (batch["t"], batch["n"]) == ("ev", 2)
    assert [(event["o"], event["event_type"], event["data"]) for event in batch["e"]] == [
        (1, "task.started", {"n": 0}),
        (2, "task.started", {"n": 1}),
    ]


async def test_subscriptions_come_and_go_on_one_connection(start: Start) -> None:
    async with start() as running, running.watch() as client:
        await client.expect("welcome")
        await client.send(t="sub", id=1, s="tasks", types=["task.*"])
        assert (await client.expect("subbed"))["id"] == 1
        await client.expect("live")
        running.publish(1)
        running.publish(1, event_type="agent.started")
        (event,) = await client.events(1)
        assert event["event_type"] == "task.started"
        await client.send(t="unsub", id=2, s="tasks")
        assert await client.expect("ok") == {"t": "ok", "id": 2}
        running.publish(1)
        await client.send(t="ping", id=3)
        assert await client.expect("pong") == {"t": "pong", "id": 3}
        await wait_until_gone(running)


async def test_a_run_gives_its_history_and_ends(start: Start) -> None:
    async with start() as running:
        running.publish(3)
        async with running.watch("?run=A") as client:
            for kind in ("welcome", "subbed"):
                await client.expect(kind)
            assert [event["o"] for event in await client.events(3)] == [1, 2, 3]
            assert (await client.expect("live"))["o"] == 3
            running.publish(1)
            running.bus.close_stream("A")
            assert [event["o"] for event in await client.events(1)] == [4]
            assert await client.expect("end") == {"t": "end", "s": 0, "why": "run-closed", "o": 4, "lost": 0}


async def test_a_watcher_resumes_where_it_was(start: Start) -> None:
    async with start() as running:
        running.publish(1000)
        async with running.watch(f"?types=task.*&since={running.bus.epoch}-400") as client:
            await client.expect("welcome")
            subbed = await client.expect("subbed")
            assert (subbed["from"], subbed["resumed"], subbed["replay"]) == (400, True, 600)
            assert [event["o"] for event in await client.events(600)] == list(range(401, 1001))
            assert (await client.expect("live"))["o"] == 1000


async def test_what_cannot_be_resumed_is_told(start: Start) -> None:
    async with start() as running:
        running.publish(RING_EVENTS + 10)
        async with running.watch(f"?since={running.bus.epoch}-5") as client:
            await client.expect("welcome")
            assert (await client.expect("subbed"))["resumed"] is False
            gap = await client.expect("gap")
            assert (gap["lost"], gap["o0"], gap["o1"], gap["why"]) == (5, 6, 10, "evicted")
            assert (await client.events(1))[0]["o"] == 11
        async with running.watch("?since=other-5") as client:
            await client.expect("welcome")
            assert (await client.expect("subbed"))["resumed"] is False
            assert (await client.expect("gap"))["why"] == "epoch"


async def test_events_are_batched(start: Start) -> None:
    async with start() as running, running.watch("?types=task.*") as client:
        for kind in ("welcome", "subbed", "live"):
            await client.expect(kind)
        running.publish(1000)
        assert [event["o"] for event in await client.events(1000)] == list(range(1, 1001))
        sizes = [frame["n"] for frame in client.seen if frame["t"] == "ev"]
        assert len(sizes) <= 10
        assert max(sizes) <= 256


async def test_a_batch_keeps_its_size_and_a_large_event_comes_alone(start: Start) -> None:
    async with start() as running, running.watch("?types=>") as client:
        for kind in ("welcome", "subbed", "live"):
            await client.expect(kind)
        for size in (10, 40_000, 40_000, 200_000, 10):
            running.bus.publish(Event(event_type="x", data={"text": "x" * size}))
        await client.events(5)
        assert [frame["n"] for frame in client.seen if frame["t"] == "ev"] == [2, 1, 1, 1]


async def test_a_stalled_watcher_costs_nothing_and_learns_how_many_it_missed(start: Start) -> None:
    text = "x" * 10_000
    async with (
        start(config=GatewayConfig(write_deadline=60)) as running,
        running.watch("?types=task.*&queue=100") as client,
        running.watch("?types=last") as other,
    ):
        for kind in ("welcome", "subbed", "live"):
            await client.expect(kind)
            await other.expect(kind)
        # Nobody takes a message, so the sockets fill up, and after them the queue.
        published = 0
        with trio.fail_after(PATIENCE):
            while not running.bus.stats()["dropped_events_total"] > 500:
                for _ in range(50):
                    running.bus.publish(Event(event_type="task.started", data={"text": text}))
                published += 50
                await trio.lowlevel.checkpoint()
        running.bus.publish(Event(event_type="last"))
        assert (await other.events(1))[0]["event_type"] == "last"
        seen = lost = 0
        while seen + lost < published:
            frame = await client.frame()
            if frame["t"] == "gap":
                lost += frame["lost"]
                assert frame["why"] == "overflow"
                assert frame["lost"] == frame["o1"] - frame["o0"] + 1
                assert lost <= frame["total"]
            else:
                seen += frame["n"]
        assert lost == running.bus.stats()["dropped_events_total"] > 500
        assert seen + lost == published


async def test_a_watcher_that_takes_nothing_is_given_up(start: Start) -> None:
    config = GatewayConfig(write_deadline=0.2)
    async with start(config=config) as running, running.watch("?types=task.*") as client:
        for kind in ("welcome", "subbed", "live"):
            await client.expect(kind)
        with trio.fail_after(PATIENCE):
            while running.bus.stats()["subscribers"]:
                for _ in range(10):
                    running.bus.publish(Event(event_type="task.started", data={"text": "x" * 50_000}))
                await trio.sleep(0.01)


async def test_a_watcher_that_leaves_without_a_word_is_forgotten(start: Start) -> None:
    async with start() as running:
        stream = await running.connect()
        await stream.send_all(HANDSHAKE)
        with trio.fail_after(PATIENCE):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
        assert len(running.bus.stats()["subscribers"]) == 1
        await trio.aclose_forcefully(stream)  # no close frame, as from a phone in a tunnel
        await wait_until_gone(running)


async def test_signs_of_life_move_the_resume_point_of_quiet_subscriptions(start: Start) -> None:
    config = GatewayConfig(ping_interval=0.2)
    async with start(config=config) as running, running.watch("?types=agent.*") as client:
        running.publish(7)
        while (await client.frame())["t"] != "live":
            pass
        for _ in range(2):  # a second one comes: the pong of the WebSocket itself was answer enough
            ping = await client.expect("ping")
            assert ping == {"t": "ping", "head": 7, "pos": {"0": 7}, "lost": {"0": 0}, "q": {"0": 0}}
        await client.send(t="ping")
        await client.expect("pong")


async def test_a_watcher_that_answers_no_ping_is_given_up(start: Start) -> None:
    config = GatewayConfig(ping_interval=0.1, pong_deadline=0.2)
    async with start(config=config) as running, await running.connect() as stream:
        await stream.send_all(HANDSHAKE)
        with trio.fail_after(PATIENCE):
            answer = b"".join([data async for data in stream])
        assert answer.startswith(b"HTTP/1.1 101")
        assert b'"t":"ping"' in answer


async def test_the_first_frames_may_come_with_the_handshake(start: Start) -> None:
    mask = b"\0\0\0\0"
    ping = b'{"t":"ping","id":1}'
    sent = HANDSHAKE + b"\x81" + bytes([0x80 | len(ping)]) + mask + ping
    async with start() as running:
        for size in (len(sent), len(HANDSHAKE) + 5, 1):
            answer = b""
            async with await running.connect() as stream:
                for at in range(0, len(sent), size):
                    await stream.send_all(sent[at : at + size])
                with trio.fail_after(PATIENCE):
                    while b'{"t":"pong","id":1}' not in answer:
                        answer += await stream.receive_some()
                    await stream.send_all(b"\x88\x80" + mask)
                    answer += b"".join([data async for data in stream])
            assert answer.endswith(b"\x88\x00")  # the close is answered


@pytest.mark.parametrize(
    ("frame", "code", "words"),
    [
        ({"t": "nonsense", "id": 5}, "bad-frame", "not a frame"),
        ({"t": "sub", "id": 5}, "bad-frame", "missing required field `s`"),
        ({"t": "sub", "id": 5, "s": 1, "types": ["task*"]}, "bad-subscription", "whole tokens"),
        ({"t": "sub", "id": 5, "s": 1, "types": []}, "bad-subscription", "types is empty"),
        ({"t": "sub", "id": 5, "s": 1, "since": "x"}, "bad-subscription", "position"),
        ({"t": "sub", "id": 5, "s": 1, "queue": 0}, "bad-subscription", "capacity"),
        ({"t": "sub", "id": 5, "s": 1, "queue": 10**9}, "bad-subscription", "queue may be at most"),
        ({"t": "sub", "id": 5, "s": 0}, "duplicate", "exists already"),
        ({"t": "unsub", "id": 5, "s": 9}, "unknown", "no subscription 9"),
    ],
)
async def test_a_frame_that_makes_no_sense_gets_an_answer(
    start: Start, frame: dict[str, object], code: str, words: str
) -> None:
    async with start() as running, running.watch("?types=task.*") as client:
        for kind in ("welcome", "subbed", "live"):
            await client.expect(kind)
        await client.send(**frame)
        error = await client.expect("err")
        assert (error["id"], error["code"], error["retry"]) == (5, code, False)
        assert words in error["msg"]
        running.publish(1)
        await client.events(1)


async def test_subscriptions_are_limited(start: Start) -> None:
    async with start(config=GatewayConfig(max_subscriptions=2)) as running, running.watch() as client:
        await client.expect("welcome")
        for number in range(3):
            await client.send(t="sub", id=number, s=number, types=["never"])
        kinds = [(await client.frame())["t"] for _ in range(5)]
        assert sorted(kinds) == ["err", "live", "live", "subbed", "subbed"]
        (error,) = [frame for frame in client.seen if frame["t"] == "err"]
        assert (error["id"], error["code"], error["retry"]) == (2, "limit", True)


async def test_a_message_that_is_too_long_ends_the_connection(start: Start) -> None:
    async with start() as running, running.watch() as client:
        await client.expect("welcome")
        await client.socket.send_message("x" * 70_000)
        assert await closed_with(client) == 1009


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?types=task*", "whole tokens"),
        ("?since=x", "position"),
        ("?run=A&run=B", "more than once"),
        ("?types=a&topics=b", "two names of one thing"),
    ],
)
async def test_a_query_that_makes_no_sense_is_refused_before_the_handshake(
    start: Start, query: str, words: str
) -> None:
    async with start() as running:
        status, why = await running.refused(query)
        assert status == 400
        assert words in why
        assert running.bus.stats()["subscribers"] == []


@pytest.mark.parametrize("offered", ["omniactors.v1.msgpack", "soap, omniactors.v2.json"])
async def test_another_subprotocol_is_refused(start: Start, offered: str) -> None:
    async with start() as running:
        status, why = await running.refused(**{"Sec-WebSocket-Protocol": offered})
        assert status == 400
        assert "use omniactors.v1.json" in why


async def test_our_subprotocol_is_agreed_on(start: Start) -> None:
    async with start() as running, running.watch(subprotocols=["omniactors.v1.json"]) as client:
        assert client.socket.subprotocol == "omniactors.v1.json"
        await client.expect("welcome")


@pytest.mark.parametrize(
    ("part", "instead", "status"),
    [
        (b"Version: 13", b"Version: 8", b"426"),
        (b"Version: 13", b"Version: 13, 13", b"426"),
        (b"Sec-WebSocket-Version", b"X", b"426"),
        (b"Upgrade: websocket", b"X: y", b"426"),
        (b"Upgrade: websocket", b"Upgrade: h2c", b"426"),
        (b"HTTP/1.1", b"HTTP/1.0", b"426"),
        (b"GET", b"HEAD", b"426"),
        (b"GET", b"POST", b"405"),
        (b"AAAA==", b"!", b"400"),
        (b"Connection: Upgrade", b"Connection: close", b"400"),
        (b"Connection: Upgrade", b"Connection: Upgrade\r\nContent-Length: 5", b"400"),
        (b"Connection: Upgrade", b"Connection: Upgrade\r\nTransfer-Encoding: chunked", b"400"),
    ],
)
async def test_a_handshake_that_is_none_is_refused(
    start: Start, caplog: pytest.LogCaptureFixture, part: bytes, instead: bytes, status: bytes
) -> None:
    async with start() as running, await running.connect() as stream:
        await stream.send_all(HANDSHAKE.replace(part, instead))
        with trio.fail_after(PATIENCE):
            answer = (b"".join([data async for data in stream])).lower()
        assert answer.startswith(b"http/1.1 " + status)
        if status == b"426":
            assert b"\r\nsec-websocket-version: 13\r\n" in answer
            assert b"\r\nupgrade: websocket\r\n" in answer
            assert re.search(rb"\r\nconnection: (.*, )?upgrade\b", answer)
        assert (b"\r\nallow: get, head\r\n" in answer) is (status == b"405")
        assert answer.endswith(b"\r\n\r\n") is (part == b"GET" and instead == b"HEAD")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    "head",
    [
        HANDSHAKE.replace(b"Connection: Upgrade", b"connection: keep-alive , UPGRADE"),
        HANDSHAKE.replace(b"Upgrade: websocket", b"UPGRADE: h2c, WebSocket"),
        HANDSHAKE.replace(b"GET /ws", b"GET http://localhost/ws"),
        HANDSHAKE.replace(b"localhost", b"[::1]:8000"),
        HANDSHAKE.replace(b"Connection: Upgrade", b"Connection: Upgrade\r\nContent-Length: 0\r\nX-Odd: \xff\x80"),
        HANDSHAKE.replace(b"Upgrade: ", b"Upgrade:").replace(b"\r\n", b"\n"),
    ],
)
async def test_a_handshake_may_be_written_in_many_ways(start: Start, head: bytes) -> None:
    async with start() as running, await running.connect() as stream:
        await stream.send_all(head)
        with trio.fail_after(PATIENCE):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [(None, True), ("http://evil.example", False), ("null", False), ("own", True), ("http://localhost:1", False)],
)
async def test_pages_of_others_may_not_watch(start: Start, origin: str | None, allowed: bool) -> None:
    async with start() as running:
        if origin == "own":
            origin = f"http://localhost:{running.address.port}"
        if allowed:
            async with running.watch(origin=origin) as client:
                await client.expect("welcome")
            return
        assert origin is not None
        assert (await running.refused(Origin=origin))[0] == 403


async def test_a_token_comes_as_bearer_in_the_query_or_in_hello(start: Start) -> None:
    async with start(token="secret") as running:
        async with running.watch(token="secret") as client:
            await client.expect("welcome")
        async with running.watch("?token=secret&types=task.*") as client:
            await client.expect("welcome")
            await client.expect("subbed")
        async with running.watch("?types=task.*") as client:
            running.publish(1)  # counts from the handshake, told after hello
            await client.send(t="hello", token="secret")
            await client.expect("welcome")
            await client.expect("subbed")
            await client.events(1)


async def test_a_wrong_token_is_refused_before_the_handshake(start: Start) -> None:
    async with start(token="secret") as running:
        assert (await running.refused(Authorization="Bearer wrong"))[0] == 401
        assert (await running.refused("?token=wrong"))[0] == 401


@pytest.mark.parametrize("frame", [{"t": "hello"}, {"t": "hello", "token": "wrong"}, {"t": "sub", "s": 1}, {"x": 1}])
async def test_without_the_token_there_is_one_frame_only(
    start: Start, caplog: pytest.LogCaptureFixture, frame: dict[str, object]
) -> None:
    with caplog.at_level(logging.DEBUG, "omniactors"):
        async with start(token="secret") as running, running.watch("?types=task.*") as client:
            running.publish(1)
            await client.send(**frame)
            bye = await client.expect("bye")
            assert (bye["code"], bye["retry"]) == (4401, None)
            assert await closed_with(client) == 4401
            await wait_until_gone(running)
    assert "wrong" not in caplog.text


async def test_a_hello_that_does_not_come_ends_the_connection(start: Start) -> None:
    config = GatewayConfig(hello_deadline=0.1)
    async with start(token="secret", config=config) as running, running.watch() as client:
        assert (await client.expect("bye"))["code"] == 4408
        assert await closed_with(client) == 4408


async def test_watchers_are_told_bye_when_the_gateway_stops() -> None:
    bus = EventBus()
    config = GatewayConfig(stop_deadline=PATIENCE)
    server = trio.CancelScope()

    async def serving(*, task_status: trio.TaskStatus[GatewayAddress]) -> None:
        with server:
            await serve(bus, config=config, task_status=task_status)

    async with trio.open_nursery() as nursery:
        running = Running(bus, await nursery.start(serving))
        async with running.watch("?types=task.*") as reader, running.watch() as silent:
            stalled = await running.connect()
            await stalled.send_all(b"GET / HT")
            for kind in ("welcome", "subbed", "live"):
                await reader.expect(kind)
            await silent.expect("welcome")
            begun = trio.current_time()
            server.cancel()
            for client in (reader, silent):
                bye = await client.expect("bye")
                assert (bye["code"], bye["retry"]) == (4000, 1.0)
                assert await closed_with(client) == 4000
            with trio.fail_after(PATIENCE):
                assert await stalled.receive_some() == b""
            await stalled.aclose()
    assert trio.current_time() - begun < PATIENCE / 2
    assert bus.stats()["subscribers"] == []


async def test_a_watcher_that_does_not_answer_the_good_bye_holds_nothing_up() -> None:
    bus = EventBus()
    config = GatewayConfig(stop_deadline=0.3)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            address = await nursery.start(lambda task_status: serve(bus, config=config, task_status=task_status))
            stream = await trio.open_tcp_stream("127.0.0.1", address.port)
            await stream.send_all(HANDSHAKE)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)
    assert bus.stats()["subscribers"] == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 100,
        b"\x81\x02{}",  # not masked
        b"\x81\x82\0\0\0\0\xff\xfe",  # text that is no UTF-8
        b"\x83\x80\0\0\0\0",  # an opcode that does not exist
        b"\x89\xfe\x01\x00\0\0\0\0" + b"x" * 256,  # a ping that is too long
        b"\x88\x81\0\0\0\0x",  # a close with half a code
        b"\x80\x80\0\0\0\0",  # a continuation of nothing
        *[random.Random(seed).randbytes(300) for seed in range(20)],
    ],
)
async def test_garbage_on_an_open_socket_ends_it_and_nothing_else(
    start: Start, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    async with start() as running, running.watch("?types=task.*") as other:
        for kind in ("welcome", "subbed", "live"):
            await other.expect(kind)
        async with await running.connect() as stream:
            await stream.send_all(HANDSHAKE + garbage)
            with trio.move_on_after(0.1):  # half a frame may be waited for: then it is we who leave
                async for _ in stream:
                    pass
        running.publish(1)
        await other.events(1)
        with trio.fail_after(PATIENCE):
            while len(running.bus.stats()["subscribers"]) > 1:  # noqa: ASYNC110 -- as above
                await trio.sleep(0.01)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_end_of_the_bus_is_told(start: Start) -> None:
    async with start() as running, running.watch("?types=task.*") as client:
        for kind in ("welcome", "subbed", "live"):
            await client.expect(kind)
        running.publish(2)
        running.bus.close()
        await client.events(2)
        assert (await client.expect("end"))["why"] == "bus-closed"


async def test_fifty_watchers_see_the_same(start: Start) -> None:
    async with start() as running:
        done: list[list[int]] = []
        ready = trio.Event()
        waiting = 50

        async def watch() -> None:
            nonlocal waiting
            async with running.watch("?types=task.*") as client:
                for kind in ("welcome", "subbed", "live"):
                    await client.expect(kind)
                waiting -= 1
                if not waiting:
                    ready.set()
                done.append([event["o"] for event in await client.events(500)])

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(watch)
            await ready.wait()
            running.publish(500)
        assert done == [list(range(1, 501))] * 50


def masked(opcode: int, payload: bytes = b"") -> bytes:
    """One frame of a client."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2)
    return bytes([opcode]) + length + b"\0\0\0\0" + payload


async def close_frame(running: Running, *said: bytes, query: bytes = b"") -> tuple[int, bytes]:
    """The close code and reason that raw frames are answered with."""
    async with await running.connect() as stream:
        await stream.send_all(HANDSHAKE.replace(b"types=task.*", query))
        answer = b""
        with trio.fail_after(PATIENCE):
            for part in said:
                await stream.send_all(part)
                await trio.lowlevel.checkpoint()
            answer += b"".join([data async for data in stream])
    at = answer.rindex(b"\x88")
    return int.from_bytes(answer[at + 2 : at + 4]), answer[at + 4 :]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"\x81\x02{}", 1002),  # not masked
        (b"\x83\x80\0\0\0\0", 1002),  # an opcode that does not exist
        (b"\xc1\x80\0\0\0\0", 1002),  # a reserved bit
        (b"\x80\x80\0\0\0\0", 1002),  # a continuation of nothing
        (b"\x09\x80\0\0\0\0", 1002),  # a ping in parts
        (b"\x89\xfe\x01\x00\0\0\0\0", 1002),  # a ping that is too long
        (b"\x81\xfe\x00\x01\0\0\0\0x", 1002),  # a length that is written too long
        (b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 1002),  # a length that no one has
        (b"\x88\x81\0\0\0\0x", 1002),  # a close with half a code
        (masked(0x88, (1005).to_bytes(2)), 1002),  # a close code that is never sent
        (masked(0x01, b"a") + masked(0x81, b"b"), 1002),  # a message within a message
        (masked(0x81, b"\xff\xfe"), 1007),
        (masked(0x01, b"\xc3") + masked(0x80, b"\x28"), 1007),
        (masked(0x88, (1000).to_bytes(2) + b"\xff"), 1007),
        (masked(0x81, b"x" * 65_000) + masked(0x81, b"x" * 65_000), 1000),  # long but not too long, and then a close
        (b"\x81\xff\0\0\0\0\0\x01\0\x01\0\0\0\0", 1009),
        (masked(0x01, b"x" * 65_000) + masked(0x80, b"x" * 600), 1009),
        (masked(0x01) + masked(0x00) * 100_000, 1009),  # nothing at all, in very many parts
    ],
    ids=range(18),
)
async def test_what_is_wrong_with_a_frame_is_told_in_the_close_code(start: Start, said: bytes, code: int) -> None:
    async with start() as running:
        assert (await close_frame(running, said, *([masked(0x88, (1000).to_bytes(2))] if code == 1000 else [])))[
            0
        ] == code


async def test_messages_may_come_in_parts_with_pings_between(start: Start) -> None:
    text = b'{"t":"ping","id":"' + "ü".encode() * 300 + b'"}'
    parts = [text[at : at + 13] for at in range(0, len(text), 13)]
    said = masked(0x01, parts[0]) + b"".join(masked(0x89, b"?") + masked(0x00, part) for part in parts[1:-1])
    said += masked(0x80, parts[-1])
    async with start() as running, await running.connect() as stream:
        await stream.send_all(HANDSHAKE)
        for at in range(0, len(said), 100):
            await stream.send_all(said[at : at + 100])
        answer = b""
        with trio.fail_after(PATIENCE):
            while b'{"t":"pong","id":"' + "ü".encode() * 300 + b'"}' not in answer:
                answer += await stream.receive_some()


async def test_unfinished_messages_are_bounded_all_together(autojump_clock: trio.testing.MockClock) -> None:
    gateway = make_gateway(EventBus(), None)
    codes: list[int] = []

    async def begin_a_message() -> None:
        answer = await converse(gateway, Talk((HANDSHAKE + masked(0x01, b"x" * 1900),), "wait"))
        at = answer.rindex(b"\x88")
        codes.append(int.from_bytes(answer[at + 2 : at + 4]))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(begin_a_message)
    assert codes == [1013] * 2 + [1011] * 3  # too many at once; the others answered no ping
    assert gateway.statistics() == (0, 0, 0)


@pytest.mark.parametrize(
    "frame",
    [
        {"t": "ping", "id": 10**40},
        {"t": "ping", "id": -(2**63) - 1},
        {"t": "unsub", "id": 1, "s": "x" * 60_000},
        {"t": "sub", "s": 10**40, "types": ["a"]},
        {"t": "sub", "s": "s" * 60_000, "id": "i" * 5000, "types": ["a"]},
        {"t": "hello", "token": "\ud800"},
    ],
)
async def test_odd_names_and_numbers_end_nothing(
    start: Start, caplog: pytest.LogCaptureFixture, frame: dict[str, object]
) -> None:
    async with start() as running, running.watch() as client:
        await client.expect("welcome")
        await client.send(**frame)
        await client.send(t="ping", id="last")
        while (answer := await client.frame()) != {"t": "pong", "id": "last"}:
            assert len(json.dumps(answer)) < 70_000
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_what_one_watcher_asks_for_is_bounded(start: Start) -> None:
    config = GatewayConfig(max_patterns=100, max_text=2000)
    async with start(config=config) as running, running.watch() as client:
        limits = (await client.expect("welcome"))["limits"]
        assert (limits["patterns"], limits["text"]) == (100, 2000)
        await client.send(
            t="sub", id=1, s=1, types=[f"a{number}" for number in range(60)], where={"data.n": 1}, queue=10_000
        )
        assert (await client.expect("subbed"))["id"] == 1
        await client.expect("live")
        for many in (
            {"types": [f"b{number}" for number in range(40)]},
            {"topics": [f"b{number}" for number in range(40)]},
            {"types": ["x"], "where": {f"data.k{number}": number for number in range(5)}},
            {"types": ["x"], "queue": 10_000},
            {"types": ["x" * 2000]},
            {"run": "x" * 2000},
            {"types": ["x"], "where": {"data.k": "x" * 2000}},
        ):
            await client.send(t="sub", id=2, s=2, **many)
            error = await client.expect("err")
            assert (error["id"], error["code"], error["retry"]) == (2, "limit", True)
            assert "in all subscriptions together" in error["msg"]
        await client.send(t="unsub", id=3, s=1)
        await client.expect("ok")
        await client.send(t="sub", id=4, s=2, types=[f"b{number}" for number in range(100)])
        assert (await client.expect("subbed"))["id"] == 4
    async with start(config=config) as running:
        status, why = await running.refused("?types=" + ",".join(f"c{number}" for number in range(101)))
        assert status == 400
        assert "at most 100 patterns" in why


def test_all_that_one_watcher_has_not_read_is_bounded_in_bytes_together() -> None:
    bus, config, size = EventBus(), GatewayConfig(queue_bytes=1024 * 1024), 20_000
    asked = [Sub(s=number, types=[f"t{number}"]) for number in range(config.max_subscriptions)]
    kept = [subscribe(bus, frame, config=config, others=number) for number, frame in enumerate(asked)]
    for number in range(len(kept)):
        for _ in range(config.queue_bytes // size):
            bus.publish(Event(event_type=f"t{number}", data={"text": "x" * size}))
    assert kept[0].queued > 40
    assert all(subscription.queued for subscription in kept)  # one alone always finds room
    assert sum(subscription.queued for subscription in kept) * size < 8 * config.queue_bytes
    assert all(subscription.dropped for subscription in kept[1:])


async def test_nothing_is_subscribed_before_the_token_is_judged(start: Start) -> None:
    async with start(token="secret") as running:
        for query in ("?types=>&queue=16384", "?run=A", "?types=task*"):
            async with running.watch(query):
                await trio.sleep(0.02)
                assert running.bus.stats()["subscribers"] == []


async def test_a_subscription_that_waits_for_its_token_counts_from_the_handshake(start: Start) -> None:
    async with start(token="secret") as running:
        running.publish(3)
        async with running.watch("?types=task.*") as client:
            running.publish(2)
            await client.send(t="hello", token="secret")
            await client.expect("welcome")
            subbed = await client.expect("subbed")
            assert (subbed["from"], subbed["resumed"], subbed["asked"]) == (3, True, None)
            assert [event["o"] for event in await client.events(2)] == [4, 5]
        async with running.watch("?run=A") as client:
            await client.send(t="hello", token="secret")
            for kind in ("welcome", "subbed"):
                await client.expect(kind)
            assert [event["o"] for event in await client.events(5)] == [1, 2, 3, 4, 5]
        async with running.watch("?types=task*") as client:
            await client.send(t="hello", token="secret")
            await client.expect("welcome")
            assert (await client.expect("err"))["code"] == "bad-subscription"


@pytest.mark.parametrize("host", ["::1", "[::1]"])
async def test_ipv6_is_served_as_ipv4_is(start: Start, host: str) -> None:
    async with start(host=host) as running:
        assert running.address.url == f"http://[::1]:{running.address.port}/"
        async with running.http() as client:
            page = await client.get("/")
            assert page.status_code == 200
            own = {"Origin": running.address.url.rstrip("/")}
            assert (await client.post("/", headers=own)).status_code == 405
        # trio-websocket's client writes the address without its brackets into Host.
        async with open_websocket_url(f"ws://[::1]:{running.address.port}/ws?types=task.*") as socket:
            with trio.fail_after(PATIENCE):
                assert json.loads(await socket.get_message())["t"] == "welcome"
