"""The watcher of the examples, as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import trio

from omniactors.events.bus import EventBus
from omniactors.events.event import Event
from omniactors.gateway.server import serve
from tests.gateway.conftest import PATIENCE
from tests.source import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from omniactors.gateway.config import GatewayAddress


async def line_with(stream: trio.abc.ReceiveStream, said: bytearray, found: Callable[[bytes], bool]) -> None:
    """Read until what was said fulfils `found`."""
    while not found(bytes(said)):
        said += await stream.receive_some()


async def test_the_watcher_prints_what_happens_and_how_it_ended() -> None:
    bus = EventBus()
    server = trio.CancelScope()
    said = bytearray()

    async def serving(*, task_status: trio.TaskStatus[GatewayAddress]) -> None:
        with server:
            await serve(bus, task_status=task_status)

    with trio.fail_after(3 * PATIENCE):
        async with trio.open_nursery() as nursery:
            address: GatewayAddress = await nursery.start(serving)
            command = [
                sys.executable,
                str(ROOT / "examples" / "watcher.py"),
                f"ws://127.0.0.1:{address.port}/ws?types=task.*",
            ]
            process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            assert process.stdout
            assert process.stderr
            while not bus.stats()["subscribers"]:  # noqa: ASYNC110 -- another process comes when it comes
                await trio.sleep(0.02)
            bus.publish(Event(run_id="A", event_type="task.started", data={"agent": "greeter"}))
            bus.publish(Event(run_id="A", event_type="agent.started"))
            await line_with(process.stdout, said, lambda text: b"\n" in text)
            assert bytes(said) == b'1 task.started A {"agent": "greeter"}\n'
            server.cancel()
            async with process.stdout, process.stderr:
                error = b"".join([part async for part in process.stderr])
            assert await process.wait() == 1
            assert b"the gateway has closed: the gateway is stopping" in error
