"""Faulty actors: an actor class that follows a fault plan, and is the same otherwise."""

from __future__ import annotations

import functools
import types
from typing import TYPE_CHECKING, Any, TypeVar

from omniactors import Actor, Agent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omniactors import ExitReason
    from omniactors.testing.faults import FaultPlan

    Handler = Callable[[Any, Any], Awaitable[Any]]

A = TypeVar("A", bound=Actor[Any])
FAULTY = "__omniactors_faults__"
"""Marks a handler that follows a plan already."""


def faulty(actor: type[A], plan: FaultPlan) -> type[A]:
    """A subclass of `actor` to run in its place: same name, arguments and handlers, and the faults of the plan.

    For an agent each event is a message, so `of=EventEnvelope` means events only; a try again is a
    message again. The class itself is not touched.
    """
    own = {name: _around(handler, plan) for name, handler in _handlers(actor).items()}
    namespace = {
        "__module__": actor.__module__,
        "__qualname__": actor.__qualname__,
        "__doc__": actor.__doc__,
        **own,
        **_hooks(actor, plan),
    }
    cls = types.new_class(actor.__name__, (actor,), exec_body=lambda body: body.update(namespace))
    if issubclass(cls, Agent):
        # Only now: the content type is that of its base, and this place could not read the annotation.
        cls.handle = _around(cls.handle, plan)  # type: ignore[assignment, method-assign]
    return cls


def _handlers(actor: type[Actor[Any]]) -> dict[str, Handler]:
    """The methods that are handlers, by their names in the class."""
    handlers = set(actor.__handlers__.values())
    return {name: method for name in dir(actor) if _is_one_of(method := getattr(actor, name), handlers)}


def _is_one_of(member: object, handlers: set[Handler]) -> bool:
    return isinstance(member, types.FunctionType) and member in handlers


def _hooks(actor: type[Actor[Any]], plan: FaultPlan) -> dict[str, Callable[..., Awaitable[None]]]:
    async def on_start(self: Actor[Any]) -> None:
        await plan.strike("start", self)
        await actor.on_start(self)

    async def on_stop(self: Actor[Any], reason: ExitReason) -> None:
        await plan.strike("stop", self)
        await actor.on_stop(self, reason)

    def become(self: Actor[Any], *handlers: Callable[[Any], Awaitable[Any]]) -> None:
        actor.become(self, *handlers)  # which checks them, and settles their types
        if handlers:
            actor.become(self, *(_around(_function(handler), plan).__get__(self) for handler in handlers))

    return {"on_start": on_start, "on_stop": on_stop, "become": become}


def _function(handler: Callable[[Any], Awaitable[Any]]) -> Handler:
    """The function of a bound method, without the faults if it has them already."""
    function: Handler = getattr(handler, "__func__", handler)
    return getattr(function, "__wrapped__", function) if hasattr(function, FAULTY) else function


def _around(handler: Handler, plan: FaultPlan) -> Handler:
    @functools.wraps(handler)
    async def with_faults(self: Actor[Any], message: object) -> object:
        await plan.strike("message", self, message)
        result = await handler(self, message)
        await plan.strike("after_message", self, message)
        return result

    # Its message types were settled with the class that it is from; local names could not be read here.
    with_faults.__annotations__ = {}
    setattr(with_faults, FAULTY, plan)
    return with_faults
