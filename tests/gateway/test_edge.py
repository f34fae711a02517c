"""The edge of a system: outsiders end nothing, and a gateway or bus that gave up leaves the work running."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio

from omniactors import AgentConfig, Backoff, EventBus, OmniActors, Settings, SettingsError, system
from omniactors.gateway.config import GatewayConfig
from omniactors.gateway.server import serve
from omniactors.settings import MemoryUrl, RedisUrl, SqliteUrl
from tests.agents.support import eventually
from tests.gateway.conftest import PATIENCE
from tests.redis_server import fresh_prefix

if TYPE_CHECKING:
    from pathlib import Path

    from omniactors.streams.backend import Finding
    from tests.redis_server import RedisServer

BAD = b"HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
"""A request whose refusal once ended everything: 47 bytes, no token."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "CURE", Backoff(initial=0.05, maximum=0.1, jitter=0.0))
    monkeypatch.setattr(system, "STEADY", 0.3)
    monkeypatch.setattr(system, "EDGE_BACKOFF", Backoff(initial=0.001, maximum=0.01))


@pytest.fixture(params=["sqlite", "redis"])
def omni(request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer) -> OmniActors:
    if request.param == "redis":
        url = RedisUrl(redis_server.url, redis_server.url)
        return OmniActors(settings=Settings(url, prefix=fresh_prefix()))
    return OmniActors(settings=Settings(SqliteUrl(tmp_path / "work.db")))


async def double(message: dict[str, Any]) -> int:
    return int(message["content"]) * 2


async def works(omni: OmniActors) -> bool:
    return bool(await omni.wait_result(await omni.publish("double", 21)) == 42)


async def gateway_finding(omni: OmniActors) -> Finding:
    (finding,) = [finding for finding in await omni.doctor() if finding.check == "gateway"]
    return finding


async def until_gateway_is(omni: OmniActors, status: str) -> Finding:
    found: list[Finding] = []

    async def is_so() -> bool:
        found.append(await gateway_finding(omni))
        return found[-1].status == status

    await eventually(is_so)
    return found[-1]


class Frail:
    """A gateway, or a bus, that crashes soon after each start while `breaks` is set."""

    def __init__(self) -> None:
        self.breaks = trio.Event()

    async def crash(self) -> None:
        await self.breaks.wait()
        raise OSError("it broke")

    async def start(self, *args: Any, task_status: trio.TaskStatus[Any], **options: Any) -> None:
        """As `serve`, but broken it does not even start again."""
        if self.breaks.is_set():
            raise OSError("it broke")
        await self.serve(*args, task_status=task_status, **options)

    async def serve(self, *args: Any, task_status: trio.TaskStatus[Any], **options: Any) -> None:
        async with trio.open_nursery() as nursery:
            task_status.started(
                await nursery.start(lambda task_status: serve(*args, **options, task_status=task_status))
            )
            await self.crash()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await self.crash()


@pytest.mark.parametrize("part", ["gateway", "its start", "bus"])
async def test_work_goes_on_while_the_gateway_or_the_bus_is_down_and_everybody_is_told(
    omni: OmniActors, part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frail = Frail()
    if part == "bus":
        monkeypatch.setattr(omni.bus, "run", frail.run)
    else:
        monkeypatch.setattr(system, "serve", frail.serve if part == "gateway" else frail.start)
    await omni.register_agent(AgentConfig(name="double", topic="double", callback=double))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(
                lambda task_status: omni.run(listen="127.0.0.1:0", tell=lambda _: None, task_status=task_status)
            )
            frail.breaks.set()
            finding = await until_gateway_is(omni, "error")
            assert "it broke" in finding.message
            assert omni.gateway_url is None
            assert await works(omni)
            health = await omni.health()
            assert health.status == "failing"
            assert "it broke" in health.problem
            frail.breaks = trio.Event()
            await until_gateway_is(omni, "ok")
            assert omni.gateway_url == url  # watchers come back to where they were
            async with httpx.AsyncClient(trust_env=False) as client:
                assert (await client.get(f"{url}healthz")).text == "ok"
            assert (await omni.health()).status == "ok"
            frail.breaks.set()
            await until_gateway_is(omni, "error")
            assert await works(omni)
            assert omni.supervisor.tree().restarts == 0
            nursery.cancel_scope.cancel()
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert told[0].startswith("the gateway is down: OSError: it broke; work goes on")


async def test_a_gateway_that_fails_each_time_is_not_told_as_back(
    omni: OmniActors, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frail = Frail()
    monkeypatch.setattr(system, "serve", frail.serve)  # it starts, and then it breaks
    monkeypatch.setattr(system, "STEADY", 5.0)
    monkeypatch.setattr(system, "EDGE_BACKOFF", Backoff(initial=0.05, maximum=0.05))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(
                lambda task_status: omni.run(listen="127.0.0.1:0", tell=lambda _: None, task_status=task_status)
            )
            frail.breaks.set()
            await until_gateway_is(omni, "error")

            def downs() -> int:
                return sum(record.getMessage().startswith("the gateway is down") for record in caplog.records)

            while downs() < 4:
                assert (await gateway_finding(omni)).status == "error"
                assert (await omni.health()).status == "failing"
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert not [record for record in caplog.records if record.getMessage() == "the gateway is back"]


async def test_a_bus_that_cannot_even_tell_is_cured_all_the_same(
    omni: OmniActors, monkeypatch: pytest.MonkeyPatch
) -> None:
    frail = Frail()
    monkeypatch.setattr(omni.bus, "run", frail.run)

    def fail(_: object) -> None:
        raise RuntimeError("nothing can be published")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(
                lambda task_status: omni.run(listen="127.0.0.1:0", tell=lambda _: None, task_status=task_status)
            )
            monkeypatch.setattr(omni.bus, "publish", fail)
            frail.breaks.set()
            await until_gateway_is(omni, "error")
            frail.breaks = trio.Event()
            await until_gateway_is(omni, "ok")
            assert omni.gateway_url == url
            nursery.cancel_scope.cancel()


async def test_no_number_of_requests_ends_the_system(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    omni = OmniActors("memory://")
    await omni.register_agent(AgentConfig(name="double", topic="double", callback=double))

    async def send(port: int, request: bytes) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request)
            await stream.send_eof()
            with trio.fail_after(PATIENCE):
                assert b"".join([data async for data in stream]).startswith(b"HTTP/1.1 4")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(
                lambda task_status: omni.run(
                    listen="127.0.0.1:0", token="secret", tell=lambda _: None, task_status=task_status
                )
            )
            async with trio.open_nursery() as senders:
                for request in (BAD, BAD.replace(b"x", b"localhost")) * 25:
                    senders.start_soon(send, httpx.URL(url).port or 0, request)
            assert await works(omni)
            assert omni.gateway_url == url
            nursery.cancel_scope.cancel()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_who_stops_the_edge_finds_it_stopped() -> None:
    omni = OmniActors("memory://")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: omni.run(tell=lambda _: None, task_status=task_status))
            await omni.supervisor.stop_child("edge")
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert omni.supervisor.child("edge").status == "stopped"
            nursery.cancel_scope.cancel()


async def test_a_name_with_a_port_is_refused_wherever_it_is_given() -> None:
    for options in ({"config": GatewayConfig(allowed_hosts=("omni.lan:80",))}, {"allowed_hosts": ["omni.lan:80"]}):
        with pytest.raises(SettingsError, match="without port"):
            await serve(EventBus(), **options)


async def test_names_of_its_own_are_a_setting_and_an_argument() -> None:
    async def names(omni: OmniActors, **options: Any) -> list[int]:
        async with trio.open_nursery() as nursery:
            url = await nursery.start(
                lambda task_status: omni.run(
                    listen="127.0.0.1:0", tell=lambda _: None, task_status=task_status, **options
                )
            )
            async with httpx.AsyncClient(trust_env=False) as client:
                hosts = ("omni.lan:8000", "omni-watch", "127.0.0.1", "evil.example")
                found = [(await client.get(url, headers={"host": host})).status_code for host in hosts]
            nursery.cancel_scope.cancel()
        return found

    with trio.fail_after(60):
        omni = OmniActors(settings=Settings(MemoryUrl(), allowed_hosts=("omni.lan",)))
        assert await names(omni) == [200, 403, 200, 403]
        assert await names(omni, allowed_hosts=["OMNI-watch"]) == [403, 200, 200, 403]
        assert await names(omni, allowed_hosts=[]) == [403, 403, 200, 403]
