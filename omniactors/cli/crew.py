"""Crew: the processes of `run --workers N`, started, kept running, replaced and stopped by a parent without agents.

Each is a full runtime on the same store, so the parent has no work to hand out: it looks after
processes. A worker that dies comes back after a moment, however often: an event that ends its
process is put away after a few deaths, and meanwhile the others work. Only when none of them is at
work, and they keep ending before they are ready, and so before they have taken any event, all is given up.
"""

from __future__ import annotations

import math
import os
import random
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING

import trio

from omniactors.actors.rules import Intensity, RestartWindow
from omniactors.backoff import Backoff
from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.lifeline import longest_stop
from omniactors.cli.output import Format, counted, print_json, say
from omniactors.cli.process import Command, Worker, WorkerFailed, start_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence

RESTARTS = 5
"""Starts per worker that may fail within RESTART_PERIOD seconds."""

RESTART_PERIOD = 30.0

RESTART_BACKOFF = Backoff(initial=0.1, maximum=5.0)
"""Between starts that fail."""

DEATH_BACKOFF = Backoff(initial=0.1, maximum=1.0, reset_after=10.0)
"""After the death of a worker that had started: a queue of events that end their process is to be got over soon."""

REPORT_EVERY = 10.0
"""Seconds between two lines that say which workers a stop waits for; what for, the workers say themselves."""

HURRY_SECONDS = 10.0
"""What the workers have to end after a second signal, before they are killed."""

GOOD_ENDS = (ExitCode.OK, -signal.SIGTERM)
"""How a worker ends that was told to: in order, or before it had begun."""


async def run_workers(command: Command, count: int, output: Format) -> bool:
    """Run `count` workers until stopped by a signal; True when a second one cut the stop short.

    Raises CommandError when the first worker cannot start, when later ones keep failing to, or when one
    could not be stopped in order.
    """
    if sys.platform == "win32":
        raise CommandError("--workers is for Linux and macOS; start this command several times", ExitCode.USAGE)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            crew = Crew(command, count, nursery)
            nursery.start_soon(crew.obey, signals)
            try:
                with crew.scope:
                    await crew.work(output)
            finally:
                with trio.CancelScope(shield=True):
                    await crew.end()
            nursery.cancel_scope.cancel()
    for worker in crew.left_badly:
        raise CommandError(f"{worker} {worker.describe_end()} when it was to stop")
    say("stopped at once; unfinished tasks are delivered again" if crew.is_forced else "stopped")
    return crew.is_forced


class Slot:
    """One place of the crew; whoever exchanges its worker holds the lock."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.lock = trio.Lock()


class Crew:
    """`count` workers. `scope` is cancelled to stop them; `nursery` watches their processes."""

    def __init__(self, command: Command, count: int, nursery: trio.Nursery) -> None:
        self.scope = trio.CancelScope()
        self.is_forced = False
        self.left_badly: list[Worker] = []
        self._command = command
        self._count = count
        self._nursery = nursery
        self._slots: dict[int, Slot] = {}
        self._deaths: Counter[int] = Counter()
        self._failures: Counter[int] = Counter()
        self._live: set[Worker] = set()
        self._window = RestartWindow(Intensity(RESTARTS * count, RESTART_PERIOD))
        self._patience = trio.CancelScope()
        self._grace = 0.0
        self._replacing = trio.Event()
        self._terminals = [descriptor for descriptor in range(3) if os.isatty(descriptor)]

    async def work(self, output: Format) -> None:
        """Start all workers and keep them running until cancelled; raises CommandError."""
        # Alone: what keeps the first one from starting would keep all, and is to be read once.
        self._slots[1] = Slot(await self._start_first())
        async with trio.open_nursery() as starting:
            for number in range(2, self._count + 1):
                starting.start_soon(self._open_slot, number)
        self._announce(output)
        async with trio.open_nursery() as keeping:
            for slot in self._slots.values():
                keeping.start_soon(self._keep, slot)
            keeping.start_soon(self._replace_on_demand)

    async def obey(self, signals: AsyncIterator[int]) -> None:
        """Stop in order at the first signal, at once at the second, kill at the third; replace all at SIGHUP."""
        async for number in signals:
            # A terminal that is closed says SIGHUP too, often twice, and that is meant as an end.
            if number == signal.SIGHUP and all(map(os.isatty, self._terminals)):
                self._replacing.set()
            elif not self.scope.cancel_called:
                say(f"stopping {counted(len(self._live), 'worker')}")
                self.scope.cancel()
            elif number != signal.SIGHUP:
                await self._hurry()

    async def end(self) -> None:
        """Stop every worker there is, in order; those that do not end in time are killed."""
        for worker in self._live:
            worker.process.terminate()
        workers = list(self._live)
        await self._wait_ended(workers, self._patience)
        if not self.is_forced:
            self.left_badly = [worker for worker in workers if worker.process.returncode not in GOOD_ENDS]

    # -- starting -------------------------------------------------------------------------------

    async def _start_first(self) -> Worker:
        try:
            return await self._start(1)
        except WorkerFailed as failure:
            if failure.code in (ExitCode.FAILED, ExitCode.USAGE, ExitCode.UNAVAILABLE):
                code = ExitCode(failure.code)
                raise CommandError("the first worker could not start, so no other did", code) from failure
            raise CommandError(str(failure)) from failure

    async def _start(self, number: int) -> Worker:
        """A new worker that is ready; raises WorkerFailed."""
        worker = await start_process(self._command, number)
        self._live.add(worker)
        self._nursery.start_soon(self._watch, worker)
        await worker.get_ready()
        if worker.ready is None:
            await worker.ended.wait()
            raise WorkerFailed(f"{worker} {worker.describe_end()}", worker.process.returncode)
        self._grace = max(self._grace, worker.ready.grace)
        self._failures[number] = 0
        return worker

    async def _start_surely(self, number: int) -> Worker:
        """A new worker that is ready, after as many starts as it takes; raises CommandError when it takes too many."""
        while True:
            try:
                return await self._start(number)
            except WorkerFailed as failure:
                await self._wait_to_start(number, str(failure))

    async def _open_slot(self, number: int) -> None:
        self._slots[number] = Slot(await self._start_surely(number))

    def _announce(self, output: Format) -> None:
        """Say what runs and where it can be watched, when all workers are ready."""
        workers = [self._slots[number].worker for number in sorted(self._slots)]
        ready = [worker.ready for worker in workers if worker.ready is not None]
        first = ready[0]
        say(first.settings)
        agents = f"{counted(len(first.agents), 'agent')} of {first.origin}: {', '.join(first.agents)}"
        say(f"{counted(len(workers), 'worker')}, each with {agents}")
        say(f"watch at {first.gateway}, or all workers with: omniactors watch")
        if output is Format.JSON:
            each = [{"pid": one.pid, "gateway": one.gateway} for one in ready]
            document = {"pid": os.getpid(), "store": first.store, "agents": first.agents, "gateway": first.gateway}
            print_json({**document, "workers": each})

    # -- keeping --------------------------------------------------------------------------------

    async def _keep(self, slot: Slot) -> None:
        """Put a new worker in the place of one that died, for ever; raises CommandError when none starts any more."""
        while True:
            worker = slot.worker
            await worker.ended.wait()
            async with slot.lock:
                if slot.worker is worker:
                    await self._get_over(worker)
                    slot.worker = await self._start_surely(worker.number)
                    say(f"{slot.worker} has taken its place")

    async def _get_over(self, worker: Worker) -> None:
        """Wait after the death of a worker that had been ready."""
        if trio.current_time() - worker.started_at >= DEATH_BACKOFF.reset_after:
            self._deaths[worker.number] = 0
        self._deaths[worker.number] += 1
        delay = DEATH_BACKOFF.delay(self._deaths[worker.number], random.random())  # noqa: S311 -- jitter, no secret
        await self._pause(f"{worker} {worker.describe_end()}", delay)

    async def _wait_to_start(self, number: int, failure: str) -> None:
        """Wait after a start that failed; raises CommandError when there were too many, and nobody is at work."""
        now = trio.current_time()
        if not self._window.allow(now) and not any(worker.ready for worker in self._live):
            times = self._window.count(now)
            raise CommandError(
                f"workers keep dying before they are ready, {times} times in {RESTART_PERIOD:g} s, "
                f"so all is given up; the last one: {failure}"
            )
        self._failures[number] += 1
        await self._pause(failure, RESTART_BACKOFF.delay(self._failures[number], random.random()))  # noqa: S311 -- as above

    async def _pause(self, reason: str, delay: float) -> None:
        say(f"{reason}; the next one starts in {delay:.1f} s")
        await trio.sleep(delay)

    # -- replacing ------------------------------------------------------------------------------

    async def _replace_on_demand(self) -> None:
        while True:
            await self._replacing.wait()
            self._replacing = trio.Event()
            say(f"replacing {counted(self._count, 'worker')}, one after another")
            try:
                # Worker 1 may hold a fixed address, so it has to go before its successor comes. It is the last: by
                # then the others have shown that the module still starts.
                for number in (*range(2, self._count + 1), 1):
                    await self._replace(self._slots[number])
            except WorkerFailed as failure:
                say(f"{failure}, so nothing more is replaced: the workers that run go on")
            else:
                say("all workers are replaced")

    async def _replace(self, slot: Slot) -> None:
        """Exchange a worker for a new one; raises WorkerFailed, and then all but worker 1 go on."""
        async with slot.lock:
            old = slot.worker
            if old.number == 1:
                await self._retire(old)
                slot.worker = await self._start(old.number)
            else:
                slot.worker = await self._start(old.number)
                await self._retire(old)
            say(f"{slot.worker} has replaced pid {old.process.pid}")

    async def _retire(self, worker: Worker) -> None:
        worker.process.terminate()
        await self._wait_ended({worker}, trio.CancelScope())

    # -- stopping -------------------------------------------------------------------------------

    async def _hurry(self) -> None:
        """Have the workers drop the grace time of the stop that goes on."""
        if self.is_forced:
            self._patience.deadline = -math.inf
            return
        self.is_forced = True
        self._patience.deadline = min(self._patience.deadline, trio.current_time() + HURRY_SECONDS)
        say("stopping at once; a third signal kills what does not end")
        for worker in list(self._live):
            await worker.lifeline.hurry()

    async def _wait_ended(self, workers: Collection[Worker], patience: trio.CancelScope) -> None:
        """Wait until workers that are stopping have ended; they are killed when their time or `patience` is over."""
        waited_for = list(workers)
        patience.deadline = min(patience.deadline, trio.current_time() + longest_stop(self._grace))
        with patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_report, waited_for)
                for worker in waited_for:
                    await worker.ended.wait()
                nursery.cancel_scope.cancel()
        for worker in waited_for:
            if not worker.ended.is_set():
                say(f"{worker} does not stop, so it is killed")
                worker.process.kill()
        for worker in waited_for:
            await worker.ended.wait()

    async def _watch(self, worker: Worker) -> None:
        await worker.watch()
        self._live.discard(worker)


async def _report(workers: Sequence[Worker]) -> None:
    """Say which of the workers have not ended yet, until cancelled."""
    while True:
        await trio.sleep(REPORT_EVERY)
        say(f"waiting for {', '.join(str(worker) for worker in workers if not worker.ended.is_set())}")
