"""Who is answered: hosts, origins, tokens. Pure rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniactors.gateway.access import Head, Policy, is_loopback, offered_token

LOOPBACK = Policy(host="127.0.0.1", port=8000)
OPEN = Policy(host="0.0.0.0", port=8000, token="secret", allowed_hosts=("omni.example",))  # noqa: S104 -- nothing is bound

BEHIND = Policy(host="::1", port=8000, allowed_hosts=("[fd00::7]", "10.0.0.7", "OMNI.example."))


def head(
    path: str = "/", *, method: str = "GET", query: str = "", host: str | None = "127.0.0.1:8000", **headers: str
) -> Head:
    fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Head(method, path, query, (*([] if host is None else [("host", host)]), *fields))


@pytest.mark.parametrize(
    ("policy", "host", "status"),
    [
        (LOOPBACK, "127.0.0.1:8000", None),
        (LOOPBACK, "127.0.0.1", None),
        (LOOPBACK, "localhost:9999", None),
        (LOOPBACK, "LOCALHOST.:8000", None),
        (LOOPBACK, "[::1]:8000", None),
        (LOOPBACK, "[0:0:0:0:0:0:0:1]:8000", None),
        (LOOPBACK, "[::ffff:127.0.0.1]:8000", None),
        (LOOPBACK, "[::FFFF:7F00:1]", None),
        (LOOPBACK, "[::ffff:10.0.0.1]", 403),
        (LOOPBACK, "[::1%25lo]:8000", None),
        (BEHIND, "[fd00:0:0::7]:8000", None),
        (BEHIND, "[FD00::0007]", None),
        (BEHIND, "[::ffff:10.0.0.7]", None),
        (BEHIND, "omni.example:443", None),
        (BEHIND, "[fd00::8]", 403),
        (LOOPBACK, "app.localhost", None),
        (LOOPBACK, "evil.example:8000", 403),
        (LOOPBACK, "127.0.0.1.evil.example", 403),
        (LOOPBACK, "localhost.evil.example", 403),
        (LOOPBACK, "192.168.0.5", 403),
        (LOOPBACK, "evil@localhost", 400),
        (LOOPBACK, "localhost, evil.example", 400),
        (LOOPBACK, "[", 400),
        (LOOPBACK, "", 400),
        (LOOPBACK, None, 400),
        (LOOPBACK, "localhost:80:80", 400),
        (LOOPBACK, "local host", 400),
        (LOOPBACK, "[localhost]", 400),
        (LOOPBACK, "[::1", 400),
        (LOOPBACK, "[::1]", None),
        (LOOPBACK, "::1:8000", None),  # as trio-websocket's client writes it
        (LOOPBACK, "::1", None),
        (LOOPBACK, "2001:db8::5:8000", 403),
        (LOOPBACK, "[2001:db8::5]:8000", 403),
        (OPEN, "[2001:db8::5]:8000", None),
        (OPEN, "192.168.0.5:8000", None),
        (OPEN, "omni.example", None),
        (OPEN, "evil.example", 403),
    ],
)
def test_a_host_must_be_one_of_ours(policy: Policy, host: str | None, status: int | None) -> None:
    refusal = policy.judge(head(host=host, authorization="Bearer secret"))
    assert (refusal and refusal.status) == status


def test_the_refusal_of_a_name_says_how_to_allow_it() -> None:
    refusal = LOOPBACK.judge(head(host="omni.lan:8000"))
    assert refusal is not None
    assert "'omni.lan'" in refusal.why
    assert "OMNIACTORS_ALLOWED_HOSTS" in refusal.why


@pytest.mark.parametrize("host", ["omni.lan", "10.0.0.7:8000", "", "a b", None])
def test_a_health_checker_needs_no_name_of_ours(host: str | None) -> None:
    assert LOOPBACK.judge(head("/healthz", host=host)) is None
    assert OPEN.judge(head("/healthz", host=host)) is None


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "127.0.0.1:8000", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://localhost:8000", "127.0.0.1:8000", True),
        ("http://localhost:9000", "localhost:9000", True),  # through a tunnel
        ("https://localhost:9000", "localhost:9000", True),
        ("http://localhost:3000", "127.0.0.1:8000", False),  # another program of this machine
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://[::1]:8000", "127.0.0.1:8000", True),
        ("http://[::1]:3000", "[::1]:8000", False),
        ("http://[2001:db8::5]:8000", "[::1]:8000", False),
        ("http://evil.example", "127.0.0.1:8000", False),
        ("http://127.0.0.1:8000.evil.example", "127.0.0.1:8000", False),
        ("null", "127.0.0.1:8000", False),
        ("file://127.0.0.1:8000", "127.0.0.1:8000", False),
        ("http://[", "127.0.0.1:8000", False),
        ("http://127.0.0.1:99999", "127.0.0.1:8000", False),
        ("", "127.0.0.1:8000", False),
    ],
)
def test_an_origin_is_none_or_ours(origin: str | None, host: str, allowed: bool) -> None:
    fields = {} if origin is None else {"origin": origin}
    for request in (head("/ws", host=host, **fields), head("/api/x", method="DELETE", host=host, **fields)):
        assert (LOOPBACK.judge(request) is None) is allowed
    assert LOOPBACK.judge(head("/api/x", host=host, **fields)) is None


def test_an_allowed_name_may_be_an_origin_too() -> None:
    assert OPEN.judge(head("/ws", host="127.0.0.1", origin="https://omni.example")) is None


@pytest.mark.parametrize("path", ["/", "/healthz", "/static/page.js"])
def test_the_page_needs_no_token(path: str) -> None:
    assert OPEN.judge(head(path)) is None


@pytest.mark.parametrize("path", ["/static/", "/static/../api/agents", "/static/page.js/", "//", "/healthz/x"])
def test_what_only_looks_like_the_page_does(path: str) -> None:
    refusal = OPEN.judge(head(path))
    assert refusal is not None
    assert refusal.status == 401


@pytest.mark.parametrize(
    ("fields", "query", "status"),
    [
        ({}, "", 401),
        ({"authorization": "Bearer secret"}, "", None),
        ({"authorization": "bearer  secret "}, "", None),
        ({"authorization": "Bearer wrong"}, "token=secret", 401),
        ({"authorization": "Basic secret"}, "", 401),
        ({}, "token=secret", None),
        ({}, "a=1&token=secret", None),
        ({}, "token=", 401),
        ({}, "token=Secret", 401),
        ({}, "token=s%C3%A9cret", 401),
    ],
)
def test_everything_else_needs_the_token(fields: dict[str, str], query: str, status: int | None) -> None:
    refusal = OPEN.judge(head("/api/agents", query=query, **fields))
    assert (refusal and refusal.status) == status


def test_a_socket_may_bring_its_token_later_but_not_a_wrong_one_now() -> None:
    assert OPEN.judge(head("/ws")) is None
    wrong = OPEN.judge(head("/ws", query="token=wrong"))
    assert wrong is not None
    assert wrong.status == 401
    assert offered_token(head("/ws")) is None


@given(st.text())
def test_only_the_token_is_the_token(text: str) -> None:
    assert OPEN.accepts_token(text) is (text == "secret")
    assert LOOPBACK.accepts_token(text)


def test_half_a_character_is_no_token() -> None:
    assert not OPEN.accepts_token("\ud800")


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_header_makes_the_judge_fail(host: str, origin: str) -> None:
    LOOPBACK.judge(head("/ws", host=host, origin=origin, authorization=origin))
    is_loopback(host)
