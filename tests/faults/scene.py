"""The scene of one test: its processes, what they wrote, what was done to them, and how it ended."""

from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec
import trio

from omniactors import BackendError, OmniActors
from tests.cli.command import environment
from tests.faults.checker import KINDS, Fault, FaultKind, Kind, Record, Report, check
from tests.faults.journal import Reader
from tests.faults.processes import start
from tests.faults.programs import NEXT, Plan, PublishPlan, WorkPlan

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

    from tests.redis_server import RedisServer

P = TypeVar("P", bound=WorkPlan | PublishPlan)

LEASE = 1.0
"""Seconds of the lease where its end is waited for; the shortest that is allowed."""

LONG_LEASE = 15.0
"""Seconds of the lease where it must not end, however busy the machine is; the default."""

SLOW = os.environ.get("OMNIACTORS_SLOW") == "1"
"""Whether the long versions run: more rounds, every byte. Read once, since tests have no settings."""


@dataclass(eq=False)
class Program:
    """One process and its files."""

    plan: Plan
    process: ForkServerProcess
    reader: Reader
    errors: Path

    @property
    def name(self) -> str:
        """The name under which it writes."""
        return self.plan.name

    @property
    def has_ended(self) -> bool:
        """Whether the process is over."""
        return self.process.exitcode is not None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    @property
    def stderr(self) -> str:
        """What it has said."""
        return self.errors.read_text(errors="replace")


@dataclass(eq=False)
class Scene:
    """Starts programs on the store at `url` and keeps book. `close` kills what is left."""

    folder: Path
    url: str
    lease: float
    programs: list[Program] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    _ids: dict[Kind, set[str]] = field(default_factory=lambda: {kind: set() for kind in KINDS})

    def worker(self, name: str, *, url: str | None = None, **options: object) -> Program:
        """Start a process with agents."""
        return self._start(self._plan(WorkPlan, name, url, options))

    def publisher(self, name: str, *, url: str | None = None, **options: object) -> Program:
        """Start a process that publishes."""
        return self._start(self._plan(PublishPlan, name, url, options))

    def kill(self, program: Program) -> None:
        """SIGKILL; what it had in hand may be repeated."""
        since = time.monotonic()
        program.process.kill()
        program.process.join()
        self.faults.append(Fault("kill", since, time.monotonic(), program.name))

    async def stop(self, program: Program, *, seconds: float = 20) -> None:
        """SIGTERM, and wait for an orderly end; what it had in hand and did not finish goes back."""
        program.process.terminate()
        await self.until(lambda: program.has_ended, f"the end of {program.name}", seconds=seconds)
        assert program.process.exitcode == 0, program.stderr[-3000:]

    @contextmanager
    def fault(self, kind: FaultKind, program: Program | None = None, *, echo: float = 0.0) -> Iterator[None]:
        """Note what the body does as a fault that goes on for `echo` seconds after it."""
        since = time.monotonic()
        try:
            yield
        finally:
            self.faults.append(Fault(kind, since, time.monotonic() + echo, program.name if program else None))

    def poll(self) -> None:
        """Read what the programs wrote."""
        for program in self.programs:
            self.note(program.reader.poll())

    def note(self, records: Iterable[Record]) -> None:
        """Add records to the history."""
        for record in records:
            self.records.append(record)
            self._ids[record.kind].add(record.id)

    def write(self, kind: Kind, id: str) -> None:
        """Add what the test itself does to the history."""
        self.note([Record(time.monotonic(), "test", kind, id)])

    def ids(self, *kinds: Kind) -> set[str]:
        """The tasks of which a record of one of these kinds was written so far."""
        self.poll()
        return set().union(*(self._ids[kind] for kind in kinds))

    async def until(self, condition: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
        """Wait until the condition holds; fails after `seconds`, with what the programs said."""
        with trio.move_on_after(seconds):
            while not condition():  # noqa: ASYNC110 -- other processes set no event of ours
                await trio.sleep(0.01)
            return
        said = "".join(f"\n--- {program.name}:\n{program.stderr[-2000:]}" for program in self.programs)
        raise AssertionError(f"{what}: not within {seconds} s{said}")

    async def up(self, *programs: Program) -> None:
        """Wait until these programs are ready."""

        def ready() -> bool:
            self.poll()
            for program in programs:
                assert not program.has_ended, f"{program.name} ended: {program.stderr[-3000:]}"
            return all(program.reader.is_up for program in programs)

        await self.until(ready, f"{', '.join(program.name for program in programs)} ready")

    async def handled_more(self, count: int, *, seconds: float = 60) -> None:
        """Wait until so many more tasks were handled than there are now."""
        await self.handled(len(self.ids("done")) + count, seconds=seconds)

    async def handled(self, count: int, *, seconds: float = 60) -> None:
        """Wait until so many tasks were handled, since the beginning."""
        await self.until(lambda: len(self.ids("done")) >= count, f"{count} tasks handled", seconds=seconds)

    async def settled(self, *, seconds: float = 60) -> Report:
        """Wait until nothing is left in the store, read all results, and check the history."""
        async with client(self.url) as omni:
            with trio.move_on_after(seconds) as scope:
                while await _left(omni):  # noqa: ASYNC110 -- as above
                    await trio.sleep(0.05)
            assert not scope.cancelled_caught, f"not worked off within {seconds} s: {await omni.streams.list()}"
            at = time.monotonic()
            results = [Record(at, "test", "result", id) for id in self.ids("invoke") if await omni.results.of_task(id)]
        # The last commits are told a moment after they are made.
        await trio.sleep(0.2)
        ended = {record.id for record in results} | {id for id in self.ids("commit") if not id.startswith(NEXT)}
        return check([*self.records, *results, *self._second_stage(ended)], self.faults)

    def close(self) -> None:
        """Kill what still runs; each by its own pid."""
        for program in self.programs:
            program.process.kill()
            program.process.join()
            program.process.close()

    def _second_stage(self, ended: set[str]) -> list[Record]:
        """What must hold of the events that handlers published: one for each task that has ended, and no other."""
        if not any(isinstance(program.plan, WorkPlan) and program.plan.is_chained for program in self.programs):
            return []
        stage = [Record(0.0, "handler", "invoke", f"{NEXT}/{id}") for id in ended]
        stage += [Record(0.0, "handler", "ok", f"{NEXT}/{id}") for id in ended]
        followed = {id for id in self.ids("done") if id.startswith(f"{NEXT}/")}
        return [*stage, *(Record(time.monotonic(), "test", "result", id) for id in followed)]

    def _plan(self, kind: type[P], name: str, url: str | None, options: dict[str, object]) -> P:
        journal = str(self.folder / f"{name}.journal")
        common = {"url": url or self.url, "journal": journal, "name": name}
        plan: P = msgspec.convert({"type": kind.__name__, **common, **options}, kind)
        return plan

    def _start(self, plan: Plan) -> Program:
        assert plan.name not in {program.name for program in self.programs}, "each process has a name of its own"
        errors = self.folder / f"{plan.name}.stderr"
        errors.touch()
        lease = {"OMNIACTORS_LEASE": f"{self.lease:g}"} if "redis" in self.url else {}
        process = start(plan, errors=errors, environment=environment(**lease))
        program = Program(plan, process, Reader(self.folder / f"{plan.name}.journal"), errors)
        self.programs.append(program)
        return program


TRANSIENT = ("clipped", "consumers", "inbox", "later", "lease", "order", "scheduled", "tries", "waiting")
"""Keys that are there only while something runs or waits."""


def leftovers(server: RedisServer) -> list[str]:
    """What should not be in a store in which nothing runs and nothing waits."""
    with server.sync() as redis:
        names = [name.decode() for name in redis.scan_iter()]
        groups = [
            (name, group)
            for name in names
            if name.startswith("omni-stream:")
            for group in redis.xinfo_groups(name)
            if group["pending"] or len(redis.xinfo_consumers(name, group["name"])) > 1
        ]
    kinds = tuple(f"omni-{kind}" for kind in TRANSIENT)
    return [*(name for name in names if name.startswith(kinds)), *map(str, groups)]


async def works_again(scene: Scene, name: str) -> None:
    """Wait until the process begins further tasks."""

    def begun() -> int:
        scene.poll()
        return sum(record.process == name and record.kind == "start" for record in scene.records)

    before = begun()
    await scene.until(lambda: begun() > before + 10, f"{name} works again")


async def _left(omni: OmniActors) -> bool:
    """Whether anything waits or is at work, also while the store cannot be asked."""
    try:
        streams = await omni.streams.list()
    except BackendError:
        return True
    return any(stream.length or stream.scheduled for stream in streams)


@asynccontextmanager
async def client(url: str) -> AsyncIterator[OmniActors]:
    """A system that runs nothing, for publishing and asking."""
    omni = OmniActors(url)
    try:
        yield omni
    finally:
        with trio.CancelScope(shield=True):
            await omni.shutdown()


@contextmanager
def open_scene(folder: Path, url: str, *, lease: float) -> Iterator[Scene]:
    """A scene whose programs do not outlive the block."""
    folder.mkdir(parents=True, exist_ok=True)
    scene = Scene(folder, url, lease)
    try:
        yield scene
    finally:
        scene.close()
