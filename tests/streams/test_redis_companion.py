"""The companion process that holds a lease on Redis: whatever happens to it, to its parent, or to both."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors.streams.backend import Want
from omniactors.streams.inhand import InHand
from omniactors.streams.redis import companion, lease
from omniactors.streams.redis.backend import RedisBackend
from tests.redis_server import RedisServer, fresh_prefix
from tests.streams.contract_kit import AGENT, TOPIC, fetch, next_fetch, numbered, numbers, serving
from tests.streams.trio_redis_kit import Certificates, tls_forwarder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

LONG = 60.0
"""Seconds of a lease that no test waits for."""

HOLDER = """
import re, sys, time, trio
from omniactors.streams.backend import Want
from omniactors.streams.redis.backend import RedisBackend

async def main(url, prefix, lease, how):
    backend = RedisBackend(url, prefix=prefix, lease=float(lease))
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.serve)
        fetched = await backend.fetch([Want("work", "worker", 100)])
        rows = [backend.in_hand.begin(entry.key) for entry in fetched.entries[:3]]
        backend.in_hand.end(rows[0])
        print("holds", flush=True)
        if how == "compute":
            # One call that keeps the interpreter's lock.
            re.fullmatch("(a+)+", "a" * 60 + "b")
        await trio.sleep_forever()

trio.run(main, *sys.argv[1:])
"""
"""Takes all there is; the first is done, the second and third are being handled, the rest waits."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


class Holder:
    """A process that holds six events, with a companion."""

    def __init__(self, process: trio.Process, server: RedisServer, prefix: str) -> None:
        self.process = process
        self._server = server
        self._prefix = prefix

    @property
    def companion(self) -> int:
        """Its process id."""
        (child,) = children(self.process.pid)
        return child

    def has_lease(self) -> bool:
        return bool(
            self._server.command("EVAL", "return #redis.call('KEYS', ARGV[1])", 0, f"{self._prefix}omni-lease:*")
        )


def children(pid: int) -> list[int]:
    """The companions of a process."""
    ps = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)]
    found = subprocess.run(ps, capture_output=True, text=True, check=False).stdout.splitlines()
    return [int(line.split()[0]) for line in found if "companion.py" in line]


def is_gone(pid: int) -> bool:
    state = subprocess.run(["ps", "-ww", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S607
    return state.stdout.strip()[:1] in ("", "Z")


def ignores_signals(pid: int) -> bool:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    ignored = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")), 16)
    return bool(ignored & 1 << (signal.SIGTERM - 1))


async def until_gone(pid: int) -> None:
    with trio.fail_after(20):
        while not await trio.to_thread.run_sync(is_gone, pid):  # noqa: ASYNC110 -- not our child
            await trio.sleep(0.02)


@asynccontextmanager
async def holding(
    server: RedisServer, prefix: str, *, seconds: float = LONG, how: str = "wait"
) -> AsyncIterator[Holder]:
    publisher = RedisBackend(server.url, prefix=prefix)
    await publisher.create_groups([(TOPIC, AGENT)])
    await publisher.publish(numbered(6))
    await publisher.close()
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", HOLDER, server.url, prefix, str(seconds), how], stdout=subprocess.PIPE, process_group=0
    )
    assert process.stdout is not None
    try:
        with trio.fail_after(30):
            assert await process.stdout.receive_some() in (b"holds", b"holds\n")
        yield Holder(process, server, prefix)
    finally:
        process.kill()
        await process.wait()
        await process.stdout.aclose()


@asynccontextmanager
async def heir(server: RedisServer, prefix: str, *, seconds: float = LONG) -> AsyncIterator[RedisBackend]:
    backend = RedisBackend(server.url, prefix=prefix, lease=seconds)
    with trio.fail_after(50):
        async with serving(backend):
            yield backend
    await backend.close()


async def inherited(backend: RedisBackend) -> list[tuple[int, int]]:
    """Number and crashes of the six events, when all have come."""
    found: list[tuple[int, int]] = []
    while len(found) < 6:
        entries = (await next_fetch(backend, Want(TOPIC, AGENT, 100))).entries
        found += zip(numbers(entries), [entry.crashes for entry in entries], strict=True)
    return sorted(found)


ONLY_BEGUN = [(0, 0), (1, 1), (2, 1), (3, 0), (4, 0), (5, 0)]


async def test_work_of_a_killed_process_comes_back_at_once_and_only_what_had_begun_counts(server: RedisServer) -> None:
    prefix = fresh_prefix()
    async with holding(server, prefix) as holder, heir(server, prefix) as backend:
        beside = holder.companion
        with trio.fail_after(LONG / 3):
            holder.process.kill()
            assert await inherited(backend) == ONLY_BEGUN
        await until_gone(beside)
        assert len(await backend.runtimes()) == 1


async def test_a_signal_to_the_whole_process_group_leaves_the_companion_to_its_task(server: RedisServer) -> None:
    prefix = fresh_prefix()
    async with holding(server, prefix) as holder, heir(server, prefix) as backend:
        with trio.fail_after(LONG / 3):
            os.killpg(holder.process.pid, signal.SIGKILL)
            assert await inherited(backend) == ONLY_BEGUN


async def test_a_companion_that_is_killed_is_replaced_and_its_lease_lives(server: RedisServer) -> None:
    prefix = fresh_prefix()
    async with holding(server, prefix, seconds=6.0) as holder:
        killed = holder.companion
        with trio.fail_after(20):
            while not ignores_signals(killed):  # noqa: ASYNC110 -- it has only just begun
                await trio.sleep(0.02)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(killed, number)
        assert not is_gone(killed)
        os.kill(killed, signal.SIGKILL)
        with trio.fail_after(20):
            while not children(holder.process.pid) or holder.companion == killed:  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert is_gone(killed)
        assert holder.has_lease()
        async with heir(server, prefix) as backend:
            holder.process.kill()
            with trio.fail_after(LONG / 3):
                assert await inherited(backend) == ONLY_BEGUN


async def test_what_is_not_known_after_a_machine_is_gone_makes_suspects_at_most(server: RedisServer) -> None:
    """Process and companion die together, so the lease has to end."""
    prefix = fresh_prefix()
    async with heir(server, prefix, seconds=2.0) as backend:
        async with holding(server, prefix, seconds=2.0) as holder:
            beside = holder.companion
            os.kill(beside, signal.SIGSTOP)
            holder.process.kill()
            await holder.process.wait()
            os.kill(beside, signal.SIGKILL)
        assert await inherited(backend) == [(number, 1) for number in range(6)]


async def test_a_call_that_keeps_the_interpreters_lock_does_not_end_the_lease(server: RedisServer) -> None:
    prefix = fresh_prefix()
    async with (
        holding(server, prefix, seconds=1.5, how="compute") as holder,
        heir(server, prefix, seconds=1.5) as other,
    ):
        for _ in range(10):
            await trio.sleep(0.4)
            assert holder.has_lease()
        assert (await other.fetch([Want(TOPIC, AGENT, 100)])).entries == []
        assert len(await other.runtimes()) == 2


async def test_a_process_that_is_stopped_loses_its_lease(server: RedisServer) -> None:
    prefix = fresh_prefix()
    async with holding(server, prefix, seconds=1.5) as holder, heir(server, prefix, seconds=1.5) as backend:
        holder.process.send_signal(signal.SIGSTOP)
        assert [number for number, _ in await inherited(backend)] == list(range(6))
        holder.process.send_signal(signal.SIGCONT)
        with trio.fail_after(20):
            while len(await backend.runtimes()) < 2:  # noqa: ASYNC110 -- it is another process
                await trio.sleep(0.05)


class TestWellness:
    """Seen from outside: who computes is alive, who sleeps for long is stuck."""

    @pytest.mark.parametrize(
        ("still", "seconds", "state", "is_well"),
        [
            (59.0, 0.0, "S", True),
            (61.0, 0.0, "S", False),
            (61.0, 30.0, "R", True),
            (3599.0, 3000.0, "R", True),
            (3601.0, 3000.0, "R", False),
            (0.0, 0.0, "T", False),
        ],
    )
    def test_what_a_process_does_decides_about_its_lease(
        self, still: float, seconds: float, state: str, is_well: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, tempfile.TemporaryFile() as table:
            in_hand = InHand()
            in_hand.attach(table.fileno())
            parent = companion.Parent(theirs, table.fileno(), os.getppid())
            monkeypatch.setattr(companion, "process_state", lambda _: ("S", 5.0))
            assert parent.is_well(100.0)
            monkeypatch.setattr(companion, "process_state", lambda _: (state, 5.0 + seconds))
            assert parent.is_well(100.0 + still) is is_well
            monkeypatch.setattr(companion, "process_state", lambda _: ("S", 5.0 + seconds))
            in_hand.tick()
            assert parent.is_well(100.0 + still)
            in_hand.detach()


async def test_a_password_is_on_no_command_line_and_nothing_else_is_inherited(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with RedisServer(tmp_path_factory.mktemp("secret"), password="s3cr3t") as server:
        prefix = fresh_prefix()
        async with holding(server, prefix, seconds=3.0) as holder:
            proc = pathlib.Path(f"/proc/{holder.companion}")
            assert b"s3cr3t" not in (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
            descriptors = list((proc / "fd").iterdir())
            assert len(descriptors) <= 8, descriptors
            await trio.sleep(4.0)
            assert holder.has_lease()


@pytest.mark.parametrize("how", ["unix", "tls", "acl"])
async def test_it_reaches_the_server_as_its_parent_does(how: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer(tmp_path, unix_socket="redis.sock"))
        url = server.unix_url
        if how == "tls":
            certificates = Certificates(tmp_path)
            port = await stack.enter_async_context(tls_forwarder(certificates.server, server.port))
            url = f"rediss://localhost:{port}?ssl_ca_certs={certificates.authority}"
        elif how == "acl":
            server.command("ACL", "SETUSER", "ann", "on", ">p%?:@", "~*", "&*", "+@all")
            url = f"redis://ann:p%25%3F%3A%40@127.0.0.1:{server.port}/3"
        backend = RedisBackend(url, lease=1.0)
        async with serving(backend):
            for _ in range(5):
                await trio.sleep(0.5)
                assert len(await backend.runtimes()) == 1
                assert children(os.getpid())
        await backend.close()


async def test_a_stop_in_order_leaves_no_process_behind(server: RedisServer) -> None:
    backend = RedisBackend(server.url, prefix=fresh_prefix(), lease=LONG)
    before = children(os.getpid())
    async with serving(backend):
        assert len(children(os.getpid())) > len(before)
        await backend.publish(numbered(1))
        assert len(await fetch(backend)) == 1
    await backend.close()
    assert set(children(os.getpid())) <= {*before}


async def test_without_an_interpreter_a_thread_renews_the_lease(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/uwsgi")
    monkeypatch.setattr(sys, "exec_prefix", "/nowhere")
    assert lease.find_interpreter() is None
    prefix = fresh_prefix()
    backend = RedisBackend(server.url, prefix=prefix, lease=1.0)
    async with serving(backend):
        for _ in range(5):
            await trio.sleep(0.5)
            assert len(await backend.runtimes()) == 1
    await backend.close()
    assert "so a thread renews the lease" in caplog.text
