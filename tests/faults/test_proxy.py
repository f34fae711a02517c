"""The proxy does what it says, seen from both ends of a connection."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests.faults.proxy import SLOW_CLOSE, Proxy, Weather, closed_port, open_mute_port, open_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def echo() -> AsyncIterator[Proxy]:
    """A proxy before a server that sends back what it gets."""

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                async for data in stream:
                    await stream.send_all(data)
            except trio.BrokenResourceError:
                pass

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
            async with open_proxy(listeners[0].socket.getsockname()[1], seed=7) as proxy:
                yield proxy
            nursery.cancel_scope.cancel()


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([data async for data in stream])


async def exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive_some(count - len(data))
    return data


async def test_it_passes_bytes_on_and_counts_them() -> None:
    async with echo() as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        proxy.change(Weather(chunk=3))
        await stream.send_all(b"x" * 10_000)
        await stream.send_eof()
        assert await read_all(stream) == b"x" * 10_000
        assert proxy.passed == {"request": 10_000, "reply": 10_000}
        assert proxy.accepted == 1


@pytest.mark.parametrize("count", [0, 1, 5, 9])
async def test_it_cuts_a_reply_at_a_byte_with_a_fin(count: int) -> None:
    async with echo() as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        cut = proxy.cut_after("reply", count, how="close")
        await stream.send_all(b"0123456789")
        assert await read_all(stream) == b"0123456789"[:count]
        await cut.happened.wait()


async def test_it_cuts_with_a_reset() -> None:
    async with echo() as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        cut = proxy.cut_after("reply", 4)
        await stream.send_all(b"0123456789")
        with pytest.raises(trio.BrokenResourceError):
            await read_all(stream)
        await cut.happened.wait()
        assert proxy.links == 0


async def test_a_cut_request_reaches_the_server_in_part() -> None:
    async with echo() as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        proxy.cut_after("request", 4, how="half")
        await stream.send_all(b"0123456789")
        # The server saw the end of its input after four bytes, answered them and closed.
        assert await read_all(stream) == b"0123"


async def test_a_slow_close_comes_after_silence() -> None:
    async with echo() as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        proxy.cut_after("reply", 4, how="slow")
        began = trio.current_time()
        await stream.send_all(b"0123456789")
        assert await read_all(stream) == b"0123"
        assert trio.current_time() - began >= SLOW_CLOSE


async def test_a_cut_counts_over_connections_and_happens_once() -> None:
    async with echo() as proxy:
        cut = proxy.cut_after("request", 3, how="close")
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as one:
            await one.send_all(b"abc")
            assert await exactly(one, 3) == b"abc"
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as two:
                await two.send_all(b"d")
                assert await read_all(two) == b""
            assert cut.happened.is_set()
            await one.send_all(b"e")
            assert await exactly(one, 1) == b"e"


async def test_it_swallows_and_stalls_and_goes_on() -> None:
    async with echo() as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        proxy.change(Weather(flow="stall"))
        await stream.send_all(b"late")
        with trio.move_on_after(0.05) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        proxy.change(Weather())
        assert await exactly(stream, 4) == b"late"
        proxy.change(Weather(flow="swallow"))
        await stream.send_all(b"gone")
        with trio.move_on_after(0.05) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught


async def test_latency_and_bandwidth() -> None:
    async with echo() as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        proxy.change(Weather(latency=0.02, jitter=0.01, bandwidth=10_000))
        began = trio.current_time()
        await stream.send_all(b"x" * 200)
        await exactly(stream, 200)
        assert trio.current_time() - began >= 2 * (0.02 + 0.02)


async def test_it_cuts_all_and_takes_new_connections() -> None:
    async with echo() as proxy:
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            await stream.send_all(b"a")
            assert await exactly(stream, 1) == b"a"
            assert proxy.cut_all() == 1
            with pytest.raises(trio.BrokenResourceError):
                await read_all(stream)
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            await stream.send_all(b"b")
            assert await exactly(stream, 1) == b"b"


async def test_a_server_that_is_down_is_a_connection_cut_off() -> None:
    async with open_proxy(closed_port()) as proxy:
        stream = await trio.open_tcp_stream("127.0.0.1", proxy.port)
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await read_all(stream)
        await stream.aclose()


async def test_a_mute_port_accepts_and_says_nothing() -> None:
    async with open_mute_port() as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"hello?")
        with trio.move_on_after(0.05) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
