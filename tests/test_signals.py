"""A plain script that runs a system stops in order when it is told to end; nobody's own handling is taken away."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors import OmniActors
from tests.cli.command import environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEAD = """
import os, signal, sys, threading, trio
from omniactors import Agent, EventEnvelope, OmniActors

# A shell has what it runs in the background ignore Ctrl-C, and the tests may be.
signal.signal(signal.SIGINT, signal.default_int_handler)
omni = OmniActors("sqlite:///work.db")

class Slow(Agent, topic="slow", name="slow"):
    async def handle(self, event: EventEnvelope[float]) -> str:
        print("begun", flush=True)
        await trio.sleep(event.payload.content)
        return "done"

omni.add(Slow)
"""


class Script:
    """A script that has begun to handle one event of so many seconds."""

    def __init__(self, folder: Path, seconds: float, code: str) -> None:
        self.folder = folder
        self.task_id: str = trio.run(self.publish, "slow", seconds)
        with (folder / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", HEAD + textwrap.dedent(code)],
                cwd=folder,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        self.lines = self.process.stdout
        assert self.lines.readline() == "begun\n", (folder / "stderr").read_text()

    async def publish(self, topic: str, seconds: float) -> str:
        omni = OmniActors(f"sqlite:///{self.folder}/work.db")
        task_id = await omni.publish(topic, seconds)
        await omni.shutdown()
        return task_id

    def insist(self, number: signal.Signals) -> None:
        """Send a signal until it ends: two that come at once, on a busy machine, are one."""
        until = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < until:
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1.5)

    def result(self) -> object:
        async def ask() -> object:
            omni = OmniActors(f"sqlite:///{self.folder}/work.db")
            found = await omni.get_result(self.task_id)
            await omni.shutdown()
            return found

        return trio.run(ask)


@pytest.fixture
def scripts() -> Iterator[list[Script]]:
    made: list[Script] = []
    yield made
    for script in made:
        script.process.kill()
        script.process.wait()
        script.lines.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_plain_script_stops_in_order_and_goes_on_behind_it(
    tmp_path: Path, scripts: list[Script], number: signal.Signals
) -> None:
    script = Script(tmp_path, 0.4, "trio.run(omni.run); print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)")
    scripts.append(script)
    script.process.send_signal(number)
    assert script.lines.read() == "True\n"
    assert script.process.wait(20) == 0
    assert script.result() == "done"


def test_a_second_signal_drops_the_grace_time(tmp_path: Path, scripts: list[Script]) -> None:
    script = Script(tmp_path, 25.0, "trio.run(omni.run)")
    scripts.append(script)
    began = time.monotonic()
    script.insist(signal.SIGTERM)
    assert script.process.wait(20) in {0, -signal.SIGTERM}  # one more may come when nobody hears it any more
    assert time.monotonic() - began < 15
    assert script.result() is None


def test_signals_are_left_alone_on_demand(tmp_path: Path, scripts: list[Script]) -> None:
    script = Script(tmp_path, 30.0, "from functools import partial; trio.run(partial(omni.run, handle_signals=False))")
    scripts.append(script)
    script.process.terminate()
    assert script.process.wait(20) == -signal.SIGTERM


def test_who_handles_the_signal_keeps_it(tmp_path: Path, scripts: list[Script]) -> None:
    code = """
        signal.signal(signal.SIGTERM, lambda *_: print("mine", flush=True))
        trio.run(omni.run)
    """
    script = Script(tmp_path, 30.0, code)
    scripts.append(script)
    script.process.terminate()
    assert script.lines.readline() == "mine\n"
    assert script.process.poll() is None


def test_a_handler_that_is_set_meanwhile_stays(tmp_path: Path, scripts: list[Script]) -> None:
    code = """
        async def main():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(omni.run)
                await trio.sleep(0.2)
                signal.signal(signal.SIGTERM, mine)
                nursery.cancel_scope.cancel()

        def mine(*_): pass
        trio.run(main)
        print(signal.getsignal(signal.SIGTERM) is mine)
    """
    script = Script(tmp_path, 0.1, code)
    scripts.append(script)
    assert script.lines.read() == "True\n"


def test_a_signal_that_is_given_back_too_late_ends_the_process_as_ever(tmp_path: Path, scripts: list[Script]) -> None:
    code = """
        async def main():
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(run, scope)
                    await trio.sleep_forever()
                with trio.open_signal_receiver(signal.SIGTERM):
                    inner.cancel()
                    await trio.sleep(0.5)
                print("back", flush=True)
                await trio.sleep_forever()

        inner = trio.CancelScope()

        async def run(scope):
            with inner:
                async with trio.open_nursery() as nursery:
                    await nursery.start(omni.run)
                    scope.cancel()

        trio.run(main)
    """
    script = Script(tmp_path, 0.1, code)
    scripts.append(script)
    assert script.lines.readline() == "back\n"
    script.process.terminate()
    assert script.process.wait(20) == -signal.SIGTERM


def test_inside_another_program_it_stops_in_order_and_the_program_ends_as_it_would_have(
    tmp_path: Path, scripts: list[Script]
) -> None:
    code = """
        async def main():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(omni.run)
                await trio.sleep_forever()

        trio.run(main)
    """
    script = Script(tmp_path, 0.4, code)
    scripts.append(script)
    script.process.terminate()
    assert script.process.wait(20) == -signal.SIGTERM
    assert script.result() == "done"


def test_in_another_thread_no_signal_is_touched(tmp_path: Path, scripts: list[Script]) -> None:
    code = """
        threading.Thread(target=trio.run, args=(omni.run,), daemon=True).start()
        signal.pause()
    """
    script = Script(tmp_path, 30.0, code)
    scripts.append(script)
    script.process.terminate()
    assert script.process.wait(20) == -signal.SIGTERM


def test_ctrl_c_among_many_events_is_a_keyboard_interrupt(tmp_path: Path, scripts: list[Script]) -> None:
    code = """
        class Both(Agent, topic="both", name="both", concurrency=2):
            async def handle(self, event: EventEnvelope[int]) -> None:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.interrupt)
                    nursery.start_soon(self.fail)

            async def interrupt(self):
                raise KeyboardInterrupt

            async def fail(self):
                raise ValueError("beside it")

        omni.add(Both)

        async def main():
            await omni.publish("both", 1)
            await omni.run()

        try:
            trio.run(main)
        except KeyboardInterrupt as error:
            print("interrupted", flush=True)
    """
    script = Script(tmp_path, 0.1, code)
    scripts.append(script)
    assert script.lines.read() == "interrupted\n"


def test_ctrl_c_lets_the_running_handler_finish_wherever_it_is(tmp_path: Path, scripts: list[Script]) -> None:
    code = """
        class Busy(Agent, topic="busy", name="busy"):
            async def handle(self, event: EventEnvelope[int]) -> None:
                for number in range(40):
                    signal.raise_signal(signal.SIGINT) if number == 20 else None
                    await trio.lowlevel.checkpoint()
                print("finished", flush=True)

        omni.add(Busy)

        async def main():
            await omni.publish("busy", 1)
            await omni.run()

        try:
            trio.run(main)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """
    script = Script(tmp_path, 0.1, code)
    scripts.append(script)
    assert script.lines.read() == "finished\ninterrupted\nTrue\n"
    assert script.result() == "done"


def test_a_second_ctrl_c_ends_a_handler_that_waits_for_nothing(tmp_path: Path, scripts: list[Script]) -> None:
    code = """
        class Endless(Agent, topic="endless", name="endless"):
            async def handle(self, event: EventEnvelope[float]) -> None:
                print("begun", flush=True)
                while True:
                    pass

        omni.add(Endless)
        try:
            trio.run(omni.run)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    script = Script(tmp_path, 0.0, code)
    scripts.append(script)
    trio.run(script.publish, "endless", 1.0)
    assert script.lines.readline() == "begun\n"
    script.insist(signal.SIGINT)
    assert script.lines.read() == "interrupted\n"
