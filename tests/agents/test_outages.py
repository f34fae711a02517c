"""An agent that gave up is no silent outage: it is seen, its events go to others, and it comes back."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import redis
import trio
import trio.lowlevel

from omniactors import Agent, AgentError, Backoff, EventEnvelope, OmniActors, Settings, on
from omniactors.agents import runtime
from omniactors.errors import BackendUnusable
from omniactors.settings import MemoryUrl, RedisUrl, SqliteUrl
from tests.agents.support import Watcher, eventually, in_memory, until, watching
from tests.redis_server import RedisServer, fresh_prefix

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Poke:
    pass


class Frail(Agent, topic="frail", name="frail"):
    """Gives up when poked while it is broken."""

    broken = False

    async def handle(self, event: EventEnvelope[int]) -> int:
        return event.payload.content

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        async with trio.open_nursery():  # as most that work in the background have: what is raised comes in a group
            if Frail.broken:
                raise OSError("no disk")
            yield

    @on
    async def poke(self, message: Poke) -> None:
        Frail.broken = True
        raise RuntimeError("poked")


class Steady(Agent, topic="steady", name="steady"):
    async def handle(self, event: EventEnvelope[int]) -> int:
        return event.payload.content


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "AGENT_BACKOFF", Backoff(initial=0.001, maximum=0.01))
    Frail.broken = False


@pytest.fixture(params=["memory", "sqlite", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    match request.param:
        case "memory":
            return Settings(backend=MemoryUrl())
        case "sqlite":
            return Settings(backend=SqliteUrl(tmp_path / "work.db"))
    server: RedisServer = request.getfixturevalue("redis_server")
    return Settings(backend=RedisUrl(server.url, server.url), prefix=fresh_prefix())


async def give_up(omni: OmniActors, watcher: Watcher) -> None:
    before = len(watcher.of("agent.gave_up"))
    await omni.agent_ref("frail").tell(Poke())
    await watcher.wait_for("agent.gave_up", before + 1)


async def test_an_agent_that_gave_up_comes_back_by_itself_and_takes_its_events(settings: Settings) -> None:
    omni = OmniActors(settings=settings)
    omni.add(Frail)
    with trio.fail_after(30):
        async with omni, watching(omni, "agent.*", "router.*") as watcher:
            await give_up(omni, watcher)
            task_id = await omni.publish("frail", 1)
            Frail.broken = False
            assert await omni.wait_result(task_id) == 1
            assert watcher.of("router.resumed")
            assert await omni.wait_result(await omni.publish("frail", 2)) == 2
            assert (await omni.health()).status == "ok"


async def test_a_restart_from_anywhere_brings_it_back_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "CURE", Backoff(initial=3600, maximum=3600))
    omni = OmniActors(settings=settings)
    omni.add(Frail)
    elsewhere = omni if isinstance(settings.backend, MemoryUrl) else OmniActors(settings=settings)
    with trio.fail_after(30):
        async with omni, watching(omni, "agent.*") as watcher:
            assert await elsewhere.agents.restart("frail") == 0
            await give_up(omni, watcher)
            Frail.broken = False
            await eventually(lambda: _is_failing(elsewhere))
            assert await elsewhere.agents.restart("frail") == 1
            assert await omni.wait_result(await omni.publish("frail", 1)) == 1
            await eventually(lambda: _is_well(elsewhere))
        await elsewhere.shutdown()


async def _is_failing(omni: OmniActors) -> bool:
    return (await omni.health()).status == "failing"


async def _is_well(omni: OmniActors) -> bool:
    return (await omni.health()).status == "ok"


async def test_doctor_health_and_runtimes_say_which_agent_gave_up_and_why(settings: Settings) -> None:
    omni = OmniActors(settings=settings)
    omni.add(Frail)
    omni.add(Steady)
    with trio.fail_after(30):
        async with omni, watching(omni, "agent.*") as watcher:
            await give_up(omni, watcher)
            await eventually(lambda: _is_failing(omni))
            health = await omni.health()
            assert health.gave_up == {"frail": "OSError: no disk"}
            assert health.agents == ("frail", "steady")
            (found,) = [finding for finding in await omni.doctor() if finding.check == "agents that gave up"]
            assert found.status == "error"
            assert "frail" in found.message
            assert "OSError: no disk" in found.message
            assert "omniactors agent restart" in found.advice
            assert await omni.wait_result(await omni.publish("steady", 1)) == 1
        assert [finding.status for finding in await omni.doctor() if finding.check == "agents that gave up"] == ["ok"]


async def test_the_pause_between_its_tries_grows_to_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert [runtime.CURE.delay(count, 0.5) for count in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    monkeypatch.setattr(runtime, "CURE", Backoff(initial=0.01, maximum=0.04, jitter=0.0))
    omni = in_memory()
    omni.add(Frail)

    def pauses() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        return [line.split("tried again in ")[1].split(",")[0] for line in lines if "tried again in" in line]

    with trio.fail_after(30):
        async with omni, watching(omni, "agent.*") as watcher:
            await give_up(omni, watcher)
            downs = await watcher.wait_for("agent.down", 4)
            assert [event.data["reason"] for event in downs[:2]] == ["OSError: no disk"] * 2
    assert pauses()[:4] == ["0.01 s", "0.02 s", "0.04 s", "0.04 s"]
    assert "omniactors agent restart frail" in caplog.text


async def test_an_unknown_agent_cannot_be_restarted_and_the_near_name_is_told() -> None:
    omni = in_memory()
    omni.add(Frail)
    async with omni:
        with pytest.raises(AgentError, match=r"no agent 'fral'; there are: frail; did you mean 'frail'\?"):
            await omni.agents.restart("fral")


async def test_agent_restarted_is_sent_when_it_has_restarted() -> None:
    omni = in_memory()
    omni.add(Frail)
    with trio.fail_after(30):
        async with omni, watching(omni, "agent.*", "supervisor.*") as watcher:
            Frail.broken = False
            await omni.agent_ref("frail").tell(Poke())
            await trio.sleep(0.005)
            assert Frail.broken
            assert watcher.of("agent.restarted") == []
            Frail.broken = False
            (event,) = await watcher.wait_for("agent.restarted")
            kinds = [seen.event_type for seen in watcher.seen]
            assert kinds.index("supervisor.child_restart_scheduled") < kinds.index("agent.restarted")
            assert (event.data["agent"], event.data["incarnation"] > 1) == ("frail", True)


async def test_a_store_that_is_unusable_for_a_moment_ends_no_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    omni = in_memory()
    omni.add(Steady)
    backend = omni._backend  # noqa: SLF001 -- no store that can be had refuses only for a moment
    refused: list[str] = []
    is_refusing = True

    def refuse(name: str) -> None:
        real = getattr(backend, name)

        async def call(*arguments: Any) -> Any:
            if is_refusing:
                refused.append(name)
                await trio.lowlevel.checkpoint()
                raise BackendUnusable("redis://here does not accept the user name and password")
            return await real(*arguments)

        monkeypatch.setattr(backend, name, call)

    with trio.fail_after(30):
        async with omni:
            for name in ("fetch", "wait", "settle_many", "release"):
                refuse(name)
            task_id = await omni.publish("steady", 1)
            await until(lambda: len(refused) > 8)
            is_refusing = False
            assert await omni.wait_result(task_id) == 1
    loud = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert any("does not accept the user name and password" in record.getMessage() for record in loud)


async def test_a_store_that_cannot_be_used_at_the_first_start_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    omni = in_memory()
    omni.add(Steady)

    async def refuse(*_: object) -> None:
        raise BackendUnusable("redis://here does not accept the user name and password")

    backend = omni._backend  # noqa: SLF001 -- as above
    monkeypatch.setattr(backend, "report", refuse)
    with trio.fail_after(5), pytest.raises(BackendUnusable, match="user name and password"):
        await omni.run()


async def test_a_rotation_of_the_password_ends_no_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer(tmp_path, password="one") as server:
        omni = OmniActors(settings=Settings(backend=RedisUrl(server.url, "redis://here"), lease=3.0))
        omni.add(Steady)
        with trio.fail_after(40):
            async with omni:
                assert await omni.wait_result(await omni.publish("steady", 1)) == 1
                with redis.Redis(port=server.port, password="one") as client:
                    client.config_set("requirepass", "two")
                    client.client_kill_filter(_type="normal", skipme=True)
                    await until(lambda: "does not accept the user name and password" in caplog.text)
                    await trio.sleep(0.5)
                    client.config_set("requirepass", "one")

                async def is_taken() -> bool:
                    try:
                        return bool(await omni.publish("steady", 2))
                    except BackendUnusable:
                        return False

                await eventually(is_taken)
                assert await omni.wait_result(await omni.publish("steady", 3)) == 3
                assert (await omni.health()).status == "ok"
            wrong = RedisUrl(server.url.replace("one", "two"), "redis://here")
            omni = OmniActors(settings=Settings(backend=wrong))
            omni.add(Steady)
            with pytest.raises(BackendUnusable, match="does not accept the user name and password"):
                await omni.run()


class Sound(Agent, topic="frail", name="frail"):
    """The same agent in another process, where nothing is wrong with it."""

    async def handle(self, event: EventEnvelope[int]) -> str:
        return "elsewhere"


async def test_while_it_is_down_its_events_go_to_others_and_afterwards_it_takes_some_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(settings.backend, MemoryUrl):
        return
    monkeypatch.setattr(runtime, "CURE", Backoff(initial=3600, maximum=3600))
    here, there = OmniActors(settings=settings), OmniActors(settings=settings)
    here.add(Frail)
    there.add(Sound)
    with trio.fail_after(40):
        async with here, watching(here, "agent.*") as watcher:
            await give_up(here, watcher)
            ids = await here.publish_batch([("frail", number) for number in range(20)])
            async with there:
                assert {await there.wait_result(task_id) for task_id in ids} == {"elsewhere"}
            Frail.broken = False
            await eventually(lambda: _is_failing(here))
            assert await here.agents.restart("frail") == 1
            assert await here.wait_result(await here.publish("frail", 7)) == 7
    await there.shutdown()
