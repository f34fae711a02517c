"""`watch` against a real WebSocket that speaks the gateway's protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from omniactors.cli.following import Gateway
from omniactors.cli.watch import Place
from omniactors.events.event import Event
from omniactors.gateway.protocol import Bye, Gap, batches, encode_event, write_frame
from tests.cli.command import Finished, into_closed_pipe, omniactors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from tests.cli.conftest import Cli

EVENT = Event(event_type="task.completed", run_id="r", data={"agent": "greeter"}, offset=7, timestamp=1.5)
FRAMES = (
    *batches(0, [encode_event(EVENT)], max_bytes=1000),
    write_frame(Gap(s=0, lost=3, o0=8, o1=10, why="queue full", total=3)),
    write_frame(Bye(code=4000, why="the system stops", retry=1.0)),
)


async def watch(
    folder: Path,
    *arguments: str,
    frames: Sequence[str] = FRAMES,
    start: Callable[..., Finished] = omniactors,
    then: Callable[[WebSocketConnection], Awaitable[object]] = WebSocketConnection.aclose,
    **extra: str,
) -> tuple[Finished, list[str]]:
    """How `watch` ended against a server that sends `frames` and then closes, or does `then`; what it was asked."""
    asked: list[str] = []

    async def serve(request: WebSocketRequest) -> None:
        asked.append(request.path)
        asked.extend(value.decode() for name, value in request.headers if name == b"authorization")
        socket = await request.accept()
        try:
            for frame in frames:
                await socket.send_message(frame)
            await then(socket)
        except ConnectionClosed:
            pass

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, serve, "127.0.0.1", 0, None)
            url = f"http://127.0.0.1:{server.port}"

            def call() -> Finished:
                return start(folder, "watch", "--url", url, *arguments, **extra)

            done = await trio.to_thread.run_sync(call)
            nursery.cancel_scope.cancel()
    return done, asked


async def test_lines_for_people(tmp_path: Path) -> None:
    done, asked = await watch(tmp_path)
    assert done.code == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.endswith(' task.completed       {"agent":"greeter"}')
    assert second.endswith(' bus.gap              {"lost":3,"why":"queue full"}')
    assert "the stream ended: the system stops" in done.stderr
    assert asked == ["/ws?types=%3E"]


async def test_json_is_one_document_a_line(tmp_path: Path) -> None:
    done, _ = await watch(tmp_path, "--format", "json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event_type"] for event in events] == ["task.completed", "bus.gap"]
    assert events[0]["data"] == {"agent": "greeter"}


@pytest.mark.parametrize("layout", ["text", "json"])
async def test_it_ends_quietly_when_nobody_reads_it(tmp_path: Path, layout: str) -> None:
    wait_for_close = WebSocketConnection.get_message
    arguments = ("--format", layout)
    done, _ = await watch(tmp_path, *arguments, frames=FRAMES[:1], start=into_closed_pipe, then=wait_for_close)
    assert done.code == 141
    assert done.stderr.startswith("watching 127.0.0.1:")
    assert done.stderr.count("\n") == 1


async def test_types_run_and_token_travel(tmp_path: Path) -> None:
    arguments = ("--types", "task.*", "--types", "agent.*", "--run", "r")
    _, asked = await watch(tmp_path, *arguments, OMNIACTORS_TOKEN="s3cret")
    assert asked == ["/ws?types=task.%2A%2Cagent.%2A&run=r", "Bearer s3cret"]


async def test_an_event_cannot_steer_the_terminal(tmp_path: Path) -> None:
    evil = Event(event_type="x.\x1b[2J", data={"a": "\x1b]0;title\x07"})
    done, _ = await watch(tmp_path, frames=(*batches(0, [encode_event(evil)], max_bytes=1000), FRAMES[-1]))
    assert "\x1b" not in done.stdout
    assert "\\x1b[2J" in done.stdout


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://[::1]:8765/", Place("::1", 8765, is_tls=False)),
        ("http://[fe80::1%25eth0]:8765/", Place("fe80::1%eth0", 8765, is_tls=False)),
        ("http://[fe80::1%eth0]:8765", Place("fe80::1%eth0", 8765, is_tls=False)),
        ("https://[2001:db8::1]", Place("2001:db8::1", 443, is_tls=True)),
        ("ws://omni.lan", Place("omni.lan", 80, is_tls=False)),
    ],
)
def test_a_url_leads_where_it_says(url: str, place: Place) -> None:
    assert Place.of(Gateway(url)) == place


async def test_a_gateway_that_goes_away_without_a_word_exits_3(tmp_path: Path) -> None:
    done, _ = await watch(tmp_path, frames=FRAMES[:1])
    assert done.code == 3
    assert "went away" in done.stderr
    assert done.stderr.count("Traceback") == 0


@pytest.mark.parametrize(
    ("url", "code"),
    [("http://127.0.0.1:1", 3), ("nothing", 2), ("ftp://host", 2), ("http://[::1", 2), ("http://h:x", 2)],
)
def test_a_url_that_leads_nowhere_is_told_in_a_sentence(cli: Cli, url: str, code: int) -> None:
    done = cli("watch", "--url", url)
    assert (done.code, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
