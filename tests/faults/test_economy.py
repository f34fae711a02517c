"""What a system costs Redis: connections, and commands while nothing happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.faults.scene import LONG_LEASE, SLOW, client, open_scene

if TYPE_CHECKING:
    from pathlib import Path

    from tests.redis_server import RedisServer

AGENTS = 1000

PERIOD = 5.0
"""Seconds in which an idle system sends at most one blocking read and two scripts."""

PERIODS = 3 if SLOW else 1


async def overheard(server: RedisServer, seconds: float) -> list[str]:
    """The commands that clients send within so many seconds; what scripts do inside is left out."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(b"MONITOR\r\n")
        told = b""
        with trio.move_on_after(seconds):
            async for data in stream:
                told += data
    lines = told.decode().splitlines()
    assert lines[0] == "+OK"
    # +1795303909.186 [0 127.0.0.1:41810] "EVALSHA" "..."
    return [line.partition("] ")[2] for line in lines[1:] if " lua] " not in line]


async def test_a_thousand_agents_have_four_connections_and_are_quiet(server: RedisServer, tmp_path: Path) -> None:
    own = len(connections(server))
    with open_scene(tmp_path / "scene", server.url, lease=LONG_LEASE) as scene:
        worker = scene.worker("w", copies=AGENTS - 1)
        await scene.up(worker)
        async with client(scene.url) as omni:
            for number in (0, AGENTS // 2, AGENTS - 2):
                with trio.fail_after(10):
                    await omni.wait_result(await omni.publish(f"idle-{number}", {}))
        assert len(connections(server)) - own <= 4
        commands = await overheard(server, PERIOD * PERIODS)
        blocking = [command for command in commands if command.upper().startswith('"XREAD"')]
        scripts = [command for command in commands if command.upper().startswith('"EVAL')]
        others = set(commands) - set(blocking) - set(scripts)
        # A period may begin anywhere: what belongs to its neighbours can fall into it.
        assert len(blocking) <= PERIODS + 1, commands
        assert len(scripts) <= 2 * PERIODS + 1, commands
        assert not others
        assert max(map(len, scripts), default=0) < 10_000, "small scripts: they do not name a thousand agents"
        await scene.stop(worker)
        assert len(connections(server)) == own


def connections(server: RedisServer) -> list[str]:
    """A line for each open connection, the asking one included."""
    lines = server.command("CLIENT", "LIST")
    assert isinstance(lines, (list, bytes, str))
    return [str(line) for line in lines] if isinstance(lines, list) else str(lines).splitlines()
