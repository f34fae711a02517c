"""Messages: which handler takes which type, settled when the class is made."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import sys
import types
import typing
from abc import ABCMeta
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args, get_origin, is_typeddict, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
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
def on(*message_types: type | types.UnionType) -> Callable[[F], F]: ...


def on(*args: Any) -> Any:
    """Mark an async method as the handler of a message type.

    Bare, `@on` takes the type from the annotation of the one parameter; a union stands for each of
    its members. `@on(Add)` names the types. A subclass of a message goes to the handler of its
    nearest base. Raises TypeError when the class is made, not when a message comes.
    """
    body = sys._getframe(1).f_locals  # noqa: SLF001 -- the class body in which the handler stands
    if len(args) == 1 and isinstance(args[0], types.FunctionType):
        return _mark(args[0], (), body)
    kinds = tuple(kind for form in args for kind in _members("@on", form))
    return lambda handler: _mark(handler, kinds, body)


def _mark(handler: F, kinds: tuple[type, ...], body: dict[str, Any]) -> F:
    setattr(handler, _MARK, kinds)
    if "__qualname__" in body:  # as in class bodies, and nowhere else
        body.setdefault(_BODY, []).append(handler)
    return handler


_WIDER: dict[type, tuple[type, ...]] = {int: (float, complex), float: (complex,)}
"""What an annotation takes beside its own type, as type checkers read it."""


class HandlerTable(Mapping[type, "Handler"]):
    """Handlers by message type. A type without one of its own goes to that of its nearest base."""

    __slots__ = ("exact",)

    def __init__(self, handlers: Mapping[type, Handler] | None = None) -> None:
        self.exact: dict[type, Handler] = dict(handlers or {})
        """The types that have one of their own. A plain dict for those who look here first: no other is as quick."""

    def __getitem__(self, kind: type) -> Handler:
        return self.exact[kind]

    def __iter__(self) -> Iterator[type]:
        return iter(self.exact)

    def __len__(self) -> int:
        return len(self.exact)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the types that have a handler."""
        return tuple(sorted(kind.__name__ for kind in self.exact))

    def find(self, kind: type) -> Handler | None:
        """The handler for messages of this type, its own or a base's; nothing is kept of types that were met here."""
        exact = self.exact
        for base in kind.__mro__[:-1]:
            for candidate in (base, *_WIDER.get(base, ())):
                if candidate in exact:
                    return exact[candidate]
        for candidate in exact:
            if issubclass(type(candidate), ABCMeta) and issubclass(kind, candidate):
                return exact[candidate]
        return exact.get(object)

    def accepts(self, kind: type) -> bool:
        """Whether a message of this type has a handler, its own or a base's."""
        return kind in self.exact or self.find(kind) is not None


def build_table(cls: type) -> HandlerTable:
    """The table of `cls`, its bases' handlers included.

    Raises TypeError for a handler that is not async, whose message type cannot be read or is none that
    a message can have, or whose type another handler of the class takes already.
    """
    _check_hidden(cls)
    table = HandlerTable()
    for base in reversed(cls.__mro__):
        own: dict[type, str] = {}
        for name, function in _marked(base):
            handler = _visible(cls, base, name)
            for kind in _message_types(base, function):
                if vars(base)[own.setdefault(kind, name)] is not function:
                    raise TypeError(f"{cls.__name__}: both {own[kind]} and {name} handle {kind.__name__}")
                _check_reply(cls, handler, kind)
                table.exact[kind] = handler
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
        if not any(_leads_to(value, function) for _, value in _marked(cls)):
            raise TypeError(f"{cls.__name__}: the handler {function.__name__} is hidden by what follows under its name")


def _leads_to(value: Any, function: FunctionType) -> bool:  # noqa: ANN401 -- any attribute may hide a handler
    """Whether this is the function, or a decorator's wrapper around it."""
    return inspect.unwrap(value, stop=lambda inner: inner is function) is function


def _check_reply(cls: type, handler: Any, kind: type) -> None:  # noqa: ANN401 -- as above
    """Raise TypeError when a `Request[R]` is handled by something that says it returns anything but an R.

    What cannot be read, or compared, is left to the type checker.
    """
    owner = owner_of(cls, handler)
    if owner is not cls and hasattr(owner, "__handlers__"):
        return  # it was checked when that class was made
    promised = reply_type(kind)
    try:
        returned = read_annotation(owner, handler, getattr(handler, "__annotations__", {}).get("return", Any))
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
    promised, returned = _plain(promised), _plain(returned)
    if promised is object or returned == promised:
        return True
    if get_origin(returned) in (typing.Union, types.UnionType):
        return all(_fits(member, promised) for member in get_args(returned))
    if get_origin(promised) in (typing.Union, types.UnionType):
        return any(_fits(returned, member) for member in get_args(promised))
    return _is_one_of(get_origin(returned) or returned, get_origin(promised) or promised)


def _plain(form: Any) -> Any:  # noqa: ANN401 -- any type form
    """What an alias (`type Reply = int`) or an annotated type stands for."""
    while get_origin(form) is typing.Annotated or type(form).__name__ == "TypeAliasType":
        form = form.__origin__ if get_origin(form) is typing.Annotated else form.__value__
    return form


def _is_one_of(plain: Any, expected: Any) -> bool:  # noqa: ANN401 -- any type form
    if plain is type or not (_is_comparable(plain) and _is_comparable(expected)):
        return True
    try:
        return issubclass(plain, expected) or expected in _WIDER.get(plain, ())
    except TypeError:  # a metaclass that knows better
        return True


def _is_comparable(form: Any) -> bool:  # noqa: ANN401 -- any type form
    """Whether to be of this type is to be an instance of this class or of one that is derived from it."""
    return isinstance(form, type) and not (is_protocol(form) or is_typeddict(form) or Any in form.__mro__)


def is_protocol(kind: type) -> bool:
    """Whether it is a `typing.Protocol`, and not only derived from one."""
    return bool(getattr(kind, "_is_protocol", False))  # typing.is_protocol is newer than Python 3.11


def become_table(cls: type, own: HandlerTable, handlers: Sequence[Callable[[Any], Awaitable[Any]]]) -> HandlerTable:
    """The class's `own` table with `handlers`, bound methods, in the place of its own.

    Raises TypeError for one that is no handler, and for a type that the class has no handler for.
    """
    table = HandlerTable(own)
    for handler in handlers:
        function = getattr(handler, "__func__", None)
        if function is None:
            raise TypeError(f"become() takes bound methods of the actor, not {handler!r}")
        # Not marked as a handler: it is one only while the actor has become so.
        for kind in getattr(function, _MARK, ()) or _read_types(owner_of(cls, function), function):
            if not own.accepts(kind):
                raise TypeError(f"{cls.__name__} has no handler for {kind.__name__}, so nobody can send it one")
            table.exact[kind] = function
    return table


def _marked(cls: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(cls).items():
        if callable(value) and hasattr(value, _MARK):
            yield name, value


def _message_types(owner: type, function: FunctionType) -> tuple[type, ...]:
    """What the marked `function` handles, as read when the first class was made that has it."""
    where = f"{owner.__name__}.{function.__name__}"
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"{where}: a handler is an async function")
    _message_parameter(where, function)
    if not getattr(function, _MARK):
        setattr(function, _MARK, _read_types(owner, function))
    types_: tuple[type, ...] = getattr(function, _MARK)
    for kind in types_:
        _check_possible(where, kind)
    return types_


def _read_types(owner: type, function: FunctionType) -> tuple[type, ...]:
    where = f"{owner.__name__}.{function.__name__}"
    parameter = _message_parameter(where, function)
    if parameter.annotation is parameter.empty:
        raise TypeError(f"{where}: annotate {parameter.name} with the message type, or use @on(MessageType)")
    try:
        hint = read_annotation(owner, function, parameter.annotation)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise TypeError(f"{where}: its annotations cannot be read ({error}); use @on(MessageType)") from error
    return tuple(_members(where, hint))


def _check_possible(where: str, kind: type) -> None:
    """Raise TypeError for a type that the class of no message is derived from."""
    is_abstract = isinstance(kind, ABCMeta) and (inspect.isabstract(kind) or kind.__module__ == "numbers")
    if is_protocol(kind):
        why = "a protocol"
    elif is_typeddict(kind):
        why = "a TypedDict, and its values are plain dicts"
    elif is_abstract and kind.__module__.partition(".")[0] in sys.stdlib_module_names:
        why = "an abstract class that others belong to without being derived from it"
    else:
        return
    raise TypeError(
        f"{where}: a message is handled by its class, and no message has {kind.__name__} for one: it is {why}; "
        "name the classes of the messages"
    )


def _message_parameter(where: str, function: FunctionType) -> inspect.Parameter:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if not parameters or len(required) > 1:
        raise TypeError(f"{where}: a handler takes one message")
    return parameters[0]


def _members(where: str, hint: object) -> Iterator[type]:
    hint = _plain(hint)
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
        raise TypeError(f"{where}: {hint!r} is no message type; name the classes of the messages: @on(MessageType)")


# -- where a function was written -------------------------------------------------------------------


def owner_of(cls: type, function: Any) -> type:  # noqa: ANN401 -- any attribute may hide a handler
    """The class, `cls` or a base of it, in which `function` was written."""
    return next((base for base in cls.__mro__ if any(value is function for value in vars(base).values())), cls)


def read_annotation(owner: type, function: Any, annotation: object) -> Any:  # noqa: ANN401 -- any type form
    """What an annotation of `function` stands for where that was written, in the class `owner`.

    Raises NameError, AttributeError, TypeError or SyntaxError when that cannot be read.
    """
    written = inspect.unwrap(function)
    # This annotation alone: the others may name what only type checkers import.
    alone = types.SimpleNamespace(__annotations__={"it": annotation})
    return typing.get_type_hints(alone, written.__globals__, _names_at(owner, written))["it"]


def _names_at(owner: type, written: FunctionType) -> dict[str, Any]:
    """What can be named there and stands in no module: in the class, around it, and last in its bases."""
    inherited = {
        name: value
        for base in reversed(owner.__mro__[1:])
        for name, value in _names_in(base)
        if name not in written.__globals__ and not hasattr(builtins, name)
    }
    around = {**_enclosing(written), **dict(_closed_over(written))}
    # The class itself has no name yet, or an older one has it: that of a notebook's cell which is run again.
    known = around.get(owner.__name__, written.__globals__.get(owner.__name__, owner))
    if getattr(known, "__qualname__", "") == owner.__qualname__ and known.__module__ == owner.__module__:
        around[owner.__name__] = owner
    return {**inherited, **around, **dict(_names_in(owner))}


def _closed_over(written: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(written.__code__.co_freevars, written.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it has no value yet
            yield name, cell.cell_contents


def _names_in(cls: type) -> Iterator[tuple[str, Any]]:
    """What stands in a class, without its methods: one may well be called as a type is."""
    return ((name, value) for name, value in vars(cls).items() if not isinstance(value, types.FunctionType))


def _enclosing(written: FunctionType) -> dict[str, Any]:
    """The local names of the functions, and classes, around this one, as far as they still run."""
    names: dict[str, Any] = {}
    frame: types.FrameType | None = sys._getframe(1)  # noqa: SLF001 -- the only way to see a definer's locals
    while frame is not None:
        if frame.f_globals is written.__globals__ and written.__qualname__.startswith(f"{frame.f_code.co_qualname}."):
            names = {**frame.f_locals, **names}
        frame = frame.f_back
    return names
