"""Faulty actors: an actor class that follows a fault plan, and is the same otherwise."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from typing import TYPE_CHECKING, Any, TypeVar

from omniactors import Actor, Agent, on

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
    message again. The class itself is not touched, and what an instance writes to `type(self)` goes
    to the subclass.
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


def _hooks(actor: type[Actor[Any]], plan: FaultPlan) -> dict[str, Callable[..., Any]]:
    async def on_start(self: Actor[Any]) -> None:
        await plan.strike("start", self)
        await actor.on_start(self)

    async def on_stop(self: Actor[Any], reason: ExitReason) -> None:
        await plan.strike("stop", self)
        await actor.on_stop(self, reason)

    def become(self: Actor[Any], *handlers: Callable[[Any], Awaitable[Any]]) -> None:
        actor.become(self, *handlers)  # which checks them
        if handlers:
            actor.become(self, *(_become_faulty(handler, plan) for handler in handlers))

    return {"on_start": on_start, "on_stop": on_stop, "become": become}


def _become_faulty(handler: Any, plan: FaultPlan) -> Callable[[Any], Awaitable[Any]]:  # noqa: ANN401 -- a bound method
    """A method that `become` takes, with the faults, unless it is a handler of the class and has them already."""
    bound: Callable[[Any], Awaitable[Any]] = handler
    if not hasattr(handler.__func__, FAULTY):
        kinds = _message_types(handler.__func__, type(handler.__self__))
        bound = types.MethodType(on(*kinds)(_around(handler.__func__, plan)), handler.__self__)
    return bound


def _message_types(function: types.FunctionType, cls: type) -> list[type]:
    """What the annotation of the one parameter says, read where the function stands."""
    name = list(inspect.signature(function).parameters)[1]
    alone = types.SimpleNamespace(__annotations__={name: function.__annotations__[name]})
    hint = typing.get_type_hints(alone, function.__globals__, dict(vars(cls)))[name]
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [typing.get_origin(kind) or kind for kind in (typing.get_args(hint) if is_union else [hint])]


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
