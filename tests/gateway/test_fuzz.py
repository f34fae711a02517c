"""Anything at all on a connection: the next one is served, and nothing of it is left.

The connections are streams in memory, on a clock that jumps over what a client is waited for; some are real sockets.
"""

from __future__ import annotations

import gc
import logging
import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from omniactors.events.bus import EventBus
from omniactors.gateway.access import Policy
from omniactors.gateway.application import build_application
from omniactors.gateway.bridge import Bridge
from omniactors.gateway.config import GatewayAddress, GatewayConfig
from omniactors.gateway.handover import HandedOverStream
from omniactors.gateway.server import Connections, serve
from omniactors.gateway.watcher import Watcher
from omniactors.gateway.wire import Wire
from tests.gateway.conftest import HANDSHAKE, PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from starlette.requests import Request

End = Literal["finish", "leave", "wait"]
"""What a client does when it has said all: close its side, be gone, or wait for us to close."""

CONFIG = GatewayConfig(max_head=2048, max_body=3000, max_bodies=9000, max_message=2000, max_messages=6000)
GOOD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Talk:
    """One connection: what is sent, part by part, and how it ends."""

    parts: tuple[bytes, ...]
    end: End


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def stream(_: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            yield b"x" * 500

    return StreamingResponse(parts())


ROUTES = [Route("/api/echo", echo, methods=["GET", "POST", "DELETE"]), Route("/api/stream", stream)]


def make_gateway(bus: EventBus, token: str | None, routes: Sequence[Route] = ROUTES) -> Connections:
    """A gateway without a port."""
    address = GatewayAddress("127.0.0.1", 8000, "http://127.0.0.1:8000/")
    policy = Policy(host="127.0.0.1", port=8000, token=token)
    return Connections(bus, Bridge(build_application(policy, routes), policy, address), CONFIG)


async def converse(gateway: Connections, talk: Talk) -> bytes:
    """Have the gateway serve one connection to its end; what it answered."""
    ours, theirs = trio.testing.memory_stream_pair()
    answer = b""

    async def say() -> None:
        try:
            for part in talk.parts:
                await ours.send_all(part)
                await trio.lowlevel.checkpoint()
            if talk.end == "leave":
                await ours.aclose()
            elif talk.end == "finish":
                await ours.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def hear() -> None:
        nonlocal answer
        try:
            while data := await ours.receive_some():
                answer += data
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say)
        nursery.start_soon(hear)
        await gateway.converse(theirs)
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(ours)
    return answer


async def survive(talks: Sequence[Talk], token: str | None) -> None:
    """Serve them all at once, then see that a good client is served, and that nothing is left."""
    bus = EventBus()
    gateway = make_gateway(bus, token)
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        for talk in talks:
            nursery.start_soon(converse, gateway, talk)
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert gateway.statistics() == (0, 0, 0)
    assert bus.stats()["subscribers"] == []
    assert b"200 OK" in await converse(gateway, Talk((GOOD,), "finish"))


class Complaints(logging.Handler):
    """What is logged as more than a matter of course; nothing that a client does is an error of ours."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage() + (record.exc_text or repr(record.exc_info)))


@contextmanager
def no_complaints() -> Iterator[None]:
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(complaints)
    assert complaints.lines == []


def run(talks: Sequence[Talk], token: str | None = None) -> None:
    with no_complaints():
        trio.run(survive, talks, token, clock=trio.testing.MockClock(autojump_threshold=0))


# -- what is said ----------------------------------------------------------------------------------

METHODS = [b"GET", b"HEAD", b"POST", b"DELETE", b"PUT", b"OPTIONS", b"CONNECT", b"TRACE", b"get", b"", b"\x00", b"G T"]
TARGETS = [
    b"/",
    b"/healthz",
    b"/api/echo",
    b"/api/stream",
    b"/ws",
    b"/ws?types=task.*",
    b"/ws?types=>&queue=9&token=secret",
    b"/ws?run=%ff&since=x",
    b"/%77s",
    b"*",
    b"//",
    b"/../..",
    b"/%00%0a%ff",
    b"http://localhost/healthz",
    b"HTTP://[::1]:8000/ws?types=a",
    b"http://evil.example/",
    b"http:///x",
    b"http://[",
    b"localhost:80",
    b"",
    b"/?" + b"a=1&" * 300,
    b"/\xff",
    b"/\x00",
    b"/" + b"x" * 3000,
]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.1 ", b"", b"http/1.1"]
HEADERS = [
    b"Host: localhost",
    b"Host: [::1]:8000",
    b"Host: evil.example",
    b"Host: ",
    b"Host: a, b",
    b"Host : localhost",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length: -1",
    b"Content-Length: 5, 5",
    b"Content-Length: 99999",
    b"Content-Length: " + b"9" * 40,
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: gzip",
    b"Expect: 100-continue",
    b"Expect: nonsense",
    b"Connection: close",
    b"Connection: keep-alive, Upgrade",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Upgrade: h2c, websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Version: 8",
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    b"Sec-WebSocket-Key: x",
    b"Sec-WebSocket-Protocol: omniactors.v1.json",
    b"Sec-WebSocket-Extensions: permessage-deflate",
    b"Origin: http://localhost:8000",
    b"Origin: http://[",
    b"Authorization: Bearer secret",
    b"Authorization: Bearer \xff",
    b" folded",
    b"X: \x00",
    b"X: " + b"y" * 3000,
    b"no colon",
    b"",
]
BODIES = [
    b"",
    b"hello",
    b"hello" * 1000,
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello",
    b"ffffffffffffffffffff\r\n",
    b"0\r\nTrailer: x\r\n\r\n",
    b"-1\r\n\r\n",
    b"1;" + b"x" * 4000,
    b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    GOOD,
    HANDSHAKE,
]
MESSAGES = [
    b'{"t":"sub","s":1,"types":["task.*"]}',
    b'{"t":"sub","s":1}',
    b'{"t":"sub","s":2,"types":["*"],"where":{"data.n":1},"queue":3,"overflow":"close"}',
    b'{"t":"sub","s":3,"types":[' + b",".join(b'"a%d"' % n for n in range(150)) + b"]}",
    b'{"t":"sub","id":' + b"9" * 30 + b',"s":' + b"9" * 30 + b"}",
    b'{"t":"unsub","s":1,"id":"\\ud800"}',
    b'{"t":"ping","id":' + b"1" * 300 + b"}",
    b'{"t":"hello","token":"secret"}',
    b'{"t":"hello","token":"\\ud800"}',
    b"[" * 1500,
    b"\xff\xfe",
    b"",
]


def frame(opcode: int, payload: bytes, *, mask: bool, length: int | None = None) -> bytes:
    """A WebSocket frame; `length` is what it says instead of the truth."""
    size = len(payload) if length is None else length
    flag = 0x80 if mask else 0
    if size < 126:
        head = bytes([opcode, flag | size])
    elif size < 1 << 16:
        head = bytes([opcode, flag | 126]) + size.to_bytes(2)
    else:
        head = bytes([opcode, flag | 127]) + size.to_bytes(8)
    return head + (b"\0\0\0\0" if mask else b"") + payload


requests = st.builds(
    lambda method, target, version, headers, body: (
        b" ".join((method, target, version)) + b"\r\n" + b"".join(line + b"\r\n" for line in headers) + b"\r\n" + body
    ),
    st.sampled_from(METHODS),
    st.sampled_from(TARGETS),
    st.sampled_from(VERSIONS),
    st.lists(st.sampled_from(HEADERS), max_size=7),
    st.sampled_from(BODIES),
)
likely = st.builds(
    lambda method, target, headers, body: (
        method
        + b" "
        + target
        + b" HTTP/1.1\r\nHost: localhost\r\n"
        + b"".join(f + b"\r\n" for f in headers)
        + b"\r\n"
        + body
    ),
    st.sampled_from(METHODS[:5]),
    st.sampled_from(TARGETS[:14]),
    st.lists(st.sampled_from(HEADERS[6:]), max_size=4),
    st.sampled_from(BODIES),
)
frames = st.builds(
    lambda opcode, payload, mask, length: frame(opcode, payload, mask=mask, length=length),
    st.sampled_from([0x81, 0x81, 0x81, 0x01, 0x80, 0x00, 0x82, 0x88, 0x89, 0x8A, 0x09, 0x83, 0xC1, 0xFF]),
    st.sampled_from([*MESSAGES, b"\x03\xe8", b"\x03\xe8bye", b"\x00", b"\x03\xec\xff", b"x" * 130]),
    st.sampled_from([True] * 9 + [False]),
    st.one_of(st.none(), st.none(), st.none(), st.sampled_from([0, 1, 125, 126, 1999, 2001, 65536, 1 << 40, 1 << 63])),
)
watchers = st.builds(
    lambda query, sent: HANDSHAKE.replace(b"types=task.*", query) + b"".join(sent),
    st.sampled_from([b"", b"types=task.*", b"types=task.*&token=secret", b"token=secret", b"token=wrong", b"run=x"]),
    st.lists(frames, max_size=8),
)


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    said = b"".join(draw(st.lists(st.one_of(requests, likely, watchers, st.binary(max_size=40)), max_size=3)))
    if said and draw(st.booleans()):
        at = draw(st.integers(0, len(said) - 1))
        said = said[:at] + draw(st.binary(max_size=3)) + said[at + draw(st.integers(0, 3)) :]
    cuts = sorted(draw(st.lists(st.integers(0, len(said)), max_size=4)))
    parts = tuple(said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True) if a < b)
    return Talk(parts, draw(st.sampled_from(get_args(End))))


# -- the tests -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(talks(), min_size=1, max_size=12), st.sampled_from([None, "secret"]))
def test_whatever_is_said_the_next_client_is_served_and_nothing_is_left(said: list[Talk], token: str | None) -> None:
    run(said, token)


def count_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def count_alive() -> int:
    """How many objects there are that live with a connection."""
    gc.collect()
    return sum(isinstance(item, Wire | HandedOverStream | Watcher) for item in gc.get_objects())


async def break_off(port: int, said: bytes, end: Literal["reset", "finish", "close"]) -> None:
    """A client that gets no further than `said`."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        await stream.send_all(said)
        if end == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif end == "finish":
            await stream.send_eof()
            with trio.fail_after(PATIENCE):
                while await stream.receive_some():
                    pass
    except (trio.BrokenResourceError, OSError):
        pass
    finally:
        await trio.aclose_forcefully(stream)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the files of the process as Linux shows them")
@pytest.mark.parametrize("end", ["reset", "finish", "close"])
async def test_a_client_may_vanish_at_every_byte(end: Literal["reset", "finish", "close"]) -> None:
    post = b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    watch = (
        HANDSHAKE + frame(0x01, b'{"t":"pi', mask=True) + frame(0x80, b'ng"}', mask=True) + frame(0x88, b"", mask=True)
    )
    said = [whole[:at] for whole in (post + GOOD, watch) for at in range(len(whole) + 1)]
    bus = EventBus()
    with no_complaints(), trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            address = await nursery.start(
                lambda task_status: serve(bus, routes=ROUTES, config=CONFIG, task_status=task_status)
            )
            await trio.testing.wait_all_tasks_blocked()
            alive = count_alive()  # of other tests, whose tracebacks are kept
            files, tasks = count_files(), trio.lowlevel.current_statistics().tasks_living
            limit = trio.CapacityLimiter(20)

            async def one(part: bytes) -> None:
                async with limit:
                    await break_off(address.port, part, end)

            async with trio.open_nursery() as clients:
                for part in said:
                    clients.start_soon(one, part)
                clients.start_soon(one, GOOD)
            while trio.lowlevel.current_statistics().tasks_living > tasks:  # noqa: ASYNC110 -- tasks of the gateway's own
                await trio.sleep(0.01)
            assert count_files() == files
            assert count_alive() <= alive
            assert bus.stats()["subscribers"] == []
            nursery.cancel_scope.cancel()
