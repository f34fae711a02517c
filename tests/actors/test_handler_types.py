"""Which messages a handler takes, and which it may take at all: read where it was written, refused when never met."""

# mypy: disable-error-code="misc, untyped-decorator, valid-type, arg-type, attr-defined, var-annotated, unused-ignore"
# (Most classes here stand in a module that only the tests make, or are wrong.)

from __future__ import annotations

import collections.abc
import functools
import numbers
import sys
import types
from abc import ABC, abstractmethod
from collections import UserDict
from typing import TYPE_CHECKING, Annotated, Any, Generic, NewType, Protocol, TypedDict, TypeVar, runtime_checkable

import pytest

from omniactors import Actor, Agent, EventEnvelope, Request, on, open_supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

T = TypeVar("T")

LIBRARY = """
from __future__ import annotations
from omniactors import Actor, Agent, EventEnvelope, Request, on
class Start: pass
class Result: pass
class Content(dict): pass
class Get(Request[Result]): pass
class Lifecycle:
    class Inner: pass
    @on
    async def start(self, message: Start) -> None: pass
    @on
    async def inner(self, message: Inner) -> None: pass
    @on
    async def get(self, message: Get) -> Result: return Result()
class Base(Actor):
    @on
    async def get(self, message: Get) -> Result: return Result()
class Handling:
    async def handle(self, event: EventEnvelope[Content]) -> None: pass
def logged(function):
    import functools
    @functools.wraps(function)
    async def wrapper(*args): return await function(*args)
    return wrapper
"""


@pytest.fixture
def library() -> Iterator[Any]:
    """A module of somebody else's, with classes of the same names as here."""
    module = types.ModuleType("library_of_tests")
    sys.modules[module.__name__] = module
    exec(compile(LIBRARY, "library.py", "exec"), module.__dict__)  # noqa: S102 -- a module of its own is the point
    yield module
    del sys.modules[module.__name__]


class Start:
    """Not the library's."""


class Result:
    """Not the library's."""


class Inner:
    """Not the library's."""


class Content:
    """Not the library's."""


# -- where a handler was written ------------------------------------------------------------------


def test_a_mixins_handlers_are_read_in_its_own_module_and_class(library: Any) -> None:
    class Start:
        """Of this function, as the one of the module is another too."""

    class Service(library.Lifecycle, Actor[Any]):
        pass

    accepts = Service.__handlers__.accepts
    assert accepts(library.Start)
    assert accepts(library.Lifecycle.Inner)
    assert not accepts(Start)
    assert not accepts(Inner)


def test_a_subclass_may_have_other_classes_of_the_same_names(library: Any) -> None:
    """Its module's, its function's, its own: what its base says is read where the base is."""

    class Result:
        """Of this function."""

    class Sub(library.Base):
        class Get:
            """Of this class."""

        Result = int

    assert Sub.__handlers__.accepts(library.Get)
    assert not Sub.__handlers__.accepts(Sub.Get)

    class Both(library.Lifecycle, library.Base):
        pass

    assert Both.__handlers__.accepts(library.Get)


def test_an_override_is_read_where_it_stands(library: Any) -> None:
    with pytest.raises(TypeError, match=r"Get promises a reply of type Result, and the handler returns Result"):

        class Sub(library.Base):
            async def get(self, _message: Any) -> Result:
                return Result()


def test_a_decorated_handler_is_read_where_it_was_written(library: Any) -> None:
    class Taker(Actor[Any]):
        @on
        @library.logged
        async def start(self, _message: Start) -> None:
            pass

    assert Taker.__handlers__.accepts(Start)
    assert not Taker.__handlers__.accepts(library.Start)


def test_a_mixin_of_a_function_is_read_by_what_it_closes_over_and_what_still_runs() -> None:
    class Local:
        pass

    class Mixin:
        @on
        async def take(self, _message: Local) -> None:
            pass

    def make() -> type[Actor[Any]]:
        class Local:
            """Of another function."""

        class Taker(Mixin, Actor[Any]):
            pass

        assert not Taker.__handlers__.accepts(Local)
        return Taker

    assert make().__handlers__.accepts(Local)


def test_methods_may_be_called_as_types_are() -> None:
    class Store(Actor[Any]):
        async def list(self) -> list[int]:
            return []

        @on
        async def take(self, _message: list[int]) -> list[int]:
            return []

    assert Store.__handlers__.accepts(list)


def test_a_mixins_handle_says_what_content_an_agent_takes(library: Any) -> None:
    class Greeter(library.Handling, Agent, topic="t"):
        pass

    class Sub(Greeter):
        Content = int

    assert Greeter.__content_type__ is library.Content
    assert Sub.__content_type__ is library.Content

    class Other(Sub):
        async def handle(self, event: EventEnvelope[dict[str, int]]) -> None:
            pass

    assert Other.__content_type__ == dict[str, int]


# -- replies that cannot be compared --------------------------------------------------------------


class HasName(Protocol):
    name: str


class User:
    name = "ann"


class Row(TypedDict):
    id: int


class LongRow(Row):
    note: str


class Meta(type):
    def __subclasscheck__(cls, other: type) -> bool:
        raise TypeError("compare me not")


class Strange(metaclass=Meta):
    pass


class Mocked(Any):  # type: ignore[misc]
    pass


UserId = NewType("UserId", int)


class Box(Generic[T]):
    pass


@pytest.mark.parametrize(
    ("promised", "returned"),
    [
        (HasName, User),
        (User, HasName),
        (Row, LongRow),
        (Row, dict),
        (dict, Row),
        (collections.abc.Mapping, Row),
        (UserId, int),
        (int, UserId),
        (T, int),
        (int, T),
        (Any, int),
        (int, Any),
        (Strange, User),
        (int, Mocked),
        (Box[int], Box[T]),
        (HasName | None, User),
        (int | HasName, User),
        (collections.abc.Sequence[int], list[int]),
        (float, int),
        (complex, float),
        (type[User], type[User]),
        (Meta, type[Strange]),
        (object, User),
    ],
    ids=str,
)
def test_replies_that_only_a_type_checker_could_compare_are_taken(promised: Any, returned: Any) -> None:
    class Get(Request[promised]):
        pass

    class Store(Actor[Any]):
        @on
        async def get(self, _message: Get) -> returned:
            pass

    assert Store.__handlers__.accepts(Get)


@pytest.mark.parametrize(
    ("promised", "returned"), [(int, str), (int, None), (int, float), (list[int], tuple), (int | None, str)]
)
def test_replies_that_cannot_fit_are_refused(promised: Any, returned: Any) -> None:
    class Get(Request[promised]):
        pass

    with pytest.raises(TypeError, match="promises a reply of type"):

        class Store(Actor[Any]):
            @on
            async def get(self, _message: Get) -> returned:
                pass


# -- types that no message has --------------------------------------------------------------------


@runtime_checkable
class Quacks(Protocol):
    def quack(self) -> None: ...


NEVER = [
    collections.abc.Mapping,
    collections.abc.Sequence,
    collections.abc.Iterable[int],
    collections.abc.Callable[..., int],
    collections.abc.Hashable,
    numbers.Number,
    numbers.Integral,
    Quacks,
    HasName,
    Row,
    int | collections.abc.Mapping,
]


def marked(kind: Any) -> type:
    class Taker(Actor[Any]):
        @on(kind)
        async def take(self, message: Any) -> None:
            pass

    return Taker


def annotated(kind: Any) -> type:
    class Taker(Actor[Any]):
        @on
        async def take(self, message: kind) -> None:
            pass

    return Taker


@pytest.mark.parametrize("kind", NEVER, ids=str)
@pytest.mark.parametrize("make", [marked, annotated])
def test_types_that_no_message_has_are_refused_when_the_class_is_made(kind: Any, make: Callable[[Any], type]) -> None:
    with pytest.raises(TypeError, match=r"Taker\.take: .* name the classes of the messages"):
        make(kind)


@pytest.mark.parametrize("form", [UserId, T, "Start", 3], ids=str)
def test_forms_that_are_no_classes_are_refused_with_a_sentence(form: Any) -> None:
    with pytest.raises(TypeError, match="is no message type; name the classes of the messages"):
        on(form)


class Command(ABC):
    @abstractmethod
    def run(self) -> None: ...


class Print(Command):
    def run(self) -> None:
        pass


class Registered:
    pass


Command.register(Registered)


class Duck:
    def quack(self) -> None:
        pass


class Hooked(ABC):  # noqa: B024 -- whoever quacks is one
    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        return hasattr(other, "quack")


async def test_ones_own_abstract_classes_take_what_belongs_to_them() -> None:
    """By being derived from them, by being registered with them, and by their own hook."""

    class Runner(Actor[Any]):
        @on
        async def command(self, _message: Command) -> str:
            return "command"

        @on
        async def hooked(self, _message: Hooked) -> str:
            return "hooked"

        @on
        async def other(self, _message: object) -> str:
            return "other"

    async with open_supervisor() as sup:
        runner = await sup.start_child(Runner)
        assert [await runner.ask(message) for message in (Print(), Registered(), Duck(), 3)] == [
            "command",
            "command",
            "hooked",
            "other",
        ]


async def test_numbers_go_where_type_checkers_let_them() -> None:
    """A float's handler takes an int, unless there is one for that."""

    class Wide(Actor[float]):
        @on
        async def take(self, message: float) -> str:
            return type(message).__name__

        @on
        async def other(self, _message: object) -> str:
            return "other"

    class Narrow(Wide):
        @on
        async def whole(self, _message: int) -> str:
            return "whole"

    async with open_supervisor() as sup:
        wide, narrow = await sup.start_child(Wide), await sup.start_child(Narrow)
        assert [await wide.ask(message) for message in (1.5, 1, True, "text")] == ["float", "int", "bool", "other"]
        assert [await narrow.ask(message) for message in (1.5, 1, True)] == ["float", "whole", "whole"]


async def test_a_union_may_be_named_in_the_mark() -> None:
    class Taker(Actor[Any]):
        @on(Start | Inner, UserDict)
        async def take(self, message: Any) -> str:
            return type(message).__name__

    async with open_supervisor() as sup:
        taker = await sup.start_child(Taker)
        assert [await taker.ask(message) for message in (Start(), Inner(), UserDict())] == [
            "Start",
            "Inner",
            "UserDict",
        ]


def test_a_handler_made_elsewhere_is_read_where_it_was_made(library: Any) -> None:
    async def take(self: object, message: Start) -> None:
        pass

    def decorate(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        @functools.wraps(function)
        async def wrapper(*args: Any) -> None:
            await function(*args)

        return wrapper

    made = type("Made", (Actor,), {"take": on(decorate(take))})
    assert made.__handlers__.accepts(Start)
    assert not made.__handlers__.accepts(library.Start)


SELF_NAMED = """
from __future__ import annotations
from omniactors import Actor, Request, on
class Counter(Actor):
    class Add: pass
    class Total: pass
    class Get(Request["Counter.Total"]): pass
    @on
    async def add(self, message: Counter.Add) -> None: pass
    @on
    async def get(self, message: Counter.Get) -> Counter.Total: return Counter.Total()
"""


def test_a_handler_names_the_messages_that_stand_in_its_own_class() -> None:
    cell: dict[str, Any] = {"__name__": "cell_of_a_notebook"}
    for _ in range(2):  # run again, it is about its own messages, not about those of the first time
        exec(SELF_NAMED, cell)  # noqa: S102 -- as a notebook does
        counter = cell["Counter"]
        assert set(counter.__handlers__) == {counter.Add, counter.Get}


async def test_a_marked_handler_may_be_decorated_and_have_a_second_name() -> None:
    def tenfold(function: Callable[..., Awaitable[int]]) -> Callable[..., Awaitable[int]]:
        @functools.wraps(function)
        async def wrapper(*args: Any) -> int:
            return 10 * await function(*args)

        return wrapper

    class Taker(Actor[Any]):
        @tenfold
        @on
        async def take(self, message: int) -> int:
            return message

        take_number = take

    async with open_supervisor() as sup:
        assert await (await sup.start_child(Taker)).ask(4) == 40


def test_a_handler_hidden_in_a_static_method_is_refused() -> None:
    with pytest.raises(TypeError, match="take is hidden"):

        class Taker(Actor[Any]):
            @staticmethod
            @on
            async def take(message: int) -> None: ...


@pytest.mark.parametrize(
    "promised", [Annotated[int, "of apples"], Annotated[int | None, ""], Annotated[int, ""] | None]
)
def test_an_annotated_reply_is_compared_by_what_is_annotated(promised: Any) -> None:
    class Count(Request[promised]): ...

    class Counter(Actor[Any]):
        @on
        async def count(self, message: Count) -> bool:
            return True

    with pytest.raises(TypeError, match="promises a reply of type"):

        class Wrong(Actor[Any]):
            @on
            async def count(self, message: Count) -> str:
                return ""
