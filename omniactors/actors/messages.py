"""Messages: which handler takes which type, settled when the class is made."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args, get_origin, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FunctionType

    Handler = Callable[[Any, Any], Awaitable[Any]]

R = TypeVar("R")
F = TypeVar("F", bound="Callable[..., Awaitable[Any]]")

_MARK = "__omniactors_types__"


class Request(Generic[R]):
    """Base of a message that names the type of its reply: `class Total(Request[int])`."""

    __slots__ = ()


@overload
def on(handler: F, /) -> F: ...


@overload
def on(*message_types: type) -> Callable[[F], F]: ...


def on(*args: Any) -> Any:
    """Mark an async method as the handler of a message type.

    Bare, `@on` takes the type from the annotation of the one parameter; a union stands for each of
    its members. `@on(Add)` names the types. A subclass of a message goes to the handler of its
    nearest base. Raises TypeError when the class is made, not when a message comes.
    """
    if len(args) == 1 and not isinstance(args[0], type):
        setattr(args[0], _MARK, ())
        return args[0]
    for kind in args:
        if not isinstance(kind, type):
            raise TypeError(f"@on takes message types, not {kind!r}")

    def mark(handler: F) -> F:
        setattr(handler, _MARK, args)
        return handler

    return mark


class HandlerTable(dict[type, "Handler"]):
    """Handlers by exact message type; types met later are added when a base of theirs has one."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the types that have a handler."""
        return tuple(sorted(kind.__name__ for kind in self))

    def accepts(self, kind: type) -> bool:
        """Whether a message of this type has a handler, its own or a base's."""
        if kind in self:
            return True
        for base in kind.__mro__[1:-1]:
            if base in self:
                self[kind] = self[base]
                return True
        if object in self:
            self[kind] = self[object]
            return True
        return False


def build_table(cls: type, namespace: dict[str, Any]) -> HandlerTable:
    """The table of `cls`, its bases' handlers included; `namespace` helps to resolve annotations.

    Raises TypeError for a handler that is not async, whose message type cannot be read, or whose
    type another handler of the class takes already.
    """
    table = HandlerTable()
    for base in reversed(cls.__mro__):
        own: dict[type, str] = {}
        for name, function in _marked(base):
            handler = getattr(cls, name)
            for kind in _message_types(cls, function, namespace):
                if own.setdefault(kind, name) != name:
                    raise TypeError(f"{cls.__name__}: both {own[kind]} and {name} handle {kind.__name__}")
                table[kind] = handler
    return table


def _marked(cls: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(cls).items():
        if callable(value) and hasattr(value, _MARK):
            yield name, value


def _message_types(cls: type, function: FunctionType, namespace: dict[str, Any]) -> tuple[type, ...]:
    where = f"{cls.__name__}.{function.__name__}"
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"{where}: a handler is an async function")
    parameters = list(inspect.signature(function).parameters.values())[1:]
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if not parameters or len(required) > 1:
        raise TypeError(f"{where}: a handler takes one message")
    if not getattr(function, _MARK):
        # Remembered, since a subclass elsewhere could not see the names that this class saw.
        setattr(function, _MARK, _annotated_types(where, parameters[0], function, {**namespace, **vars(cls)}))
    types_: tuple[type, ...] = getattr(function, _MARK)
    return types_


def _annotated_types(
    where: str, parameter: inspect.Parameter, function: FunctionType, namespace: dict[str, Any]
) -> tuple[type, ...]:
    if parameter.annotation is parameter.empty:
        raise TypeError(f"{where}: annotate {parameter.name} with the message type, or use @on(MessageType)")
    # This annotation alone: the others may name what only type checkers import.
    alone = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        hints = typing.get_type_hints(alone, function.__globals__, namespace)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise TypeError(f"{where}: its annotations cannot be read ({error}); use @on(MessageType)") from error
    return tuple(_members(where, hints[parameter.name]))


def _members(where: str, hint: object) -> Iterator[type]:
    origin = get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for member in get_args(hint):
            yield from _members(where, member)
    elif hint is Any:
        yield object
    elif isinstance(origin, type):
        yield origin
    elif isinstance(hint, type):
        yield hint
    else:
        raise TypeError(f"{where}: {hint!r} is no message type; use @on(MessageType)")


def definer_namespace() -> dict[str, Any]:
    """The local names of the code that makes a class, as seen from inside its `__init_subclass__`."""
    frame = sys._getframe(1)  # noqa: SLF001 -- the only way to see a definer's locals
    while frame.f_back is not None and frame.f_code.co_name == "__init_subclass__":
        frame = frame.f_back
    return dict(frame.f_locals)
