"""Workers: actors that write down what they did, and pools of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import trio

from omniactors import Actor, Request, on, pool
from omniactors.actors.routes import Route
from tests.actors.support import Boom

if TYPE_CHECKING:
    from collections.abc import Hashable

ROUTES = get_args(Route)
TO_ONE = [route for route in ROUTES if route != "broadcast"]
WITH_MAILBOXES = ["round_robin", "least_loaded", "random", "consistent_hash"]


@dataclass(frozen=True)
class Job(Request[int]):
    """Takes `seconds`; the reply is the number of the member."""

    name: int
    seconds: float = 0
    user: str = ""


@dataclass(frozen=True)
class Call(Request[Any]):
    """Calls a function in the member's task."""

    function: Any


class Log:
    """What the members handled, in order: (name, member), and who is busy."""

    def __init__(self) -> None:
        self.done: list[tuple[int, Hashable]] = []
        self.begun: list[tuple[int, Hashable]] = []
        self.cancelled = 0

    @property
    def names(self) -> list[int]:
        """What was handled, sorted."""
        return sorted(name for name, _ in self.done)


class Worker(Actor[Job | Boom | Call]):
    """Works, and writes it down."""

    def __init__(self, log: Log) -> None:
        self.log = log

    @on
    async def job(self, message: Job) -> int:
        """Work."""
        number = int(str(self.ref.id))
        self.log.begun.append((message.name, number))
        if message.seconds:
            await self._take(message.seconds)
        self.log.done.append((message.name, number))
        return number

    async def _take(self, seconds: float) -> None:
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            self.log.cancelled += 1
            raise

    @on
    async def boom(self, _message: Boom) -> None:
        """Crash."""
        raise ValueError("boom")

    @on
    async def call(self, message: Call) -> Any:
        """Call."""
        return await message.function(self)


def workers(log: Log, route: Any, size: int, **options: Any) -> Any:
    """A pool of them."""
    if route == "consistent_hash":
        options["key"] = lambda message: getattr(message, "name", 0)
    return pool(Worker, log, size=size, route=route, **{"name": "workers", **options})
