"""`run --workers N`: real processes that are killed, replaced and stopped while there is work."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors import OmniActors
from omniactors.cli.serving import Stop
from tests.cli.command import COMMAND, Runner, command, environment, omniactors, running, started
from tests.redis_server import fresh_prefix

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.cli.conftest import Cli
    from tests.redis_server import RedisServer

AGENTS = """
import os
import pathlib
import trio
from omniactors import Agent

class Who(Agent, topic="who", name="who"):
    async def handle(self, event):
        await trio.sleep(0.02)
        with open("handled", "a") as file:
            file.write(f"{event.payload.content}\\n")
        return os.getpid()

class Patient(Agent, topic="patient", name="patient"):
    async def handle(self, event):
        pathlib.Path("started").touch()
        while not pathlib.Path("go").exists():
            await trio.sleep(0.02)
        return "finished"
"""

BLOCKED = """
import pathlib
import time
from omniactors import Agent

class Blocked(Agent, topic="blocked", name="blocked"):
    async def handle(self, event):
        pathlib.Path("started").touch()
        time.sleep(1000)
"""

POISON = """
import os
import time
from omniactors import Agent

class Poison(Agent, topic="poison", name="poison"):
    async def handle(self, event):
        if event.payload.content < 0:
            os._exit(9)
        return event.payload.content

class Good(Agent, topic="good", name="good", concurrency=4):
    async def handle(self, event):
        time.sleep(0.01)
        return event.payload.content
"""

TERMINAL = """
import os, pty, sys

pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
text = b""
while b"watch at" not in text:
    text += os.read(terminal, 1000)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
"""Runs a command in a terminal of its own, closes that when the command is ready, and prints its exit code."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "agents.py").write_text(AGENTS)
    return tmp_path


@asynccontextmanager
async def store_of(runner: Runner) -> AsyncIterator[OmniActors]:
    """The runner's store, for publishing faster than commands do."""
    omni = OmniActors(runner.document["store"])
    try:
        yield omni
    finally:
        await omni.shutdown()


def pids(runner: Runner) -> list[int]:
    """The workers that were there when all were ready."""
    return [worker["pid"] for worker in runner.document["workers"]]


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and that nobody has asked about does not."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S607
    return done.stdout.strip()[:1] not in ("", "Z")


async def all_gone(processes: list[int]) -> None:
    """Return when none of them runs; raises trio.TooSlowError."""
    with trio.fail_after(30):
        for pid in processes:
            while await trio.to_thread.run_sync(is_alive, pid):  # noqa: ASYNC110 -- not our child
                await trio.sleep(0.05)


async def wait_for(path: Path) -> None:
    with trio.fail_after(20):
        while not await trio.Path(path).exists():  # noqa: ASYNC110 -- another process makes the file
            await trio.sleep(0.02)


async def results(omni: OmniActors, tasks: list[str]) -> list[int]:
    with trio.fail_after(60):
        return [await omni.wait_result(task) for task in tasks]


async def test_workers_share_the_work_and_stop_in_order(folder: Path) -> None:
    async with running(folder, "agents.py", "--workers", "3") as runner:
        assert len(set(pids(runner))) == 3
        assert runner.document["agents"] == ["patient", "who"]
        async with store_of(runner) as omni:
            assert {runtime.pid for runtime in await omni.runtimes()} == set(pids(runner))
            handled_by = await results(omni, await omni.publish_batch([("who", number) for number in range(60)]))
        assert len(set(handled_by)) > 1
        assert set(handled_by) <= set(pids(runner))
        runner.process.send_signal(signal.SIGTERM)
        assert await runner.ended() == 0
    await all_gone(pids(runner))
    lines = runner.log.read_text().splitlines()
    assert lines[0].startswith("omniactors: sqlite:///")
    assert lines[1] == f"omniactors: 3 workers, each with 2 agents of {folder}/agents.py: patient, who"
    assert lines[2].startswith(f"omniactors: watch at {runner.document['gateway']}")
    assert lines[3:] == ["omniactors: stopping 3 workers", "omniactors: stopped"]


async def test_a_worker_that_is_killed_comes_back_and_nothing_is_lost(folder: Path) -> None:
    async with running(folder, "agents.py", "--workers", "2") as runner:
        async with store_of(runner) as omni:
            tasks = await omni.publish_batch([("who", number) for number in range(100)])
            await wait_for(folder / "handled")
            os.kill(pids(runner)[0], signal.SIGKILL)
            await runner.logged(f"worker 1 (pid {pids(runner)[0]}) was killed by SIGKILL; the next one starts in 0.")
            await runner.logged("has taken its place")
            await results(omni, tasks)
            assert len(await omni.runtimes()) == 2
        runner.process.send_signal(signal.SIGTERM)
        assert await runner.ended() == 0
    assert {int(line) for line in (folder / "handled").read_text().split()} == set(range(100))


async def test_workers_share_a_redis_server_and_inherit_from_one_that_is_killed(
    folder: Path, redis_server: RedisServer
) -> None:
    settings = f"OMNIACTORS_URL={redis_server.url}\nOMNIACTORS_PREFIX={fresh_prefix()}\nOMNIACTORS_LEASE=1\n"
    (folder / ".env").write_text(settings)
    async with running(folder, "agents.py", "--workers", "2") as runner:
        assert runner.document["store"] == redis_server.url
        published = await command(folder, "task", "publish", "-t", "patient", "-c", "1")
        await wait_for(folder / "started")
        (folder / "started").unlink()
        # Whichever has the task, it comes to one that lives.
        for pid in pids(runner):
            os.kill(pid, signal.SIGKILL)
            await runner.logged(f"(pid {pid}) was killed by SIGKILL")
        await wait_for(folder / "started")
        (folder / "go").touch()
        done = await command(folder, "task", "result", "--task-id", published.stdout.strip(), "--wait", "30")
        assert (done.code, done.stdout) == (0, '"finished"\n')
        runner.process.send_signal(signal.SIGTERM)
        assert await runner.ended() == 0


async def test_workers_of_a_parent_that_is_killed_finish_their_tasks_and_end(folder: Path) -> None:
    async with running(folder, "agents.py", "--workers", "2") as runner, store_of(runner) as omni:
        task = await omni.publish("patient", 1)
        await wait_for(folder / "started")
        runner.process.kill()
        await runner.logged("worker 1: the parent process is gone, stopping")
        await runner.logged("worker 2: the parent process is gone, stopping")
        await runner.logged("waiting for 1 running task (patient 1)")
        (folder / "go").touch()
        await all_gone(pids(runner))
        assert await omni.get_result(task) == "finished"
        assert await omni.runtimes() == []


async def test_one_signal_waits_for_running_tasks_and_a_second_one_does_not(folder: Path) -> None:
    async with running(folder, "agents.py", "--workers", "2") as runner, store_of(runner) as omni:
        task = await omni.publish("patient", 1)
        await wait_for(folder / "started")
        runner.process.send_signal(signal.SIGINT)
        await runner.logged("stopping: waiting for 1 running task (patient 1); Ctrl-C again stops at once")
        runner.process.send_signal(signal.SIGINT)
        assert await runner.ended() == 130
        assert await omni.get_result(task) is None
    await all_gone(pids(runner))
    assert runner.log.read_text().endswith("omniactors: stopped at once; unfinished tasks are delivered again\n")
    (folder / "go").touch()
    async with running(folder, "agents.py", "--workers", "2"):
        done = await command(folder, "task", "result", "--task-id", task, "--wait", "20")
    assert (done.code, done.stdout) == (0, '"finished"\n')


async def test_a_stop_that_reaches_the_workers_too_is_still_in_order(folder: Path) -> None:
    """As a service manager does it, which signals every process of a service."""
    async with running(folder, "agents.py", "--workers", "2") as runner, store_of(runner) as omni:
        task = await omni.publish("patient", 1)
        await wait_for(folder / "started")
        for pid in [runner.process.pid, *pids(runner), *pids(runner)]:
            os.kill(pid, signal.SIGTERM)
        await runner.logged("waiting for 1 running task")
        (folder / "go").touch()
        assert await runner.ended() == 0
        assert await omni.get_result(task) == "finished"


async def test_a_third_signal_kills_what_is_blocked(folder: Path) -> None:
    (folder / "agents.py").write_text(BLOCKED)
    async with running(folder, "agents.py", "--workers", "2") as runner:
        async with store_of(runner) as omni:
            await omni.publish("blocked", 1)
        await wait_for(folder / "started")
        for said in ("stopping 2 workers", "stopping at once; a third signal kills what does not end"):
            runner.process.send_signal(signal.SIGINT)
            await runner.logged(said)
        assert runner.process.returncode is None
        runner.process.send_signal(signal.SIGINT)
        assert await runner.ended() == 130
    await all_gone(pids(runner))
    assert runner.log.read_text().count("does not stop, so it is killed") >= 1


async def test_a_rolling_restart_under_load_loses_nothing_and_repeats_nothing(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with running(folder, "agents.py", "--workers", "2", "--listen", f"127.0.0.1:{port}") as runner:
        assert runner.document["gateway"] == f"http://127.0.0.1:{port}/"
        tasks: list[str] = []

        async def publish(omni: OmniActors, scope: trio.CancelScope) -> None:
            with scope:
                while True:
                    tasks.append(await omni.publish("who", len(tasks)))
                    await trio.sleep(0.02)

        async with store_of(runner) as omni, trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(publish, omni, scope)
            await wait_for(folder / "handled")
            runner.process.send_signal(signal.SIGHUP)
            await runner.logged("all workers are replaced")
            scope.cancel()
            fresh = {runtime.pid: runtime.gateway for runtime in await omni.runtimes()}
            assert len(fresh) == 2
            assert not set(fresh) & set(pids(runner))
            assert f"http://127.0.0.1:{port}/" in fresh.values()
            await results(omni, tasks)
        runner.process.send_signal(signal.SIGTERM)
        assert await runner.ended() == 0
    handled = [int(line) for line in (folder / "handled").read_text().split()]
    assert sorted(handled)[: len(tasks)] == list(range(len(tasks)))
    assert "was killed" not in runner.log.read_text()


async def test_a_file_that_breaks_later_does_not_take_the_running_workers_down(folder: Path) -> None:
    async with running(folder, "agents.py", "--workers", "2") as runner:
        (folder / "agents.py").write_text("raise RuntimeError('my own fault')\n")
        runner.process.send_signal(signal.SIGHUP)
        await runner.logged("ended with exit code 1 before it was ready, so nothing more is replaced")
        assert all(is_alive(pid) for pid in pids(runner))
        done = await command(folder, "task", "publish", "-t", "who", "-c", "1", "--wait", "20")
        assert int(done.stdout) in pids(runner)
        runner.process.send_signal(signal.SIGTERM)
        assert await runner.ended() == 0
    assert runner.log.read_text().count("error: agents.py could not be imported: RuntimeError: my own fault") == 1


def test_a_broken_file_is_told_once(folder: Path) -> None:
    (folder / "agents.py").write_text("raise RuntimeError('my own fault')\n")
    alone = omniactors(folder, "run", "agents.py")
    done = omniactors(folder, "run", "agents.py", "--workers", "4")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == f"{alone.stderr}error: the first worker could not start, so no other did\n"


@pytest.mark.parametrize(
    ("target", "sentence"),
    [("none.py", "error: there is no file 'none.py'"), ("agents.py", "memory:// (from OMNIACTORS_URL) is a store")],
)
def test_what_keeps_the_first_worker_from_starting_gives_its_exit_code(
    folder: Path, target: str, sentence: str
) -> None:
    done = omniactors(folder, "run", target, "--workers", "2", OMNIACTORS_URL="memory://")
    assert (done.code, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 2


def test_a_first_worker_that_is_killed_is_told(folder: Path) -> None:
    (folder / "agents.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    done = omniactors(folder, "run", "agents.py", "-w", "2")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: worker 1 (pid ")
    assert done.stderr.endswith("was killed by SIGKILL before it was ready\n")


async def test_workers_that_cannot_start_any_more_are_given_up(folder: Path) -> None:
    (folder / "agents.py").write_text(f"{AGENTS}\nif pathlib.Path('armed').exists():\n    os._exit(7)\n")
    async with running(folder, "agents.py", "--workers", "2") as runner:
        (folder / "armed").touch()
        for pid in pids(runner):
            os.kill(pid, signal.SIGKILL)
        with trio.fail_after(60):
            assert await runner.process.wait() == 1
    last = runner.log.read_text().splitlines()[-1]
    assert last.startswith(
        "error: workers keep dying before they are ready, 11 times in 30 s, so all is given up; the last one: worker "
    )
    assert last.endswith(" ended with exit code 7 before it was ready")


async def test_workers_that_fail_to_start_leave_the_others_at_work(folder: Path) -> None:
    (folder / "agents.py").write_text(f"{AGENTS}\nif pathlib.Path('armed').exists():\n    os._exit(7)\n")
    async with running(folder, "agents.py", "--workers", "2") as runner, store_of(runner) as omni:
        (folder / "armed").touch()
        os.kill(pids(runner)[0], signal.SIGKILL)
        for _ in range(3):
            await runner.logged("ended with exit code 7 before it was ready; the next one starts in")
        assert await results(omni, [await omni.publish("who", 1)]) == [pids(runner)[1]]
        (folder / "armed").unlink()
        await runner.logged("has taken its place")
        runner.process.send_signal(signal.SIGTERM)
        assert await runner.ended() == 0


@pytest.mark.parametrize("poisons", [1, pytest.param(10, marks=pytest.mark.slow)])
async def test_events_that_kill_their_process_never_keep_workers_from_starting_and_take_nobody_along(
    folder: Path, poisons: int
) -> None:
    (folder / "agents.py").write_text(POISON)
    async with OmniActors(f"sqlite:///{folder}/.omniactors/omniactors.db") as omni:
        await omni.publish_batch([("poison", -1 - number) for number in range(poisons)])
        good = await omni.publish_batch([("good", number) for number in range(50)])
        good += await omni.publish_batch([("poison", number) for number in range(20)])
    async with running(folder, "agents.py", "--workers", "2") as runner, store_of(runner) as omni:
        with trio.fail_after(120):
            while len(await omni.streams.dlq("poison", limit=99)) < poisons:  # noqa: ASYNC110 -- no event tells of it
                await trio.sleep(0.1)
        assert await results(omni, good) == [*range(50), *range(20)]
        letters = await omni.streams.dlq("poison", limit=99) + await omni.streams.dlq("good", limit=99)
        assert {(letter.reason, letter.failed_message["content"] < 0) for letter in letters} == {("crash-loop", True)}
        assert len(letters) == poisons
        runner.process.send_signal(signal.SIGTERM)
        assert await runner.ended() == 0
    assert runner.log.read_text().count("ended with exit code 9;") == 5 * poisons


async def test_watch_follows_all_workers_and_those_that_come_later(folder: Path) -> None:
    async with (
        running(folder, "agents.py", "--workers", "2") as runner,
        started(folder, "watch", "--types", "task.completed", "-f", "json") as watch,
    ):
        for worker in runner.document["workers"]:
            await watch.logged(f"watching {worker['gateway'][7:-1]} (pid {worker['pid']})")
        runner.process.send_signal(signal.SIGHUP)
        await runner.logged("all workers are replaced")
        async with store_of(runner) as omni:
            fresh = await omni.runtimes()
            for runtime in fresh:
                await watch.logged(f"(pid {runtime.pid})")
            handled_by = await results(omni, await omni.publish_batch([("who", number) for number in range(60)]))
        assert len(set(handled_by)) == 2
        runner.process.send_signal(signal.SIGTERM)
        assert await runner.ended() == 0
        assert await watch.ended() == 0
        assert watch.process.stdout is not None
        text = b""
        async for part in watch.process.stdout:
            text += part
    assert text.count(b'"task.completed"') == 60
    assert {runtime.consumer for runtime in fresh} == {
        name for name in [runtime.consumer for runtime in fresh] if name.encode() in text
    }


def test_a_terminal_that_is_closed_ends_all(folder: Path) -> None:
    program = folder / "terminal.py"
    program.write_text(TERMINAL)
    done = subprocess.run(
        [*COMMAND[:1], program, *COMMAND, "run", "agents.py", "--workers", "2"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "0\n", done.stderr


@pytest.mark.parametrize("number", ["0", "-1", "257", "two"])
def test_a_number_of_workers_that_cannot_be_is_refused(cli: Cli, number: str) -> None:
    done = cli("run", "x.py", "--workers", number)
    assert (done.code, done.stdout) == (2, "")
    assert "Invalid value for '--workers'" in done.stderr


def test_a_lifeline_that_is_none_is_refused(folder: Path) -> None:
    done = omniactors(folder, "run", "agents.py", "--lifeline", "99")
    assert (done.code, done.stderr) == (2, "error: --lifeline is for workers alone: Bad file descriptor\n")


def test_a_process_that_is_blocked_outlives_its_parent_only_for_so_long() -> None:
    ours, theirs = socket.socketpair()
    program = (
        "import sys, time; from omniactors.cli.lifeline import WorkerEnd;"
        f"end = WorkerEnd({theirs.fileno()}); end.guard(0.2); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [COMMAND[0], "-c", program], env=environment(), pass_fds=(theirs.fileno(),), stdout=subprocess.PIPE
    ) as process:
        theirs.close()
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert process.poll() is None
        ours.close()
        assert process.wait(20) == -signal.SIGKILL


def test_a_hangup_that_a_worker_leaves_to_its_parent_blames_no_event() -> None:
    """It reloads all workers, and an event that was handled at that moment is not what ends one of them."""
    omni = OmniActors("memory://")
    assert signal.SIGHUP in Stop(omni, has_parent=False).endings
    assert set(Stop(omni, has_parent=True).endings) == {signal.SIGINT, signal.SIGTERM}
