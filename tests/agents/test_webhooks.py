"""Webhooks against a real HTTP server on loopback."""

from __future__ import annotations

import base64
import http.server
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from omniactors import Agent, EnvelopeError, EventEnvelope, PayloadBase, RetryPolicy, TaskFailed
from omniactors.agents import webhooks
from tests.agents.support import in_memory, running, until, watching

if TYPE_CHECKING:
    from collections.abc import Iterator


class Receiver(http.server.ThreadingHTTPServer):
    """Takes POSTs and answers with the statuses it was given, 200 when they are used up."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses: list[int] = []
        self.received: list[tuple[dict[str, str], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((dict(self.headers.items()), json.loads(body)))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("location", "/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Doubler(Agent, topic="double", name="doubler", retry=RetryPolicy(max_attempts=1)):
    async def handle(self, event: EventEnvelope[int]) -> int:
        if event.payload.content < 0:
            raise ValueError("too small")
        return 2 * event.payload.content


async def test_a_result_is_posted_with_the_documented_body(receiver: Receiver) -> None:
    async with running(Doubler) as omni, watching(omni, "webhook.*") as watcher:
        task_id = await omni.publish("double", 4, webhook=receiver.url, correlation_id="c", tenant_id="t")
        (delivered,) = await watcher.wait_for("webhook.delivered")
        ((headers, body),) = receiver.received
        assert body.pop("processed_at") > 1_600_000_000
        assert body == {
            "task_id": task_id,
            "topic": "double",
            "agent": "doubler",
            "status": "success",
            "result": 8,
            "error": None,
            "attempts": 1,
            "correlation_id": "c",
            "tenant_id": "t",
        }
        assert headers["content-type"] == "application/json"
        assert headers["webhook-id"]
        assert headers["webhook-timestamp"].isdigit()
        assert (delivered.data["task_id"], delivered.data["status"], delivered.run_id) == (task_id, 200, "c")


async def test_a_dead_lettered_task_is_told_too(receiver: Receiver) -> None:
    async with running(Doubler) as omni:
        task_id = await omni.publish("double", -1, webhook=receiver.url)
        with pytest.raises(TaskFailed):
            await omni.wait_result(task_id)
        await until(lambda: bool(receiver.received))
        ((_, body),) = receiver.received
        assert (body["task_id"], body["status"], body["error"]) == (task_id, "failed", "ValueError: too small")


@pytest.mark.parametrize("status", [500, 404, 302])
async def test_an_answer_outside_2xx_fails_and_is_tried_again_with_the_same_id(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]
    async with running(Doubler) as omni, watching(omni, "webhook.*") as watcher:
        await omni.publish("double", 1, webhook=receiver.url)
        (failed,) = await watcher.wait_for("webhook.failed")
        assert str(status) in failed.data["error"]
        await watcher.wait_for("webhook.delivered")
        first, second = receiver.received
        assert first[0]["webhook-id"] == second[0]["webhook-id"]
        assert first[1] == second[1]


async def test_a_receiver_that_is_not_there_costs_the_task_nothing(receiver: Receiver) -> None:
    gone = receiver.url.replace(str(receiver.server_port), "9")
    async with running(Doubler) as omni, watching(omni, "webhook.*") as watcher:
        assert await omni.wait_result(await omni.publish("double", 1, webhook=gone)) == 2
        (failed,) = await watcher.wait_for("webhook.failed")
        assert "ConnectError" in failed.data["error"]


# -- receivers that mean no good, or have trouble ----------------------------------------------------


class Dripping:
    """Answers with `first`, and then with `drip` again and again, for ever."""

    def __init__(self, first: bytes, drip: bytes, pause: float) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._answer = first, drip, pause
        self.posts = 0
        self.sent = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.posts += 1
            with connection:
                self._drip(connection)

    def _drip(self, connection: socket.socket) -> None:
        first, drip, pause = self._answer
        connection.settimeout(5)
        try:
            connection.recv(65536)
            connection.sendall(first)
            while True:
                connection.sendall(drip)
                self.sent += len(drip)
                time.sleep(pause)
        except OSError:
            return


@pytest.fixture
def dripping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dripping]:
    monkeypatch.setattr(webhooks, "TIMEOUT", 0.4)
    monkeypatch.setattr(webhooks, "BODY_TIME", 0.2)
    receiver = Dripping(*request.param)
    yield receiver
    receiver.close()


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "dripping",
    [
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"5\r\nxxxxx\r\n", 0.01),
        (HEAD + b"content-type: text/event-stream\r\n\r\n", b"." * 100_000, 0),
        (HEAD + b"content-length: 1000000000\r\n\r\n", b".", 0.01),
    ],
    indirect=True,
)
async def test_an_answer_without_end_counts_by_its_status_and_is_not_read(dripping: Dripping) -> None:
    async with running(Doubler) as omni, watching(omni, "webhook.*") as watcher:
        await omni.publish("double", 1, webhook=dripping.url)
        (delivered,) = await watcher.wait_for("webhook.delivered")
        assert delivered.data["status"] == 200
        await until(lambda: not omni.running_tasks()["webhooks"])
    assert dripping.posts == 1
    assert dripping.sent < 30_000_000  # what is read, and what the sockets hold


@pytest.mark.parametrize(
    ("dripping", "why"),
    [
        ((HEAD, b"x-more: yes\r\n", 0.01), "did not answer within 0.4 s"),
        ((HEAD, b"x-more: yes\r\n" * 100, 0.0001), ""),
        ((b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), "did not answer within 0.4 s"),
        ((HEAD[:5], b"", 0.01), "did not answer within 0.4 s"),
    ],
    indirect=["dripping"],
)
async def test_a_receiver_that_drips_its_head_has_failed_when_its_time_is_over(dripping: Dripping, why: str) -> None:
    async with running(Doubler) as omni, watching(omni, "webhook.*") as watcher:
        await omni.publish("double", 1, webhook=dripping.url)
        (failed,) = await watcher.wait_for("webhook.failed")
        assert why in failed.data["error"]
        await until(lambda: not omni.running_tasks()["webhooks"])


@pytest.mark.parametrize("url", ["//u:S@h", "u:S@h", "http:/u:S@h", "ftp://u:S@h", "http://u:S@", b"http://u:S@h"])
def test_a_refused_webhook_is_named_without_its_password(url: Any) -> None:
    secret = "hunter2"
    named: Any = url.replace(b"S", secret.encode()) if isinstance(url, bytes) else url.replace("S", secret)
    with pytest.raises(EnvelopeError, match=r"not \*\*\*@") as refused:
        PayloadBase(content=1, webhook=named)
    assert secret not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///path",
        "https://:443/",
        "ftp://host/x",
        "file:///etc/passwd",
        "host/path",
        "http:host",
        "//host/x",
        "http://host:port/",
        "http://host:99999/",
        "http://host:-1/",
        "http://host:0/",
        "http://ho st/",
        " http://host/",
        "http://host/a b",
        "http://host/\n",
        "http://host\t/",
        "http://[::1/",
        "http://[not:an:address]/",
        "http://999.1.1.1/",
        "http://a..b/",
        "http://-host/",
        "http://" + "a" * 64 + "/",
        "http://" + "a." * 127 + "b/",
        "http://host\\evil/",
        "http://ho<st/",
        "javascript:alert(1)",
        "\ud800",
        b"http://host/",
        5,
    ],
)
async def test_a_webhook_that_nothing_can_be_posted_to_is_refused_at_publish(url: Any) -> None:
    omni = in_memory()
    with pytest.raises(EnvelopeError, match="webhook must be an http:// or https:// URL"):
        await omni.publish("double", 1, webhook=url)
    with pytest.raises(EnvelopeError, match="webhook must be"):
        PayloadBase(content=1, webhook=url)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/hook?x=1#y",
        "https://hooks.example.com/services/T0/B0",
        "http://my_container:80",
        "http://127.0.0.1",
        "http://[::1]:8080/",
        "http://[fe80::1%25eth0]/",
        "https://user:pass@host/",
        "http://bücher.example/",
        "http://host./",
        "HTTP://HOST/",
    ],
)
def test_a_webhook_that_may_be_there_is_taken(url: str) -> None:
    PayloadBase(content=1, webhook=url)


@pytest.mark.parametrize(
    "url", ["http://u:hunter2@ho st/", "http://u:hunter2@h:x/", "ftp://u:hunter2@h/", "http://h:x/?token=hunter2"]
)
def test_the_refusal_of_a_webhook_shows_no_password(url: str) -> None:
    with pytest.raises(EnvelopeError) as refused:
        PayloadBase(content=1, webhook=url)
    assert "hunter2" not in str(refused.value)


async def test_the_password_of_a_webhook_is_used_and_never_shown(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    receiver.statuses = [500]
    url = receiver.url.replace("//", "//bob:hunter2@") + "?token=hunter2"
    async with running(Doubler) as omni, watching(omni, "*.*") as watcher:
        await omni.publish("double", 1, webhook=url)
        await watcher.wait_for("webhook.failed")
        await watcher.wait_for("webhook.delivered")
        done = (await watcher.wait_for("task.completed", 2))[1]
        records = await omni.results.of_task(done.data["task_id"])
    login = base64.b64encode(b"bob:hunter2").decode()
    assert [headers["Authorization"] for headers, _ in receiver.received] == [f"Basic {login}"] * 2
    shown = [repr(watcher.seen), repr(records), caplog.text]
    assert not any("hunter2" in text or login in text for text in shown)
