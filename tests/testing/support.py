"""What the tests of the kit share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from omniactors import Actor, ActorRef, Request, on

if TYPE_CHECKING:
    from omniactors import ExitReason, Supervisor


@dataclass(frozen=True)
class Add:
    amount: int = 1


@dataclass(frozen=True)
class AddTwice(Add):
    """Handled by the handler of its base."""


class Total(Request[int]):
    """Asks for the sum."""


@dataclass(frozen=True)
class Nap:
    """Keeps the actor in its handler for some seconds."""

    seconds: float


class Boom(Request[None]):
    """Makes the actor crash."""


class Counter(Actor[Add | Total | Nap | Boom]):
    """Counts; `log` tells what its hooks and handlers were called with."""

    def __init__(self, start: int = 0, log: list[str] | None = None) -> None:
        self.sum = start
        self.log = [] if log is None else log

    async def on_start(self) -> None:
        self.log.append("start")

    async def on_stop(self, reason: ExitReason) -> None:
        self.log.append(f"stop {reason.kind}")

    @on
    async def add(self, message: Add) -> None:
        self.sum += message.amount

    @on
    async def total(self, _message: Total) -> int:
        return self.sum

    @on
    async def nap(self, message: Nap) -> None:
        await trio.sleep(message.seconds)

    @on
    async def boom(self, _message: Boom) -> None:
        raise ValueError("boom")


class Moody(Counter):
    """Handles Add by another method once it has had a Nap."""

    async def on_start(self) -> None:
        self.start_soon(self._beat)

    async def _beat(self) -> None:
        for _ in range(1000):
            await trio.sleep(7)

    @on
    async def nap(self, message: Nap) -> None:
        self.become(self.add_slowly)

    async def add_slowly(self, message: Add) -> None:
        await trio.sleep(100)
        self.sum += 10 * message.amount


def actor(supervisor: Supervisor, child_id: str) -> ActorRef[Any]:
    """A child that is an actor."""
    ref = supervisor.child(child_id)
    assert isinstance(ref, ActorRef)
    return ref
