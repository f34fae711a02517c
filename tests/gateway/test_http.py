"""Plain HTTP over real sockets: the page, the guard, foreign routes, and clients that behave badly."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import httpx
import pytest
import trio
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from omniactors.errors import GatewayError, SettingsError
from omniactors.events.bus import EventBus
from omniactors.gateway.config import GatewayConfig
from omniactors.gateway.server import serve
from tests.gateway.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from tests.gateway.conftest import Running, Start

HURRIED = GatewayConfig(head_deadline=0.2, body_deadline=0.2, idle_deadline=0.3, max_body=1000)


async def talk(running: Running, *parts: bytes, pause: float = 0.0, finish: bool = False) -> bytes:
    """Send raw bytes, part by part, and read what comes back until the gateway closes."""
    answer = b""
    with trio.fail_after(PATIENCE):
        async with await running.connect() as stream:
            for part in parts:
                await stream.send_all(part)
                await trio.sleep(pause)
            if finish:
                await stream.send_eof()
            async for data in stream:
                answer += data
    return answer


async def trickle(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(b"X-Slow: 1\r\n")
        await trio.sleep(0.05)


async def echo(request: Request) -> Response:
    return Response(await request.body(), headers={"x-method": request.method, "x-query": request.url.query})


async def numbers(_: Request) -> Response:
    async def parts() -> AsyncIterator[str]:
        for number in range(3):
            yield f"{number}\n"
            await trio.lowlevel.checkpoint()

    return StreamingResponse(parts())


async def broken(_: Request) -> Response:
    raise KeyError("as an endpoint may")


async def broken_halfway(_: Request) -> Response:
    async def parts() -> AsyncIterator[str]:
        yield "begun"
        await trio.lowlevel.checkpoint()
        raise KeyError("as a stream may")

    return StreamingResponse(parts(), headers={"content-length": "100"})


ROUTES = [
    Route("/api/echo", echo, methods=["GET", "POST", "DELETE"]),
    Route("/api/numbers", numbers),
    Route("/api/broken", broken),
    Route("/api/halfway", broken_halfway),
]


async def test_the_page_and_its_parts_are_served_from_the_package(start: Start) -> None:
    async with start() as running, running.http() as client:
        page = await client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        for part in ("/static/page.css", "/static/page.js", "/static/icon.svg"):
            assert part in page.text
            assert (await client.get(part)).status_code == 200
        assert "://" not in page.text  # nothing from elsewhere
        assert (await client.get("/nothing")).status_code == 404


async def test_the_page_keeps_strictly_to_itself(start: Start) -> None:
    async with start() as running, running.http() as client:
        page = await client.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert f"connect-src 'self' ws://127.0.0.1:{running.address.port}" in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        for inline in ("<style", "<script>", "onclick=", "style="):
            assert inline not in page.text


async def test_health(start: Start) -> None:
    async with start() as running, running.http() as client:
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.text) == (200, "ok")
        head = await client.head("/healthz")
        assert (head.status_code, head.text, head.headers["content-length"]) == (200, "", "2")


async def test_foreign_routes_live_on_the_same_port(start: Start) -> None:
    async with start(routes=ROUTES) as running, running.http() as client:
        for method in ("GET", "POST", "DELETE"):
            answer = await client.request(method, "/api/echo?a=1", content=b"x" * 5000)
            assert (answer.content, answer.headers["x-method"], answer.headers["x-query"]) == (
                b"x" * 5000,
                method,
                "a=1",
            )
        assert (await client.get("/api/numbers")).text == "0\n1\n2\n"
        assert (await client.put("/api/echo")).status_code == 405


async def test_an_endpoint_that_fails_is_a_500_and_no_more(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "omniactors.gateway"):
        async with start(routes=ROUTES) as running, running.http() as client:
            assert (await client.get("/api/broken")).status_code == 500
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/api/halfway")
            assert (await client.get("/healthz")).status_code == 200
    assert "the answer to GET /api/broken failed" in caplog.text


async def test_a_stream_learns_that_its_client_has_gone(start: Start) -> None:
    ended = trio.Event()

    async def endless(_: Request) -> Response:
        async def parts() -> AsyncIterator[str]:
            try:
                yield "begun"
                await trio.sleep_forever()
            finally:
                ended.set()

        return StreamingResponse(parts())

    async with start(routes=[Route("/api/endless", endless)]) as running:
        answer = b""
        with trio.fail_after(PATIENCE):
            async with await running.connect() as stream:
                await stream.send_all(b"GET /api/endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
                while b"begun" not in answer:
                    answer += await stream.receive_some()
            await ended.wait()


async def test_one_connection_carries_many_requests(start: Start) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with start() as running:
        assert (await talk(running, request * 3 + last)).count(b"200 OK") == 4


async def test_a_head_may_come_byte_by_byte(start: Start) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with start() as running:
        parts = [request[at : at + 1] for at in range(len(request))]
        assert b"200 OK" in await talk(running, *parts)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", b"403"),
        (b"GET /" + b"x" * 200_000, b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 50_000, b"431"),
        (b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n" + b"x" * 9999, b"413"),
        (b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", b"501"),
        (b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabc", b"408"),
        (b"PUT / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\nHost: loc", b"408"),
        (b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n", b"426"),
    ],
)
async def test_bad_requests_are_told_so_in_time(start: Start, sent: bytes, status: bytes) -> None:
    config = HURRIED if status == b"408" else GatewayConfig(max_body=1000)
    async with start(config=config, routes=ROUTES) as running:
        answer = await talk(running, sent)
        assert answer.startswith(b"HTTP/1.1 " + status), answer[:100]
        async with running.http() as client:
            assert (await client.get("/healthz")).text == "ok"


async def test_a_head_that_trickles_in_is_cut_off(start: Start) -> None:
    async with start(config=HURRIED) as running:
        stream = await running.connect()
        begun = trio.current_time()
        with trio.fail_after(PATIENCE):
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            with pytest.raises(trio.BrokenResourceError):
                await trickle(stream)
        assert trio.current_time() - begun >= HURRIED.head_deadline
        await trio.aclose_forcefully(stream)


async def test_a_client_that_says_nothing_is_let_go_without_a_word(start: Start) -> None:
    async with start(config=HURRIED) as running:
        assert await talk(running) == b""
        assert await talk(running, finish=True) == b""


async def test_a_body_is_asked_for_when_the_client_waits_for_that(start: Start) -> None:
    head = (
        b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
        b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    async with start(routes=ROUTES) as running:
        with trio.fail_after(PATIENCE):
            async with await running.connect() as stream:
                await stream.send_all(head)
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 100")
                await stream.send_all(b"abc")
                answer = b"".join([data async for data in stream])
    assert answer.endswith(b"abc")


async def test_too_many_connections_are_told_to_come_back(start: Start) -> None:
    async with start(config=GatewayConfig(max_connections=2)) as running:
        first, second = await running.connect(), await running.connect()
        async with running.http() as client:
            answer = await client.get("/healthz")
            assert answer.status_code == 503
            assert "try again later" in answer.json()["error"]
        await first.aclose()
        await second.aclose()


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, "", 401),
        ({"Authorization": "Bearer secret"}, "", 200),
        ({"Authorization": "Bearer wrong"}, "", 401),
        ({}, "?token=secret", 200),
        ({}, "?token=wrong", 401),
    ],
)
async def test_routes_need_the_token_and_never_log_it(
    start: Start, caplog: pytest.LogCaptureFixture, headers: dict[str, str], query: str, status: int
) -> None:
    with caplog.at_level(logging.DEBUG, "omniactors"):
        async with start(token="secret", routes=ROUTES) as running, running.http(headers=headers) as client:
            answer = await client.get(f"/api/echo{query}")
            assert answer.status_code == status
            if status == 401:
                assert answer.headers["www-authenticate"] == "Bearer"
            assert (await client.get("/")).status_code == 200
            assert (await client.get(f"/api/broken{query}")).status_code in {401, 500}
    assert "secret" not in caplog.text
    assert "wrong" not in caplog.text


async def test_pages_of_others_may_change_nothing(start: Start) -> None:
    async with start(routes=ROUTES) as running, running.http(headers={"Origin": "http://evil.example"}) as client:
        assert (await client.post("/api/echo")).status_code == 403
        assert (await client.delete("/api/echo")).status_code == 403
        own = {"Origin": f"http://localhost:{running.address.port}"}
        assert (await client.post("/api/echo", headers=own)).status_code == 200


async def test_a_busy_port_is_one_sentence(start: Start) -> None:
    async with start() as running:
        port = running.address.port
        with pytest.raises(GatewayError, match=f"cannot listen on 127.0.0.1:{port}: another program has this port"):
            await serve(EventBus(), port=port)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("0.0.0.0", 0, "needs a token: set OMNIACTORS_TOKEN"),  # noqa: S104 -- refused
        ("192.0.2.1", 0, "needs a token"),
        ("", 0, "needs a token"),
        ("127.0.0.1", 70_000, "cannot listen on 127.0.0.1:70000"),
    ],
)
async def test_an_address_that_may_not_be_bound_is_one_sentence(host: str, port: int, words: str) -> None:
    with trio.fail_after(PATIENCE), pytest.raises(GatewayError, match=words):
        await serve(EventBus(), host=host, port=port)


async def test_an_address_of_another_machine_cannot_be_bound_even_with_a_token() -> None:
    with trio.fail_after(PATIENCE), pytest.raises(GatewayError, match=r"cannot listen on 192\.0\.2\.1:0"):
        await serve(EventBus(), host="192.0.2.1", token="secret")


async def test_with_a_token_every_address_may_be_bound(start: Start) -> None:
    async with start(host="0.0.0.0", token="secret") as running, running.http() as client:  # noqa: S104 -- with a token
        assert running.address.url == f"http://127.0.0.1:{running.address.port}/"
        assert (await client.get("/healthz")).text == "ok"


async def test_localhost_binds_one_port(start: Start) -> None:
    async with start(host="localhost") as running:
        assert str(running.address) == running.address.url
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{running.address.url}healthz")).text == "ok"


@pytest.mark.parametrize("names", ["omni.example", ["omni.example:8000"], ["http://omni.example"]])
async def test_a_name_that_is_none_is_refused_at_once(names: list[str]) -> None:
    with trio.fail_after(PATIENCE), pytest.raises(SettingsError, match="allowed_hosts must be"):
        await serve(EventBus(), allowed_hosts=names)


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"GatewayConfig\.max_body must be more than 0"):
        GatewayConfig(max_body=0)


async def test_the_answer_under_way_is_finished_when_the_gateway_stops() -> None:
    entered, go = trio.Event(), trio.Event()

    async def slow(_: Request) -> Response:
        entered.set()
        await go.wait()
        return PlainTextResponse("done")

    async with trio.open_nursery() as clients, trio.open_nursery() as nursery:
        routes = [Route("/slow", slow)]
        address = await nursery.start(lambda task_status: serve(EventBus(), routes=routes, task_status=task_status))
        answers: list[str] = []

        async def ask() -> None:
            async with httpx.AsyncClient(trust_env=False) as client:
                answers.append((await client.get(f"{address.url}slow")).text)

        clients.start_soon(ask)
        with trio.fail_after(PATIENCE):
            await entered.wait()
        nursery.cancel_scope.cancel()
        go.set()
    assert answers == ["done"]
