"""A tree is a plain citizen of its program: no globals, no signal handlers, no loop of its own (C5, C16, C17)."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import (
    ActorRef,
    ActorStopped,
    AskFailed,
    ChildSpec,
    GaveUp,
    Intensity,
    Supervisor,
    open_supervisor,
    run_supervisor,
    subtree,
)
from tests.actors.support import Add, Boom, Counter, Hold, Notices, Total
from tests.source import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import outcome
    from trio.testing import MockClock

PATIENCE = 20.0
"""Seconds for a process that ends within one."""
ALLOWED = {"trio", "outcome", "attr", "attrs", "sortedcontainers", "idna", "sniffio", "cffi"}
"""What may be loaded beside the standard library: trio, and what trio itself needs."""


def as_counter(ref: object) -> ActorRef[Any]:
    assert isinstance(ref, ActorRef)
    return ref


# -- in one program -------------------------------------------------------------------------------


async def test_two_trees_side_by_side() -> None:
    """The same names in both; each has its own children, restarts and end."""
    spec = ChildSpec(Counter, id="x")
    async with open_supervisor(spec) as left, open_supervisor(spec) as right:
        one, two = as_counter(left.child("x")), as_counter(right.child("x"))
        await one.tell(Add(1))
        await two.tell(Add(2))
        with pytest.raises(AskFailed):
            await one.ask(Boom())
        assert (await one.ask(Total()), await two.ask(Total())) == (0, 2)
        assert (one.incarnation, two.incarnation) == (2, 1)
        await left.stop_child("x")
        assert await two.ask(Total()) == 2
        with pytest.raises(ActorStopped):
            await one.ask(Total())


async def test_one_tree_gives_up_and_the_other_lives_on() -> None:
    async with trio.open_nursery() as nursery:
        tree = subtree(ChildSpec(Counter, id="x"), name="host")
        host: Supervisor = await nursery.start(run_supervisor, tree)
        with pytest.raises(GaveUp):  # noqa: PT012 -- the block is what is given up on
            async with open_supervisor(ChildSpec(Counter, id="x"), intensity=Intensity(0, 5)) as sup:
                await as_counter(sup.child("x")).tell(Boom())
                await trio.sleep_forever()
        assert await as_counter(host.child("x")).ask(Total()) == 0
        nursery.cancel_scope.cancel()


async def test_actors_of_two_trees_ask_one_another() -> None:
    """What one tree's end means for the other: ActorStopped at the asker, nothing else."""

    class Front(Counter):
        async def total(self, _message: Total) -> int:
            return 1 + int(await back.ask(Total()))

    async with open_supervisor(ChildSpec(Front, id="front")) as sup:
        front = as_counter(sup.child("front"))
        async with open_supervisor(ChildSpec(Counter, id="back"), name="other") as other:
            back = as_counter(other.child("back"))
            assert await front.ask(Total()) == 1
        with pytest.raises(AskFailed) as caught:
            await front.ask(Total())
        assert isinstance(caught.value.__cause__, ActorStopped)
        assert caught.value.__cause__.path == "other/back"


async def test_a_tree_under_an_outer_time_limit(autojump_clock: MockClock) -> None:
    """C5: the tree has its time to stop; whoever set the limit waits for that and sees only their own limit."""
    notices = Notices()
    with trio.move_on_after(1) as scope:
        async with open_supervisor(*(ChildSpec(Counter, id=name) for name in "ab"), emit=notices) as sup:
            gate, entered = trio.Event(), trio.Event()
            await as_counter(sup.child("b")).tell(Hold(gate, entered))
            notices.take()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == 1 + 5
    assert notices.lines == ["stopped b killed", "stopped a shutdown"]


async def test_trees_of_later_runs_know_nothing_of_earlier_ones() -> None:
    """What a run leaves behind is no state: see the next test, which makes the same tree again."""
    names = [await _names_of_a_tree() for _ in range(2)]
    assert names == [["Counter-2", "Counter-1"]] * 2


def test_one_run_after_another_in_one_thread_and_one_beside_another_in_two() -> None:
    assert trio.run(_names_of_a_tree) == trio.run(_names_of_a_tree)

    async def both() -> list[list[str]]:
        return [await _names_of_a_tree(), await trio.to_thread.run_sync(trio.run, _names_of_a_tree)]

    first, second = trio.run(both)
    assert first == second


async def _names_of_a_tree() -> list[str]:
    async with open_supervisor(Counter, Counter) as sup:
        assert await as_counter(sup.child("Counter-1")).ask(Total()) == 0
        return [str(ref.id) for ref in sup.which_children()]


# -- in a test of pytest-trio ---------------------------------------------------------------------


@pytest.fixture
async def tree(nursery: trio.Nursery) -> Supervisor:
    """A tree in the nursery that pytest-trio gives to fixtures."""
    sup: Supervisor = await nursery.start(run_supervisor, subtree(ChildSpec(Counter, id="x"), name="fixture"))
    return sup


@pytest.fixture
async def block() -> AsyncIterator[Supervisor]:
    """A tree as a block around the test."""
    async with open_supervisor(ChildSpec(Counter, id="x")) as sup:
        yield sup


async def test_a_tree_as_a_fixture(tree: Supervisor, block: Supervisor, autojump_clock: MockClock) -> None:
    for sup in (tree, block):
        counter = as_counter(sup.child("x"))
        await counter.tell(Boom())
        await trio.sleep(100)
        assert await counter.ask(Total()) == 0
        assert counter.incarnation == 2


# -- in guest mode --------------------------------------------------------------------------------


class Host:
    """The least that can host trio: a queue of functions, run one after the other."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.result: outcome.Outcome[Any] | None = None
        self.turns = 0

    def run(self, main: Callable[[], Any]) -> Any:
        """Run `main` as trio's guest until it ends."""
        trio.lowlevel.start_guest_run(
            main, run_sync_soon_threadsafe=self._calls.put, done_callback=self._end, host_uses_signal_set_wakeup_fd=True
        )
        while self.result is None:
            self._calls.get(timeout=PATIENCE)()
            self.turns += 1
        return self.result.unwrap()

    def call_soon(self, call: Callable[[], object]) -> None:
        """What the host's other work would do."""
        self._calls.put(call)

    def _end(self, result: outcome.Outcome[Any]) -> None:
        self.result = result


def test_a_tree_as_a_guest() -> None:
    """C17: supervised, restarted and stopped in the host's loop; the host's own work goes on."""
    host, notices = Host(), Notices()
    totals: list[int] = []

    async def main() -> int:
        async with open_supervisor(*(ChildSpec(Counter, id=name) for name in "ab"), emit=notices) as sup:
            counter = as_counter(sup.child("a"))
            with pytest.raises(AskFailed):
                await counter.ask(Boom())
            told = trio.Event()

            def host_tells() -> None:
                counter.tell_nowait(Add(5))
                told.set()

            host.call_soon(host_tells)
            await told.wait()
            totals.append(await counter.ask(Total()))
            return counter.incarnation

    assert host.run(main) == 2
    assert totals == [5]
    assert notices.lines[-2:] == ["stopped b shutdown", "stopped a shutdown"]


def test_a_guest_that_gives_up_tells_its_host() -> None:
    async def main() -> None:
        async with open_supervisor(ChildSpec(Counter, id="a"), intensity=Intensity(0, 5)) as sup:
            await as_counter(sup.child("a")).tell(Boom())
            await trio.sleep_forever()

    with pytest.raises(GaveUp):
        Host().run(main)


# -- what it leaves alone -------------------------------------------------------------------------


def test_no_signal_handler_is_installed() -> None:
    """Those of a plain trio program with the same wait are the only ones, during and after it."""

    def handlers() -> dict[int, Any]:
        return {number: signal.getsignal(number) for number in signal.valid_signals()}

    seen: list[dict[int, Any]] = []

    async def plain() -> None:
        seen.append({number: repr(handler).split(" at ")[0] for number, handler in handlers().items()})

    async def with_tree() -> None:
        async with open_supervisor(Counter, subtree(Counter)):
            await plain()

    before = handlers()
    trio.run(plain)
    trio.run(with_tree)
    assert seen[0] == seen[1]
    assert handlers() == before


def test_importing_the_actors_loads_trio_and_nothing_else() -> None:
    """And no module of ours that is not for actors."""
    modules = loaded_by(
        "from omniactors import Actor, ChildSpec, DynamicSupervisor, on, open_supervisor, pool, subtree"
    )
    foreign = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"omniactors", "__main__"}
    assert {name for name in foreign if not name.startswith("_")} <= ALLOWED
    ours = {name for name in modules if name.startswith("omniactors.")}
    assert {name for name in ours if not name.startswith("omniactors.actors")} <= {
        "omniactors.backoff",
        "omniactors.errors",
        "omniactors.tracebacks",
    }


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter loads for `statement`."""
    program = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint(*(set(sys.modules) - before))"
    done = run_python(program)
    return set(done.stdout.split())


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    """Run `program` in a fresh interpreter that finds this package."""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE
    )


# -- Ctrl-C ---------------------------------------------------------------------------------------


PROGRAM = """
import sys

import trio

from omniactors import Actor, ChildSpec, open_supervisor, run_supervisor, subtree

class Busy(Actor):
    def __init__(self, name, seconds):
        self.name = name
        self.seconds = seconds

    @trio.lowlevel.enable_ki_protection  # or the second one may strike here, and end this actor alone
    async def on_stop(self, reason):
        print("stops", self.name, reason.kind, flush=True)
        await trio.sleep(self.seconds)
        print("stopped", self.name, flush=True)

specs = [ChildSpec(Busy, name, float(sys.argv[1]), id=name, shutdown=100) for name in "abc"]

async def block():
    async with open_supervisor(*specs):
        print("ready", flush=True)
        await trio.sleep_forever()

async def nursery():
    async with trio.open_nursery() as nursery:
        await nursery.start(run_supervisor, subtree(*specs))
        print("ready", flush=True)
        await trio.sleep_forever()

try:
    trio.run(block if sys.argv[2] == "block" else nursery)
except* KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@asynccontextmanager
async def running(seconds: float, place: str) -> AsyncIterator[tuple[trio.Process, Lines]]:
    """The program above, ready, with its tree in a `place`; each actor takes `seconds` for its goodbye."""
    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE):
            command = [sys.executable, "-c", PROGRAM, str(seconds), place]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process: trio.Process = await nursery.start(
                partial(trio.run_process, command, stdout=subprocess.PIPE, env=environment, check=False)
            )
            assert process.stdout is not None
            lines = Lines(process.stdout)
            assert await lines.next() == "ready"
            yield process, lines


class Lines:
    """What a process prints, line by line."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._text = b""

    async def next(self) -> str:
        """The next line; empty at the end."""
        while b"\n" not in self._text:
            more = await self._stream.receive_some()
            if not more:
                break
            self._text += bytes(more)
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    async def rest(self) -> list[str]:
        """All lines that are still to come."""
        lines = []
        while line := await self.next():
            lines.append(line)
        return lines


@pytest.mark.parametrize("place", ["block", "nursery"])
async def test_ctrl_c_stops_a_tree_in_order(place: str) -> None:
    """C5, C16: the newest first, each with its time, and KeyboardInterrupt comes out."""
    async with running(0.1, place) as (process, lines):
        process.send_signal(signal.SIGINT)
        expected = [f"{word} {name}" for name in "cba" for word in ("stops", "stopped")]
        assert [line.replace(" shutdown", "") for line in await lines.rest()] == [*expected, "interrupted"]
        assert await process.wait() == 0


async def test_a_second_ctrl_c_drops_the_grace_when_the_block_is_in_the_main_task() -> None:
    """C5: who says goodbye for a minute is cancelled, the others are not asked; all have ended."""
    async with running(60, "block") as (process, lines):
        process.send_signal(signal.SIGINT)
        assert await lines.next() == "stops c shutdown"
        process.send_signal(signal.SIGINT)
        assert await lines.rest() == ["interrupted"]
        assert await process.wait() == 0


async def test_a_second_ctrl_c_is_not_lost_when_the_tree_is_in_another_task() -> None:
    """Trio gives it to the main task, which waits for its nursery already; the order and the grace hold."""
    async with running(0.3, "nursery") as (process, lines):
        process.send_signal(signal.SIGINT)
        assert await lines.next() == "stops c shutdown"
        process.send_signal(signal.SIGINT)
        rest = [line.replace(" shutdown", "") for line in await lines.rest()]
        assert rest == ["stopped c", "stops b", "stopped b", "stops a", "stopped a", "interrupted"]
        assert await process.wait() == 0
