"""No connection ends anything but itself, whatever raises wherever."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from omniactors.events.bus import EventBus
from omniactors.gateway import server
from omniactors.gateway.config import GatewayConfig
from tests.gateway.conftest import HANDSHAKE, PATIENCE
from tests.gateway.test_fuzz import GOOD, Talk, converse, make_gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from tests.gateway.conftest import Running, Start


class Odd(BaseException):
    """An exception of nobody's family, as some libraries have."""


ERRORS = [
    KeyError("as an endpoint may"),
    Odd("as a library may"),
    asyncio.CancelledError(),
    SystemExit(3),
    TimeoutError(),
    BaseExceptionGroup("several", [Odd(), ValueError(), ExceptionGroup("deeper", [KeyError()])]),
    RecursionError(),
    MemoryError(),
]


def raising(error: BaseException, *, midway: bool) -> Route:
    async def endpoint(_: Request) -> Response:
        async def parts() -> AsyncIterator[str]:
            yield "begun"
            await trio.lowlevel.checkpoint()
            raise error

        if midway:
            return StreamingResponse(parts())
        raise error

    return Route("/api/raise", endpoint)


async def ask(running: Running, request: bytes) -> bytes:
    with trio.fail_after(PATIENCE):
        async with await running.connect() as stream:
            await stream.send_all(request)
            return b"".join([data async for data in stream])


RAISE = b"GET /api/raise HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("midway", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_whatever_an_endpoint_raises_the_gateway_goes_on_and_the_log_says_it(
    start: Start, caplog: pytest.LogCaptureFixture, error: BaseException, midway: bool
) -> None:
    async with start(routes=[raising(error, midway=midway)]) as running:
        answer = await ask(running, RAISE)
        assert answer.startswith(b"HTTP/1.1 200" if midway else b"HTTP/1.1 500")
        assert b"200 OK" in await ask(running, GOOD)
    (told,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert told.getMessage() == "the answer to GET /api/raise failed"
    assert told.exc_info is not None


async def test_an_error_that_comes_often_is_told_a_few_times_and_then_counted(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    gateway = make_gateway(EventBus(), None, [raising(KeyError("again"), midway=False)])
    for _ in range(100):
        await converse(gateway, Talk((RAISE,), "finish"))
    assert len(caplog.records) == server.COMPLAINTS
    await trio.sleep(server.COMPLAINTS_PERIOD)
    await converse(gateway, Talk((RAISE,), "finish"))
    assert "95 more" in caplog.records[-1].getMessage()


async def test_a_log_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no space left on device")

    handler = Broken()
    logging.getLogger("omniactors.gateway").addHandler(handler)
    try:
        gateway = make_gateway(EventBus(), None, [raising(KeyError("again"), midway=False)])
        await converse(gateway, Talk((RAISE,), "finish"))
        assert b"200 OK" in await converse(gateway, Talk((GOOD,), "finish"))
    finally:
        logging.getLogger("omniactors.gateway").removeHandler(handler)


async def test_an_interrupt_passes() -> None:
    gateway = make_gateway(EventBus(), None, [raising(KeyboardInterrupt(), midway=False)])
    with pytest.raises(BaseExceptionGroup) as raised:
        await converse(gateway, Talk((RAISE,), "finish"))
    assert raised.value.subgroup(KeyboardInterrupt) is not None


class FailingStream(trio.abc.HalfCloseableStream):
    """A client's stream whose n-th operation fails with something that no stream should raise."""

    def __init__(self, said: bytes, countdown: int, error: BaseException) -> None:
        self.countdown = countdown
        self._said = said
        self._error = error

    async def _count(self) -> None:
        await trio.lowlevel.checkpoint()
        self.countdown -= 1
        if self.countdown == 0:
            raise self._error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await self._count()
        said, self._said = self._said, b""
        return said

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._count()

    async def wait_send_all_might_not_block(self) -> None:
        await self._count()

    async def send_eof(self) -> None:
        await self._count()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "said", [GOOD, RAISE, HANDSHAKE, b"HEAD /ws HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", b"\0"]
)
@pytest.mark.parametrize("error", [OSError(errno.EPIPE, "x"), trio.BrokenResourceError(), RuntimeError("x"), Odd()])
async def test_a_connection_may_fail_at_every_step(
    said: bytes, error: BaseException, autojump_clock: trio.testing.MockClock
) -> None:
    bus = EventBus()
    gateway = make_gateway(bus, None, [raising(KeyError(), midway=True)])
    countdown, stream = 0, None
    while stream is None or stream.countdown <= 0:  # until it was not reached any more
        countdown += 1
        stream = FailingStream(said, countdown, error)
        await gateway.converse(stream)
        assert gateway.statistics() == (0, 0, 0)
        assert bus.stats()["subscribers"] == []
    assert countdown > 2


class ScarceListener(trio.abc.Listener[trio.SocketStream]):
    """A listener whose machine has no files to give, some times."""

    def __init__(self, listener: trio.SocketListener, errors: list[int]) -> None:
        self._listener = listener
        self._errors = errors

    async def accept(self) -> trio.SocketStream:
        if self._errors:
            await trio.lowlevel.checkpoint()
            raise OSError(self._errors.pop(), "as the kernel says")
        return await self._listener.accept()

    async def aclose(self) -> None:
        await self._listener.aclose()


async def test_a_machine_without_files_to_give_is_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ACCEPT_PAUSE", 0.001)
    gateway = make_gateway(EventBus(), None)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run, [ScarceListener(listener, [errno.EMFILE, errno.ENFILE] * 20)])
        with trio.fail_after(PATIENCE):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(GOOD)
                assert b"200 OK" in b"".join([data async for data in stream])
        gateway.stop()
    assert 1 <= len(caplog.records) <= server.COMPLAINTS


async def test_connections_leave_half_of_the_files_to_everybody_else(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8, 8))
    async with start() as running:
        held = [await running.connect() for _ in range(3)]
        answer = await ask(running, GOOD)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"already has its 3 connections" in answer
        for stream in held:
            await stream.aclose()


async def test_those_who_are_too_many_take_none_of_the_other_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (40, 40))
    gateway = make_gateway(EventBus(), None)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    most = told = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run, [listener])
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(60)]
        with trio.move_on_after(PATIENCE):
            for stream in streams[15:]:  # each is told when those before it have heard it
                told += (await stream.receive_some())[9:12] == b"503"
                most = max(most, gateway.statistics()[0])
                await stream.aclose()
        for stream in streams:
            await stream.aclose()
        gateway.stop()
    assert told == 45
    assert most <= 20


async def test_those_who_are_too_many_are_all_told_a_few_at_a_time(start: Start) -> None:
    answers: list[bytes] = []

    async def one(running: Running) -> None:
        answers.append((await ask(running, GOOD))[9:12])

    async with start(config=GatewayConfig(max_connections=2)) as running:
        held = [await running.connect() for _ in range(2)]
        async with trio.open_nursery() as nursery:
            for _ in range(server.SPARE * 3):
                nursery.start_soon(one, running)
        assert answers == [b"503"] * server.SPARE * 3
        for stream in held:
            await stream.aclose()
        with trio.fail_after(PATIENCE):
            while b"200 OK" not in await ask(running, GOOD):
                pass
