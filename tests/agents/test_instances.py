"""Instances of one agent: an event goes to one that is free, and what each has in hand is shown."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import Agent, EventEnvelope, OmniActors, on

if TYPE_CHECKING:
    from collections.abc import Callable


class Poke:
    """A direct message, whose handler takes long."""


class Twins(Agent, topic="twins", name="twins", concurrency=2):
    """Two instances, that handle direct messages too."""

    handled: trio.Event
    may_end: trio.Event

    @on
    async def poke(self, _message: Poke) -> None:
        await type(self).may_end.wait()

    async def handle(self, event: EventEnvelope[int]) -> int:
        type(self).handled.set()
        return event.payload.content


@pytest.mark.parametrize("pokes", [1, 3])
async def test_an_event_goes_to_the_instance_that_is_free(new_system: Callable[..., OmniActors], pokes: int) -> None:
    """Direct messages arrive in the same instant, and one instance is woken for both: the other takes the event."""
    Twins.handled, Twins.may_end = trio.Event(), trio.Event()
    omni = new_system()

    def poke(_event: EventEnvelope[Any]) -> None:
        """The key of an event is asked for right before the event is handed out."""
        first = omni.agent_ref("twins").value.child(1)
        for _ in range(pokes):
            first.tell_nowait(Poke())

    omni.add(Twins, key=poke)
    with trio.fail_after(30):
        async with omni:
            await trio.sleep(0.05)
            await omni.publish("twins", 1)
            await Twins.handled.wait()
            Twins.may_end.set()
        await omni.shutdown()


class Holding(Agent, topic="holding", name="holding"):
    """Holds its event until it may end."""

    entered: trio.Event
    may_end: trio.Event

    async def handle(self, event: EventEnvelope[int]) -> int:
        type(self).entered.set()
        await type(self).may_end.wait()
        return event.payload.content


async def test_the_tree_shows_the_event_that_an_agent_has_in_hand(new_system: Callable[..., OmniActors]) -> None:
    Holding.entered, Holding.may_end = trio.Event(), trio.Event()
    omni = new_system()
    omni.add(Holding)
    with trio.fail_after(30):
        async with omni:
            task_id = await omni.publish("holding", 1)
            await Holding.entered.wait()
            shown = f"event {task_id} of holding"
            instance = next(info for info in omni.agent_ref("holding").inspect() if info.kind == "actor")
            assert instance.handling == shown
            assert f"handles {shown}" in str(omni.supervisor.tree())
            Holding.may_end.set()
            await omni.wait_result(task_id)
        await omni.shutdown()


CUSTOMER: ContextVar[int] = ContextVar("customer", default=0)


class Remembering(Agent, topic="remembering", name="remembering"):
    """Sets a context variable, and takes it back never."""

    async def handle(self, event: EventEnvelope[int]) -> int:
        before = CUSTOMER.get()
        CUSTOMER.set(event.payload.content)
        return before


async def test_a_context_variable_does_not_reach_the_next_event(new_system: Callable[..., OmniActors]) -> None:
    omni = new_system()
    omni.add(Remembering)
    with trio.fail_after(30):
        async with omni:
            for number in (1, 2, 3):
                assert await omni.wait_result(await omni.publish("remembering", number)) == 0
        await omni.shutdown()
