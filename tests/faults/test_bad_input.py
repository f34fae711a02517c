"""What is wrong with an address, a login, a server or an event is told in one clear sentence.

From `omniactors run`, `omniactors task publish` and the SDK alike: no secret is shown, nobody is
stormed with connections, and nothing is lost.
"""

from __future__ import annotations

import re
import textwrap
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from omniactors import BackendError, EventTooLarge, StreamFull
from tests.cli.command import COMMAND, Finished, environment
from tests.faults.proxy import closed_port
from tests.faults.scene import client
from tests.faults.strangers import open_stranger
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "hunter2-s3cr3t"

PATIENCE = 40.0
"""Seconds within which everybody has said what is wrong."""

VISITS = 8
"""Connections that one command may make while it finds out."""

AGENTS = """
    from omniactors import Agent, EventEnvelope

    class Greeter(Agent, topic="greet"):
        async def handle(self, event: EventEnvelope[str]) -> str:
            return event.payload.content
"""


async def run_command(folder: Path, url: str, *words: str, **extra: str) -> Finished:
    """A command's end; one that goes on is interrupted once it has said something and had its time."""
    with trio.move_on_after(PATIENCE) as scope:
        done = await trio.run_process(
            [*COMMAND, *words],
            cwd=folder,
            env=environment(OMNIACTORS_URL=url, **extra),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert not scope.cancelled_caught, f"{words[0]} did not end within {PATIENCE} s"
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


def check(finished: Finished, says: str) -> None:
    """Exit code, one sentence, no traceback, no secret."""
    text = finished.stderr
    assert finished.code == 3, (finished.code, text)
    assert finished.stdout == ""
    assert "Traceback" not in text
    assert SECRET not in text
    assert re.search(says, " ".join(text.split())), text
    assert len(text.splitlines()) <= 6, text


async def everybody(folder: Path, url: str, says: str) -> None:
    """Have the runner, the command line and the SDK meet the server at `url`."""
    (folder / "greeter.py").write_text(textwrap.dedent(AGENTS))
    told: list[Finished] = []

    async def note(*words: str) -> None:
        told.append(await run_command(folder, url, *words))

    async def use_sdk() -> None:
        async with client(url) as omni:
            assert SECRET not in repr(omni.settings)
            with pytest.raises(BackendError) as caught, trio.fail_after(PATIENCE):
                await omni.publish("greet", "hello")
        assert SECRET not in f"{caught.value!r} {caught.value}"
        assert re.search(says, str(caught.value)), str(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, "run", "greeter.py")
        nursery.start_soon(note, "task", "publish", "--topic", "greet", "--content", "hello")
        nursery.start_soon(use_sdk)
    for finished in told:
        check(finished, says)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        pytest.param("http", r"(?i)not a? ?redis|no redis", id="http"),
        pytest.param("old", r"too old.*6\.2", id="old"),
    ],
)
async def test_a_server_that_is_not_what_we_need(kind: str, says: str, tmp_path: Path) -> None:
    async with open_stranger(kind) as stranger:
        await everybody(tmp_path, f"redis://:{SECRET}@{stranger.address}/0", says)
        assert stranger.visits <= 3 * VISITS


async def test_a_port_that_says_nothing_and_one_on_which_nobody_listens(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("mute", "closed")]
    for folder in folders:
        folder.mkdir()
    closed = f"redis://:{SECRET}@127.0.0.1:{closed_port()}/0"
    # Both are given some seconds to come back: at the same time.
    async with open_stranger("mute") as stranger:
        mute = f"redis://:{SECRET}@{stranger.address}/0"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(everybody, folders[0], mute, r"did not answer")
            nursery.start_soon(everybody, folders[1], closed, r"(?i)refused")
        assert stranger.visits <= 3 * VISITS


async def test_a_host_that_does_not_exist(tmp_path: Path) -> None:
    await everybody(tmp_path, f"redis://:{SECRET}@no-such-host.invalid/0", r"no-such-host\.invalid")


@contextmanager
def guarded(folder: Path) -> Iterator[RedisServer]:
    """A server with a password, at which logins are counted."""
    with RedisServer(folder / "redis", password="right-password") as server:
        yield server


def connections(server: RedisServer) -> int:
    """How many connections the server has taken so far."""
    with server.sync() as client:
        return int(client.info("stats")["total_connections_received"])


@pytest.mark.parametrize(
    ("login", "says"),
    [
        (f":{SECRET}", r"(?i)password"),
        (f"somebody:{SECRET}", r"(?i)password"),
        ("", r"(?i)password|authentication"),
        ("weak:weak-password", r"(?i)permission|may not"),
    ],
    ids=["wrong password", "unknown user", "no password", "no permission"],
)
async def test_a_login_that_is_refused(login: str, says: str, tmp_path: Path) -> None:
    with guarded(tmp_path) as server:
        server.command("ACL", "SETUSER", "weak", "on", ">weak-password", "~*", "-@all", "+ping", "+info", "+hello")
        before = connections(server)
        await everybody(tmp_path, f"redis://{login}@127.0.0.1:{server.port}/0".replace("//@", "//"), says)
        assert connections(server) - before <= 3 * VISITS


async def test_an_event_over_the_size_limit_is_refused_whole(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = await run_command(
        tmp_path, server.url, "task", "publish", "-t", "greet", "-c", SECRET * 1000, OMNIACTORS_ENTRY_LIMIT="1000"
    )
    assert refused.code == 2
    assert re.search(r"1,000", refused.stderr)
    assert len(refused.stderr.splitlines()) == 1
    assert SECRET not in refused.stderr
    monkeypatch.setenv("OMNIACTORS_ENTRY_LIMIT", "1000")
    async with client(server.url) as omni:
        with pytest.raises(EventTooLarge):
            await omni.publish("greet", "x" * 1000)
        await omni.publish("greet", "x" * 100)
    assert server.command("XLEN", "omni-stream:greet") == 1


async def test_a_full_stream_refuses_with_one_sentence_and_takes_more_when_there_is_room(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIACTORS_STREAM_LIMIT", "5")
    async with client(server.url) as omni:
        for number in range(5):
            await omni.publish("greet", number)
        with pytest.raises(StreamFull) as caught:
            await omni.publish("greet", 5)
        assert caught.value.outcome_known
        refused = await run_command(
            tmp_path, server.url, "task", "publish", "-t", "greet", "-c", "5", OMNIACTORS_STREAM_LIMIT="5"
        )
        assert refused.code == 3
        assert re.fullmatch(r".*is full.*\n", refused.stderr), refused.stderr
        # Whoever wants to wait for room gets it when there is some.
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(omni.publish, "greet", 5, wait_for_room=True))
                await trio.testing.wait_all_tasks_blocked(0.2)
                assert server.command("XLEN", "omni-stream:greet") == 5
                server.command("XTRIM", "omni-stream:greet", "MAXLEN", "4")
    assert server.command("XLEN", "omni-stream:greet") == 5
