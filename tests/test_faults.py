"""What survives kill -9, Ctrl-C and forgetfulness: real processes on one file."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors import OmniActors, TaskFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TASKS = 2000

RUNNER = """
    import sys, trio
    from omniactors import Agent, EventEnvelope, OmniActors

    omni = OmniActors(sys.argv[1])

    class Square(Agent, topic="square", concurrency=8):
        async def handle(self, event: EventEnvelope[int]) -> int:
            with open(sys.argv[2], "a") as log:
                log.write(f"{event.payload.content}\\n")
            await trio.sleep(0.001)
            return event.payload.content ** 2

    omni.add(Square, name="square")
    trio.run(omni.run)
"""

PUBLISHER = """
    import sys, trio
    from omniactors import OmniActors, TaskFailed

    async def main():
        omni = OmniActors(sys.argv[1])
        number = 0
        while True:
            task_id = f"{sys.argv[2]}-{number}"
            await omni.publish("square", number, task_id=task_id)
            print(task_id, flush=True)
            number += 1

    trio.run(main)
"""


ERRORS = "stderr.txt"
"""What the programs of a test write to their stderr, in the test's folder."""


started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    """A test that fails leaves none of its programs behind."""
    yield
    while started:
        kill(started.pop())


def start(code: str, *args: object, folder: Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    with (folder / ERRORS).open("a") as errors:
        process: subprocess.Popen[str] = subprocess.Popen(command, cwd=folder, stderr=errors, text=True, **options)  # type: ignore[call-overload]
    started.append(process)
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def wait_for_lines(path: Path, count: int, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while len(lines(path)) < count:
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def integrity(file: Path) -> str:
    connection = sqlite3.connect(file)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


async def finish(url: str, task_ids: list[str]) -> list[object]:
    """The results of all tasks; waits for those that are still being worked on."""
    omni = OmniActors(url)
    with trio.fail_after(60):
        results = [await omni.wait_result(task_id) for task_id in task_ids]
    await omni.shutdown()
    return results


async def publish_all(url: str) -> list[str]:
    omni = OmniActors(url)
    ids = await omni.publish_batch([("square", number) for number in range(TASKS)])
    await omni.shutdown()
    return ids


def test_kill_9_of_the_runner_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    file, log = tmp_path / "work.db", tmp_path / "handled.log"
    url = f"sqlite:///{file}"
    ids = trio.run(publish_all, url)
    for part in (1, 2):
        runner = start(RUNNER, url, log, folder=tmp_path)
        wait_for_lines(log, part * TASKS // 4)
        kill(runner)
    runner = start(RUNNER, url, log, folder=tmp_path)
    results = trio.run(finish, url, ids)
    kill(runner)
    assert results == [number**2 for number in range(TASKS)]
    # What was settled is never repeated: a kill costs at most what was in memory at that moment.
    assert TASKS <= len(lines(log)) <= TASKS + 2 * 128
    assert integrity(file) == "ok"


def test_publishers_killed_at_random_beside_a_runner_leave_a_sound_file(tmp_path: Path) -> None:
    seed = 20261121
    chance = random.Random(seed)
    file, log = tmp_path / "work.db", tmp_path / "handled.log"
    url = f"sqlite:///{file}"
    runner = start(RUNNER, url, log, folder=tmp_path)
    acknowledged: list[str] = []
    for number in range(6):
        outputs = [tmp_path / f"published-{number}-{side}" for side in "ab"]
        publishers = []
        for side, output in zip("ab", outputs, strict=True):
            with output.open("w") as stream:
                publishers.append(start(PUBLISHER, url, f"{number}{side}", folder=tmp_path, stdout=stream))
        for output in outputs:
            wait_for_lines(output, 3)
        time.sleep(chance.uniform(0, 0.3))
        for publisher in publishers:
            kill(publisher)
        # A line that the kill cut in half was never acknowledged to anyone.
        acknowledged += [line for output in outputs for line in output.read_text().rpartition("\n")[0].splitlines()]
    results = trio.run(finish, url, acknowledged)
    kill(runner)
    assert results == [int(task_id.partition("-")[2]) ** 2 for task_id in acknowledged]
    assert integrity(file) == "ok"


def test_a_restart_of_the_runner_repeats_nothing(tmp_path: Path) -> None:
    log = tmp_path / "handled.log"
    url = f"sqlite:///{tmp_path / 'work.db'}"
    ids = trio.run(publish_all, url)[:100]
    for _ in range(2):
        runner = start(RUNNER, url, log, folder=tmp_path)
        trio.run(finish, url, ids)
        wait_for_lines(log, TASKS)
        time.sleep(0.3)
        runner.send_signal(signal.SIGINT)
        runner.wait(timeout=20)
    assert len(lines(log)) == TASKS


def test_a_script_that_publishes_and_forgets_ends_at_once_and_all_is_durable(tmp_path: Path) -> None:
    code = """
        import sys, trio
        from omniactors import OmniActors, TaskFailed

        omni = OmniActors(sys.argv[1])

        async def main():
            for number in range(50):
                await omni.publish("square", number, task_id=str(number))

        trio.run(main)
    """
    url = f"sqlite:///{tmp_path / 'work.db'}"
    began = time.monotonic()
    script = start(code, url, folder=tmp_path)
    assert script.wait(timeout=20) == 0
    assert time.monotonic() - began < 5
    runner = start(RUNNER, url, tmp_path / "log", folder=tmp_path)
    results = trio.run(finish, url, [str(number) for number in range(50)])
    kill(runner)
    assert results == [number**2 for number in range(50)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_the_default_store_is_a_file_below_the_working_directory(tmp_path: Path) -> None:
    code = "import trio; from omniactors import OmniActors; trio.run(OmniActors().publish, 't', 1)"
    assert start(code, folder=tmp_path).wait(timeout=20) == 0
    assert (tmp_path / ".omniactors" / "omniactors.db").is_file()


def test_an_event_that_kills_its_process_again_and_again_is_dead_lettered(tmp_path: Path) -> None:
    code = """
        import os, sys, trio
        from omniactors import Agent, EventEnvelope, OmniActors

        omni = OmniActors(sys.argv[1])

        class Poisoned(Agent, topic="poison", name="poisoned"):
            async def handle(self, event: EventEnvelope[str]) -> str:
                if event.payload.content == "poison":
                    os._exit(9)
                return event.payload.content

        omni.add(Poisoned)
        trio.run(omni.run)
    """
    url = f"sqlite:///{tmp_path / 'work.db'}"
    trio.run(OmniActors(url).publish, "poison", "poison")
    for _ in range(5):
        assert start(code, url, folder=tmp_path).wait(timeout=20) == 9
    runner = start(code, url, folder=tmp_path)

    async def look() -> tuple[object, str, int]:
        omni = OmniActors(url)
        with trio.fail_after(20):
            result = await omni.wait_result(await omni.publish("poison", "fine"))
            (dead,) = await omni.streams.dlq("poison")
        await omni.shutdown()
        return result, dead.reason, dead.attempts

    try:
        assert trio.run(look) == ("fine", "crash-loop", 0)
    finally:
        kill(runner)


def test_ctrl_c_lets_running_tasks_finish_and_acknowledges_them(tmp_path: Path) -> None:
    code = """
        import sys, trio
        from omniactors import Agent, EventEnvelope, OmniActors

        omni = OmniActors(sys.argv[1])

        class Steady(Agent, topic="steady", concurrency=2):
            async def handle(self, event: EventEnvelope[int]) -> int:
                with open(sys.argv[2], "a") as log:
                    log.write(f"{event.payload.content}\\n")
                await trio.sleep(0.5)
                return event.payload.content

        omni.add(Steady)
        try:
            trio.run(omni.run)
        except KeyboardInterrupt:
            sys.exit(130)
    """
    url, log = f"sqlite:///{tmp_path / 'work.db'}", tmp_path / "log"

    async def publish() -> list[str]:
        omni = OmniActors(url)
        ids = await omni.publish_batch([("steady", number) for number in range(4)])
        await omni.shutdown()
        return ids

    async def results() -> list[object]:
        omni = OmniActors(url)
        found = [await omni.get_result(task_id) for task_id in ids]
        await omni.shutdown()
        return found

    ids = trio.run(publish)
    runner = start(code, url, log, folder=tmp_path)
    wait_for_lines(log, 2)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(timeout=20) == 130, (tmp_path / ERRORS).read_text()
    assert trio.run(results) == [0, 1, None, None]
    assert lines(log) == ["0", "1"]
    runner = start(code, url, log, folder=tmp_path)
    assert trio.run(finish, url, ids) == [0, 1, 2, 3]
    kill(runner)
    assert lines(log) == ["0", "1", "2", "3"]


def test_events_that_were_at_work_at_every_kill_are_handled_alone_and_survive(tmp_path: Path) -> None:
    code = """
        import os, sys, trio
        from omniactors import Agent, EventEnvelope, OmniActors

        omni = OmniActors(sys.argv[1])

        class Mixed(Agent, topic="mixed", name="mixed", concurrency=8):
            async def handle(self, event: EventEnvelope[str]) -> str:
                await trio.sleep(0.2)
                if event.payload.content == "poison":
                    os._exit(9)
                return event.payload.content

        omni.add(Mixed)
        trio.run(omni.run)
    """
    url = f"sqlite:///{tmp_path / 'work.db'}"
    contents = [*(f"good {number}" for number in range(6)), "poison", *(f"good {number}" for number in range(6, 12))]

    async def publish() -> list[str]:
        omni = OmniActors(url)
        ids = await omni.publish_batch([("mixed", content) for content in contents])
        await omni.shutdown()
        return ids

    ids = trio.run(publish)
    good = [task_id for task_id, content in zip(ids, contents, strict=True) if content != "poison"]
    runner = start(code, url, folder=tmp_path)
    for _ in range(5):
        assert runner.wait(timeout=20) == 9
        runner = start(code, url, folder=tmp_path)
    assert trio.run(finish, url, good) == [content for content in contents if content != "poison"]

    async def dead() -> list[str]:
        omni = OmniActors(url)
        with pytest.raises(TaskFailed, match="its process ended 5 times"):
            await omni.wait_result(ids[6])
        return [letter.reason for letter in await omni.streams.dlq("mixed")]

    assert trio.run(dead) == ["crash-loop"]
    kill(runner)
