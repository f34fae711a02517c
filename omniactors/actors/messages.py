"""Messages: which handler takes which type, settled when the class is made."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args, get_origin, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from types import FunctionType

    Handler = Callable[[Any, Any], Awaitable[Any]]

R = TypeVar("R")
F = TypeVar("F", bound="Callable[..., Awaitable[Any]]")

_MARK = "__omniactors_types__"
_BODY = "__omniactors_handlers__"
"""Where a class body keeps the functions that were marked in it, so that none can vanish unnoticed."""


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
    body = sys._getframe(1).f_locals  # noqa: SLF001 -- the class body in which the handler stands
    if len(args) == 1 and not isinstance(args[0], type):
        return _mark(args[0], (), body)
    for kind in args:
        if not isinstance(kind, type):
            raise TypeError(f"@on takes message types, not {kind!r}")

    return lambda handler: _mark(handler, args, body)


def _mark(handler: F, kinds: tuple[type, ...], body: dict[str, Any]) -> F:
    setattr(handler, _MARK, kinds)
    if "__qualname__" in body:  # as in class bodies, and nowhere else
        body.setdefault(_BODY, []).append(handler)
    return handler


class HandlerTable(dict[type, "Handler"]):
    """Handlers by exact message type; types met later are added when a base of theirs has one."""

    def __init__(self, handlers: Mapping[type, Handler] | None = None) -> None:
        super().__init__(handlers or {})
        self._learned: set[type] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the types that have a handler."""
        return tuple(sorted(kind.__name__ for kind in self))

    def accepts(self, kind: type) -> bool:
        """Whether a message of this type has a handler, its own or a base's."""
        if kind in self:
            return True
        for base in kind.__mro__[1:]:
            if base in self:
                self[kind] = self[base]
                self._learned.add(kind)
                return True
        return False

    def own(self) -> HandlerTable:
        """A copy without the types met later."""
        return HandlerTable({kind: handler for kind, handler in self.items() if kind not in self._learned})


def build_table(cls: type, namespace: dict[str, Any]) -> HandlerTable:
    """The table of `cls`, its bases' handlers included; `namespace` helps to resolve annotations.

    Raises TypeError for a handler that is not async, whose message type cannot be read, or whose
    type another handler of the class takes already.
    """
    _check_hidden(cls)
    table = HandlerTable()
    for base in reversed(cls.__mro__):
        own: dict[type, str] = {}
        for name, function in _marked(base):
            handler = _visible(cls, base, name)
            for kind in _message_types(cls, function, namespace):
                if own.setdefault(kind, name) != name:
                    raise TypeError(f"{cls.__name__}: both {own[kind]} and {name} handle {kind.__name__}")
                _check_reply(cls, handler, kind, namespace)
                table[kind] = handler
    return table


def _visible(cls: type, base: type, name: str) -> Any:  # noqa: ANN401 -- any attribute may hide a handler
    """The handler `name` as `cls` has it; raises TypeError when something that can be none hides it.

    An async method that overrides a handler handles the same messages, marked or not.
    """
    handler = getattr(cls, name)
    if handler is not vars(base).get(name) and not inspect.iscoroutinefunction(handler):
        raise TypeError(f"{cls.__name__}.{name} hides the handler {base.__name__}.{name}, and is no async method")
    return handler


def _check_hidden(cls: type) -> None:
    """Raise TypeError for a handler that a later definition of the same name in the class has replaced."""
    for function in vars(cls).get(_BODY, ()):
        if all(value is not function for value in vars(cls).values()):
            raise TypeError(f"{cls.__name__}: the handler {function.__name__} is hidden by what follows under its name")


def _check_reply(cls: type, handler: Any, kind: type, namespace: dict[str, Any]) -> None:  # noqa: ANN401 -- as above
    """Raise TypeError when a `Request[R]` is handled by something that says it returns anything but an R.

    What cannot be read, or compared, is left to the type checker.
    """
    promised = reply_type(kind)
    annotation = getattr(handler, "__annotations__", {}).get("return", Any)
    alone = types.SimpleNamespace(__annotations__={"return": annotation})
    try:
        returned = typing.get_type_hints(alone, handler.__globals__, {**namespace, **vars(cls)})["return"]
    except (NameError, AttributeError, TypeError, SyntaxError):
        return
    if not _fits(returned, promised):
        shown = getattr(promised, "__name__", promised), getattr(returned, "__name__", returned)
        raise TypeError(
            f"{cls.__name__}.{handler.__name__}: {kind.__name__} promises a reply of type {shown[0]}, "
            f"and the handler returns {shown[1]}"
        )


def reply_type(kind: type) -> Any:  # noqa: ANN401 -- any type form
    """The R of a `Request[R]`; Any for another message, and for a bare Request."""
    for base in kind.__mro__:
        for form in vars(base).get("__orig_bases__", ()):
            if get_origin(form) is Request and not isinstance(get_args(form)[0], TypeVar):
                return get_args(form)[0]
    return Any


def _fits(returned: Any, promised: Any) -> bool:  # noqa: ANN401 -- any type form
    """Whether a value of one type can be of the other; True where only a type checker could tell."""
    if Any in (returned, promised) or returned == promised or promised is object:
        return True
    members = get_args(promised) if get_origin(promised) in (typing.Union, types.UnionType) else (promised,)
    if get_origin(returned) in (typing.Union, types.UnionType):
        return all(_fits(member, promised) for member in get_args(returned))
    plain = get_origin(returned) or returned
    for member in members:
        expected = get_origin(member) or member
        if not isinstance(plain, type) or not isinstance(expected, type):
            return True
        if issubclass(plain, expected) or (plain, expected) in ((int, float), (int, complex), (float, complex)):
            return True
    return False


def become_table(cls: type, own: HandlerTable, handlers: Sequence[Callable[[Any], Awaitable[Any]]]) -> HandlerTable:
    """The class's `own` table with `handlers`, bound methods, in the place of its own.

    Raises TypeError for one that is no handler, and for a type that the class has no handler for.
    """
    table = own.own()
    for handler in handlers:
        function = getattr(handler, "__func__", None)
        if function is None:
            raise TypeError(f"become() takes bound methods of the actor, not {handler!r}")
        # Not marked as a handler: it is one only while the actor has become so.
        for kind in getattr(function, _MARK, ()) or _read_types(cls, function, _class_names(cls)):
            if not own.accepts(kind):
                raise TypeError(f"{cls.__name__} has no handler for {kind.__name__}, so nobody can send it one")
            table[kind] = function
    return table


def _marked(cls: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(cls).items():
        if callable(value) and hasattr(value, _MARK):
            yield name, value


def _message_types(cls: type, function: FunctionType, namespace: dict[str, Any]) -> tuple[type, ...]:
    where = f"{cls.__name__}.{function.__name__}"
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"{where}: a handler is an async function")
    if not getattr(function, _MARK):
        # Remembered, since a subclass elsewhere could not see the names that this class saw.
        setattr(function, _MARK, _read_types(cls, function, {**namespace, **_class_names(cls)}))
    types_: tuple[type, ...] = getattr(function, _MARK)
    _message_parameter(where, function)
    return types_


def _read_types(cls: type, function: FunctionType, namespace: Mapping[str, Any]) -> tuple[type, ...]:
    where = f"{cls.__name__}.{function.__name__}"
    return _annotated_types(where, _message_parameter(where, function), function, dict(namespace))


def _class_names(cls: type) -> dict[str, Any]:
    """What stands in the class and its bases: message types are often nested there."""
    return {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}


def _message_parameter(where: str, function: FunctionType) -> inspect.Parameter:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if not parameters or len(required) > 1:
        raise TypeError(f"{where}: a handler takes one message")
    return parameters[0]


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
