"""Serving rule: a system runs until a signal; the first one stops it in order, a second one at once."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from omniactors.agents.current import noting_ends

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from omniactors import OmniActors

REPORT_EVERY = 2.0
"""Seconds between two lines that say what an orderly stop waits for."""


HANGUP = getattr(signal, "SIGHUP", None)
"""What a terminal says when it is closed, often twice, and what some send to have a program begin anew."""

STOPS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None)


@dataclass(frozen=True)
class Service:
    """A system that is to run: its file, where its gateway listens, what watchers must present, and its other names."""

    omni: OmniActors
    origin: str
    listen: str | None
    token: str | None
    allowed_hosts: tuple[str, ...] | None = None


class Stop:
    """How far the stop of a system has come: `scope` ends the orderly run, `is_forced` says that there was no time.

    While `has_parent` is set a second signal is no haste: that is for the parent process to say.
    """

    def __init__(self, omni: OmniActors, *, has_parent: bool) -> None:
        self.scope = trio.CancelScope()
        self.is_forced = False
        self.has_parent = has_parent
        self._omni = omni
        self._asked = trio.Event()

    @property
    def endings(self) -> tuple[int, ...]:
        """The signals that end this process: SIGHUP is for the parent to answer, and blames no event."""
        return tuple(number for number in STOPS if number != HANGUP or not self.has_parent)

    def in_order(self) -> None:
        """Let running tasks finish within their grace time."""
        self._asked.set()
        self.scope.cancel()

    def at_once(self) -> None:
        """Drop the grace time; what still runs is delivered again."""
        self.in_order()
        if not self.is_forced:
            self.is_forced = True
            self._omni.stop_now()

    async def obey(self, signals: AsyncIterator[int]) -> None:
        """Stop at the first signal in order and at the second at once; SIGHUP is no haste, and a parent's to answer."""
        async for number in signals:
            if number == HANGUP and (self.has_parent or self._asked.is_set()):
                continue
            if self._asked.is_set() and not self.has_parent:
                self.at_once()
            else:
                self.in_order()

    async def report(self, say: Callable[[str], None], idle: str | None) -> None:
        """Say what the stop waits for, from its beginning until cancelled; `idle` when that is no task."""
        await self._asked.wait()
        while True:
            line = _waiting_line(self._omni.running_tasks()) or idle
            if line is not None:
                say(line)
            await trio.sleep(REPORT_EVERY)


async def serve(
    service: Service,
    stop: Stop,
    *,
    tell: Callable[[str], None],
    ready: Callable[[str | None], Awaitable[None]],
    beside: Callable[[], Awaitable[None]],
) -> None:
    """Run a system until it is stopped.

    `tell` gets the line about its settings, `ready` its gateway's URL before the first event is taken; `beside` runs
    until the end.
    """
    run = partial(
        service.omni.run,
        listen=service.listen,
        token=service.token,
        allowed_hosts=service.allowed_hosts,
        tell=tell,
        on_ready=ready,
    )
    # The receiver surrounds everything: a signal at any moment stops in order.
    with trio.open_signal_receiver(*STOPS) as signals, noting_ends(*stop.endings):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop.obey, signals)
            nursery.start_soon(beside)
            try:
                with stop.scope:
                    await run()
            finally:
                with trio.CancelScope(shield=True):
                    await service.omni.shutdown()
            nursery.cancel_scope.cancel()


def _waiting_line(running: Mapping[str, int]) -> str | None:
    """One line that says which running tasks an orderly stop waits for; None when there are none."""
    busy = {name: count for name, count in sorted(running.items()) if count}
    if not busy:
        return None
    total = sum(busy.values())
    tasks = "1 running task" if total == 1 else f"{total} running tasks"
    names = ", ".join(f"{name} {count}" for name, count in busy.items())
    return f"stopping: waiting for {tasks} ({names}); Ctrl-C again stops at once"
