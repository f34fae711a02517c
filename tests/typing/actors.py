"""Actors: what a class says of its messages is known at every reference to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

import trio

from omniactors import (
    Actor,
    ActorRef,
    ChildRef,
    DynamicSupervisor,
    PoolRef,
    Request,
    Supervisor,
    on,
    open_supervisor,
    pool,
    run_supervisor,
    subtree,
)


@dataclass(frozen=True)
class Add:
    """Told."""

    amount: int


class Total(Request[int]):
    """Asked."""


class Counter(Actor[Add | Total]):
    """Handles both."""

    def __init__(self, start: int = 0) -> None:
        self.sum = start

    @on
    async def add(self, message: Add) -> None:
        """Add."""
        self.sum += message.amount

    @on(Total)
    async def total(self, _message: Total) -> int:
        """Tell."""
        return self.sum

    async def on_start(self) -> None:
        """See what an actor sees."""
        assert_type(self.supervisor, Supervisor)


class Untyped(Actor):  # type: ignore[type-arg]  # pyright: ignore[reportMissingTypeArgument]
    """The parameter is optional; under --strict the checkers ask for it."""


async def references() -> None:
    """What start_child gives."""
    async with open_supervisor(Counter, strategy="rest_for_one") as sup:
        assert_type(sup, Supervisor)
        counter = await sup.start_child(Counter, 10)
        assert_type(counter, ActorRef[Add | Total])
        assert_type(await sup.start_child(pool(Counter, size=2)), PoolRef[Add | Total])
        assert_type(await sup.start_child(trio.sleep, 1), ChildRef)
        assert_type(await sup.start_child(subtree(Counter)), ChildRef)

        await counter.tell(Add(1))
        counter.tell_nowait(Add(1))
        await counter.tell("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        counter.tell_nowait(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert_type(await counter.ask(Total()), int)

        adder: ActorRef[Add] = counter
        await adder.tell(Total())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with DynamicSupervisor() as dynamic:
        assert_type(dynamic, DynamicSupervisor)
        assert_type(await dynamic.start_child(Counter), ActorRef[Add | Total])


async def embedded(nursery: trio.Nursery) -> None:
    """What nursery.start gives."""
    sup: Supervisor = await nursery.start(run_supervisor, subtree(Counter))
    await sup.wait_children()
