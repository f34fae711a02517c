"""Registry and pools: a key knows what its actors take, and a pool's reference what its members do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

from omniactors import (
    Actor,
    ActorRef,
    BroadcastRef,
    PoolRef,
    PoolStatistics,
    Registry,
    Request,
    ServiceKey,
    on,
    open_supervisor,
    pool,
)


@dataclass(frozen=True)
class Add:
    """Told."""

    amount: int


class Total(Request[int]):
    """Asked."""


class Mail:
    """For another kind of actor."""


ADDERS = ServiceKey[Add]("adders")
COUNTERS = ServiceKey[Add | Total]("counters", unique=True)
POST = ServiceKey[Mail]("post")


class Counter(Actor[Add | Total]):
    """Handles both."""

    @on
    async def add(self, message: Add) -> None:
        """Add."""

    @on
    async def total(self, _message: Total) -> int:
        """Tell."""
        return 0

    async def on_start(self) -> None:
        """Register."""
        assert_type(self.registry, Registry)
        self.registry.register(ADDERS)


async def lookups() -> None:
    """What a key finds."""
    async with open_supervisor() as sup:
        counter = await sup.start_child(Counter)
        sup.registry.register(COUNTERS, counter)
        sup.registry.register(ADDERS, counter)  # it takes more than that, which is fine
        sup.registry.register(POST, counter)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
        adder = sup.registry.lookup(ADDERS)
        assert_type(adder, ActorRef[Add])
        await adder.tell(Add(1))
        await adder.tell(Total())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert_type(sup.registry.find(ADDERS), ActorRef[Add] | None)
        assert_type(sup.registry.members(ADDERS), list[ActorRef[Add]])
        assert_type(await sup.registry.wait_for(COUNTERS), ActorRef[Add | Total])
        assert_type(await sup.registry.lookup(COUNTERS).ask(Total()), int)


async def pools() -> None:
    """What a pool's reference gives."""
    async with open_supervisor() as sup:
        counters = await sup.start_child(pool(Counter, size=2, route="least_loaded"))
        assert_type(counters, PoolRef[Add | Total])
        assert_type(await counters.ask(Total()), int)
        assert_type(counters.statistics(), PoolStatistics)
        await counters.resize(3)
        await counters.tell("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        sup.registry.register(COUNTERS, counters)

        await sup.start_child(pool(Counter, size=2, route="consistent_hash", key="amount"))
        await sup.start_child(pool(Counter, size=2, route="consistent_hash", key=lambda message: message.amount))

        everybody = await sup.start_child(pool(Counter, size=2, route="broadcast"))
        assert_type(everybody, BroadcastRef[Add | Total])
        assert_type(await everybody.ask(Total()), list[int])
