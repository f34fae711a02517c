"""What RFC 9110 and 9112 ask of a server, and what is judged before what. Connections in memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from omniactors.events.bus import EventBus
from omniactors.gateway.server import serve
from tests.gateway.test_fuzz import CONFIG, GOOD, Talk, converse, make_gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from omniactors.gateway.config import GatewayAddress

HOST = b"Host: localhost\r\n"


async def scope(request: Request) -> Response:
    told = request.scope
    return JSONResponse(
        {
            "path": told["path"],
            "raw_path": told["raw_path"].decode(),
            "query": told["query_string"].decode(),
            "version": told["http_version"],
            "host": request.headers.get("host"),
            "client": told["client"],
            "body": (await request.body()).decode(),
        }
    )


async def stream(_: Request) -> Response:
    async def parts() -> AsyncIterator[str]:
        yield "some"
        await trio.lowlevel.checkpoint()
        yield "thing"

    return StreamingResponse(parts())


ROUTES = [
    Route("/scope", scope, methods=["GET", "POST"]),
    Route("/scope/{rest:path}", scope, methods=["GET", "POST"]),
    Route("/stream", stream),
]


async def answer(*parts: bytes, token: str | None = None, end: Any = "finish") -> bytes:
    return await converse(make_gateway(EventBus(), token, ROUTES), Talk(parts, end))


def status(said: bytes) -> int:
    return int(said[9:12])


def told(said: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said.partition(b"\r\n\r\n")[2])
    return found


def count(said: bytes) -> int:
    return said.count(b"HTTP/1.1 ")


@pytest.mark.parametrize(
    "lengths",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: Chunked\r\nContent-Length: 0\r\n",
    ],
)
@pytest.mark.parametrize("method", [b"POST", b"GET", b"HEAD"])
async def test_two_lengths_end_the_connection(method: bytes, lengths: bytes) -> None:
    said = await answer(method + b" /scope HTTP/1.1\r\n" + HOST + lengths + b"\r\n0\r\n\r\n" + GOOD)
    assert (status(said), count(said)) == (400, 1)
    assert b"connection: close" in said.lower()


async def test_chunks_over_http_1_0_end_the_connection() -> None:
    said = await answer(b"POST /scope HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GOOD)
    assert (status(said), count(said)) == (400, 1)


@pytest.mark.parametrize(
    ("request_line", "allowed"),
    [
        (b"PUT /", b"GET, HEAD"),
        (b"DELETE /healthz", b"GET, HEAD"),
        (b"PATCH /scope", b"GET, HEAD, POST"),
        (b"BREW /", b"GET"),
    ],
)
async def test_a_method_that_is_not_for_this_address_is_told_which_are(request_line: bytes, allowed: bytes) -> None:
    said = await answer(request_line + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert status(said) == 405
    (line,) = [line for line in said.split(b"\r\n") if line.lower().startswith(b"allow:")]
    assert set(allowed.split(b", ")) <= set(line.partition(b": ")[2].split(b", "))


@pytest.mark.parametrize(
    ("target", "host", "path"),
    [
        (b"http://localhost/scope?a=1", b"evil.example", "/scope"),
        (b"HTTP://LOCALHOST:8000/scope?a=1", b"evil.example", "/scope"),
        (b"https://[::1]/scope?a=1", b"evil.example", "/scope"),
        (b"/scope?a=1", b"localhost", "/scope"),
        (b"/scope/a%20b%2Fc?a=1", b"localhost", "/scope/a b/c"),
        (b"/scope/%C3%BC?a=1", b"localhost", "/scope/\xfc"),
    ],
)
async def test_a_target_may_be_a_path_or_a_whole_url(target: bytes, host: bytes, path: str) -> None:
    said = await answer(b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert status(said) == 200
    found = told(said)
    assert (found["path"], found["query"]) == (path, "a=1")
    assert target.decode().partition("?")[0].endswith(found["raw_path"])
    assert "evil" not in found["host"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://evil.example/scope", 403),  # whatever Host says
        (b"http://localhost", 200),
        (b"http:///scope", 400),
        (b"http://a@localhost/scope", 400),
        (b"ftp://localhost/scope", 400),
        (b"localhost:8000", 400),
        (b"scope", 400),
        (b"*", 404),
    ],
)
async def test_other_targets_are_refused(target: bytes, expected: int) -> None:
    assert status(await answer(b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")) == expected


async def test_an_application_is_told_the_version_and_the_client() -> None:
    assert told(await answer(b"GET /scope HTTP/1.0\r\n" + HOST + b"\r\n"))["version"] == "1.0"

    async def serving(*, task_status: trio.TaskStatus[GatewayAddress]) -> None:
        await serve(EventBus(), routes=ROUTES, task_status=task_status)

    async with trio.open_nursery() as nursery:
        address = await nursery.start(serving)
        async with await trio.open_tcp_stream("127.0.0.1", address.port) as client:
            own = list(client.socket.getsockname())
            await client.send_all(b"GET /scope HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
            assert told(b"".join([data async for data in client]))["client"] == own
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 7, 1000, 1024, 2000, 100_000])
async def test_the_limit_of_a_head_is_the_same_in_whatever_packets_it_comes(excess: int, size: int) -> None:
    head = b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: "
    head += b"x" * (CONFIG.max_head + excess - len(head) - 4) + b"\r\n\r\n"
    for behind in (b"", GOOD, b"x" * 5000):
        sent = head + behind
        said = await answer(*(sent[at : at + size] for at in range(0, len(sent), size)))
        assert status(said) == (431 if excess else 200)
        if behind == GOOD and not excess:
            assert count(said) == 2


@given(st.lists(st.integers(1, 60), max_size=8), st.binary(max_size=200))
def test_requests_in_a_row_are_answered_in_order_in_whatever_packets_they_come(cuts: list[int], body: bytes) -> None:
    text = body.hex().encode()
    post = b"POST /scope HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(text) + text
    chunked = b"POST /scope HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(text)
    chunked = b"GET /scope HTTP/1.1\r\n" + HOST + b"\r\n" if not text else chunked + text + b"\r\n0\r\n\r\n"
    sent = post + b"HEAD /scope HTTP/1.1\r\n" + HOST + b"\r\n" + chunked + GOOD
    parts, at = [], 0
    for cut in cuts:
        parts.append(sent[at : at + cut])
        at += cut
    parts.append(sent[at:])
    said = trio.run(answer, *filter(None, parts))
    assert [block[:3] for block in said.split(b"HTTP/1.1 ")[1:]] == [b"200"] * 4
    assert said.count(b'"body":"' + text + b'"') == 2


async def test_empty_lines_before_a_request_are_passed_over() -> None:
    assert status(await answer(b"\r\n", b"\r", b"\n", b"\r\n" + GOOD)) == 200


@pytest.mark.parametrize("path", [b"/", b"/healthz", b"/scope", b"/stream", b"/nothing", b"/static/page.js"])
async def test_head_is_get_without_its_body(path: bytes, autojump_clock: trio.testing.MockClock) -> None:
    rest = b" " + path + b" HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n"
    got, head = await answer(b"GET" + rest, end="wait"), await answer(b"HEAD" + rest, end="wait")
    assert head == got.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


@pytest.mark.parametrize(
    "request_head",
    [
        b"HEAD /nothing HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        b"HEAD /ws HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"HEAD /" + b"x" * 4000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_a_head_that_is_refused_gets_no_body(request_head: bytes) -> None:
    said = await answer(request_head)
    assert 400 <= status(said) < 500
    assert count(said) == 1
    if len(request_head) < CONFIG.max_head:  # of a longer one nothing is known, the method neither
        assert said.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (b"Host: evil.example\r\n", 403),
        (HOST, 401),
        (HOST + b"Authorization: Bearer wrong\r\n", 401),
        (HOST + b"Authorization: Bearer secret\r\nOrigin: http://evil.example\r\n", 403),
    ],
)
@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
async def test_who_may_not_ask_is_told_before_a_body_is_read(headers: bytes, expected: int, expect: bytes) -> None:
    request = b"POST /scope HTTP/1.1\r\n" + headers + expect + b"Content-Length: 2000\r\n\r\n"
    with trio.fail_after(1):  # the body never comes
        said = await answer(request, token="secret")
    assert (status(said), count(said)) == (expected, 1)
    assert b"connection: close" in said.lower()


async def test_what_is_left_of_a_refused_body_is_no_request() -> None:
    request = b"POST /scope HTTP/1.1\r\nHost: evil.example\r\nContent-Length: %d\r\n\r\n" % len(GOOD)
    assert count(await answer(request + GOOD)) == 1


async def test_who_waits_for_a_go_ahead_gets_it_only_for_a_body_that_may_come() -> None:
    head = b"POST /scope HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: "
    assert (await answer(head + b"5\r\n\r\nhello")).startswith(b"HTTP/1.1 100 ")
    said = await answer(head + b"99999\r\n\r\n")
    assert (status(said), count(said)) == (413, 1)


async def test_a_body_may_not_be_all_chunks_and_no_content() -> None:
    head = b"POST /scope HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    fine, many = b"1\r\nx\r\n" * 900, b"1\r\nx\r\n" * 2000
    assert status(await answer(head + fine + b"0\r\n\r\n")) == 200
    said = await answer(head + many + b"0\r\n\r\n" + GOOD)
    assert (status(said), count(said)) == (413, 1)


async def test_bodies_are_bounded_all_together(autojump_clock: trio.testing.MockClock) -> None:
    gateway = make_gateway(EventBus(), None, ROUTES)
    head = b"POST /scope HTTP/1.1\r\n" + HOST + b"Content-Length: 3000\r\n\r\n"
    answers: list[int] = []

    async def post() -> None:
        answers.append(status(await converse(gateway, Talk((head + b"x" * 2999,), "wait"))))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(post)
    assert sorted(answers) == [408] * 3 + [503] * 7
    assert gateway.statistics() == (0, 0, 0)


@pytest.mark.parametrize("line", [b"Host: localhost", b"Host: [::1]", b"Host: x.example", b"X: y"])
async def test_a_health_checker_may_come_from_anywhere(line: bytes) -> None:
    assert status(await answer(b"GET /healthz HTTP/1.0\r\n" + line + b"\r\n\r\n", token="secret")) == 200
