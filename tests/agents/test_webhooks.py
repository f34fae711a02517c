"""Webhooks against a real HTTP server on loopback."""

from __future__ import annotations

import http.server
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from omniactors import Agent, EventEnvelope, RetryPolicy, TaskFailed
from tests.agents.support import running, until, watching

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
