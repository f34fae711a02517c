"""Annotation rule: what a handler may take and return, as far as its annotations tell.

What can never be read from JSON, or never be written as JSON, is refused when the agent is made. What
only the value tells (an abstract type, one that only type checkers import) is left to the event.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import msgspec
from msgspec.inspect import CustomType, DictType, type_info

from omniactors.actors.messages import read_annotation
from omniactors.errors import AgentError
from omniactors.streams.envelope import EventDecoder, EventEnvelope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def content_type(cls: type[Any], owner: type) -> Any:  # noqa: ANN401 -- any type form
    """The Content of `async def handle(self, event: EventEnvelope[Content])` in `owner`; Any when it says none.

    Raises AgentError for a handler that is none, and for types that no event or result can have.
    """
    handle, where = cls.handle, f"{cls.__name__}.handle"
    if inspect.isasyncgenfunction(handle):
        raise AgentError(f"{where} must return its result, and it yields")
    if not inspect.iscoroutinefunction(handle):
        raise AgentError(f"{where} must be an async function")
    parameters = list(inspect.signature(handle).parameters.values())[1:]
    if not parameters or any(parameter.default is parameter.empty for parameter in parameters[1:]):
        raise AgentError(f"{where} takes one argument beside self, the event")
    check_returned(handle, where, owner)
    if parameters[0].annotation is inspect.Parameter.empty:
        return Any
    try:
        hint = read_annotation(owner, handle, parameters[0].annotation)
    except NameError as error:
        raise AgentError(
            f"{where}: its annotation cannot be read: {error}; import it at run time too, not for type checkers alone"
        ) from error
    except (AttributeError, TypeError, SyntaxError) as error:
        raise AgentError(f"{where}: its annotation cannot be read: {error}") from error
    if get_origin(hint) is EventEnvelope:
        return _readable(get_args(hint)[0], where)
    if hint is EventEnvelope or hint is Any:
        return Any
    raise AgentError(f"{where} takes an EventEnvelope[Content], not {hint!r}")


def check_returned(function: Callable[..., Any], where: str, owner: type = object) -> None:
    """Raise AgentError when `function`, written in the class `owner`, says that it returns what is never JSON."""
    annotation = getattr(function, "__annotations__", {}).get("return")
    if annotation is None:
        return
    try:
        parts = list(_parts(type_info(read_annotation(owner, function, annotation))))
    except Exception:  # noqa: BLE001 -- what cannot be read here is for type checkers alone
        return
    for part in parts:
        if isinstance(part, CustomType) and _is_concrete(part.cls) and not hasattr(part.cls, "model_dump"):
            raise AgentError(f"{where} returns a {part.cls.__name__}, which is no JSON value")
        if isinstance(part, DictType) and isinstance(part.key_type, _NO_KEYS):
            kind = type(part.key_type).__name__.removesuffix("Type").lower()
            raise AgentError(f"{where} returns a dict with keys of type {kind}, and the keys of JSON are strings")


def fingerprint(content: Any) -> str:  # noqa: ANN401 -- any type form
    """The same for two types as which the same content can be read, as far as can be told, in any process."""
    try:
        info = type_info(content)
        classes = [part.cls for part in _parts(info) if hasattr(part, "cls")]
        models = (part.cls for part in _parts(info) if isinstance(part, CustomType))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a default that has no form in a schema is of no matter here
            schemas = [model.model_json_schema() for model in models if hasattr(model, "model_json_schema")]
        members = [(each.name, each.value) for cls in classes if issubclass(cls, Enum) for each in cls]
        # What a type's own code refuses stands in its module, and so does what that uses, mostly.
        code = sorted(map(_digest_of_module, {cls.__module__ for cls in classes}))
        text = f"{info!r} {schemas!r} {members!r} {code!r}"
    except Exception:  # noqa: BLE001 -- a model's own code may raise anything
        text = repr(content)
    return hashlib.blake2b(_ADDRESS.sub("", text).encode("utf-8", "replace"), digest_size=8).hexdigest()


def runs_code(content: Any) -> bool:  # noqa: ANN401 -- any type form
    """Whether to read content as this type may run code of users: where it is made of a class, for all we know."""
    try:
        return any(hasattr(part, "cls") for part in _parts(type_info(content)))
    except Exception:  # noqa: BLE001 -- as above
        return True


def _digest_of_module(name: str) -> str:
    """What stands in the file of a module, in short; nothing where that cannot be told."""
    try:
        file = sys.modules[name].__file__
        return "" if file is None else hashlib.blake2b(Path(file).read_bytes(), digest_size=8).hexdigest()
    except (KeyError, AttributeError, OSError):
        return ""


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

_NO_KEYS = (
    msgspec.inspect.IntType,
    msgspec.inspect.FloatType,
    msgspec.inspect.BoolType,
    msgspec.inspect.NoneType,
    msgspec.inspect.BytesType,
    msgspec.inspect.DateTimeType,
    msgspec.inspect.DateType,
    msgspec.inspect.DecimalType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.TupleType,
    msgspec.inspect.VarTupleType,
    msgspec.inspect.NamedTupleType,
    msgspec.inspect.FrozenSetType,
)

_READ = (dict, list, tuple, set, frozenset, str, int, float, bytes)
"""What JSON is read as, and so what may be written as JSON again."""


def _readable(content: Any, where: str) -> Any:  # noqa: ANN401 -- any type form
    """The type, if JSON can be read as it."""
    try:
        EventDecoder(content)
        parts = list(_parts(type_info(content)))
    except (TypeError, NameError, AttributeError) as error:
        raise AgentError(f"{where}: no content can be read as {content!r}: {error}") from error
    for part in parts:
        if isinstance(part, CustomType) and _is_concrete(part.cls) and not hasattr(part.cls, "model_validate"):
            raise AgentError(f"{where}: no content can be read as {part.cls.__name__}; a dataclass or a struct can")
    return content


def _is_concrete(cls: type) -> bool:
    """Whether JSON never is an instance of it, nor of a class that stands for it."""
    if cls.__module__ == "collections.abc":  # what nothing of JSON is, as an iterator or a function
        return not any(issubclass(kind, cls) for kind in _READ)
    is_open = inspect.isabstract(cls) or getattr(cls, "_is_protocol", False) or cls is object
    return not is_open and not issubclass(cls, _READ)


def _parts(info: Any) -> Iterator[msgspec.inspect.Type]:  # noqa: ANN401 -- a type, or a field that has one
    """The type and all that it is made of, each once: a type may hold itself."""
    seen: set[int] = set()
    waiting = [info]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, msgspec.inspect.Type):
            yield part
        for name in part.__struct_fields__:
            value = getattr(part, name)
            each = value if isinstance(value, tuple) else (value,)
            waiting += [one for one in each if isinstance(one, msgspec.inspect.Type | msgspec.inspect.Field)]
