"""Handlers: which method takes which message, also for local classes and over inheritance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from omniactors import Actor, Request, on, open_supervisor
from tests.actors.support import Add, Counter, Total

if TYPE_CHECKING:
    from decimal import Decimal


def names(actor: type[Actor[Any]]) -> dict[str, str]:
    return {kind.__name__: getattr(handler, "__name__", "") for kind, handler in actor.__handlers__.items()}


def make_base() -> type[Actor[Any]]:
    class Local:
        pass

    class Base(Actor[Any]):
        @on
        async def local(self, _message: Local) -> None: ...

    return Base


def test_annotations_name_local_classes() -> None:
    assert names(make_base()) == {"Local": "local"}


def test_a_subclass_elsewhere_keeps_handlers_for_classes_it_cannot_see() -> None:
    class Derived(make_base()):  # type: ignore[misc]
        @on
        async def number(self, _message: int) -> None: ...

    assert names(Derived) == {"Local": "local", "int": "number"}


def test_a_class_that_is_made_again_keeps_its_handlers() -> None:
    """dataclass(slots=True) makes the class a second time, from a frame that knows nothing."""

    class Local:
        pass

    @dataclass(slots=True)
    class Slotted(Actor[Any]):
        number: int

        @on
        async def local(self, _message: Local) -> None: ...

    assert names(Slotted) == {"Local": "local"}


def test_only_the_messages_annotation_is_read() -> None:
    class Money(Actor[Any]):
        @on
        async def pay(self, _message: int) -> Decimal:
            raise NotImplementedError

    assert names(Money) == {"int": "pay"}


def test_forms_of_types() -> None:
    class Many(Actor[Any]):
        @on
        async def union(self, _message: int | str | None) -> None: ...

        @on
        async def generic(self, _message: list[int]) -> None: ...

        @on(bytes, bytearray)
        async def explicit(self, _message: object) -> None: ...

        @on
        async def rest(self, _message: Any) -> None: ...

    assert names(Many) == {
        "int": "union",
        "str": "union",
        "NoneType": "union",
        "list": "generic",
        "bytes": "explicit",
        "bytearray": "explicit",
        "object": "rest",
    }


async def test_a_subclass_of_a_message_goes_to_its_nearest_base() -> None:
    class Bigger(Add):
        pass

    async with open_supervisor() as sup:
        counter = await sup.start_child(Counter)
        await counter.tell(Bigger(3))
        assert await counter.ask(Total()) == 3


async def test_an_override_needs_no_mark() -> None:
    class Double(Counter):
        async def add(self, message: Add) -> None:
            self.sum += 2 * message.amount

    async with open_supervisor() as sup:
        double = await sup.start_child(Double)
        await double.tell(Add(2))
        assert await double.ask(Total()) == 4


def test_wrong_handlers_are_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Sync\.take: a handler is an async function"):

        class Sync(Actor[Any]):
            @on  # type: ignore[type-var]
            def take(self, _message: int) -> None: ...

    with pytest.raises(TypeError, match=r"Bare\.take: annotate message with the message type, or use @on"):

        class Bare(Actor[Any]):
            @on
            async def take(self, message) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001

    with pytest.raises(TypeError, match=r"Unknown\.take: its annotations cannot be read .*; use @on"):

        class Unknown(Actor[Any]):
            @on
            async def take(self, _message: Nowhere) -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(TypeError, match="Twice: both one and two handle int"):

        class Twice(Actor[Any]):
            @on
            async def one(self, _message: int) -> None: ...

            @on
            async def two(self, _message: int) -> None: ...

    with pytest.raises(TypeError, match=r"Nothing\.take: a handler takes one message"):

        class Nothing(Actor[Any]):
            @on
            async def take(self) -> None: ...

    with pytest.raises(TypeError, match="@on: 3 is no message type"):
        on(int, 3)  # type: ignore[call-overload]


def test_an_actor_has_no_reference_in_init() -> None:
    class Early(Actor[Any]):
        def __init__(self) -> None:
            self.mine = self.ref

    with pytest.raises(RuntimeError, match="no ref or supervisor inside __init__"):
        Early()


class Names(Request[list[str] | None]):
    pass


def test_a_handler_that_promises_another_reply_is_refused_at_import() -> None:
    with pytest.raises(
        TypeError, match=r"Liar\.total: Total promises a reply of type int, and the handler returns str"
    ):

        class Liar(Actor[Total]):
            @on
            async def total(self, _message: Total) -> str:
                return "many"

    with pytest.raises(
        TypeError, match=r"Mute\.total: Total promises a reply of type int, and the handler returns None"
    ):

        class Mute(Actor[Total]):
            @on
            async def total(self, _message: Total) -> None:
                pass

    with pytest.raises(TypeError, match=r"Both\.total: .* returns int \| str"):

        class Both(Actor[Total]):
            @on
            async def total(self, _message: Total) -> int | str:
                return 1


def test_replies_that_fit_are_taken() -> None:
    class Honest(Actor[Total | Names]):
        @on
        async def total(self, _message: Total) -> bool:
            return True

        @on
        async def names(self, _message: Names) -> list[str]:
            return []

    class Silent(Actor[Total]):
        @on
        async def total(self, _message: Total):  # type: ignore[no-untyped-def]  # noqa: ANN202 -- says nothing
            return 1

    assert Honest.__handlers__.keys() == {Total, Names}
    assert Silent.__handlers__.keys() == {Total}


def test_a_handler_that_something_else_hides_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Sub\.total hides the handler Counter\.total, and is no async method"):

        class Sub(Counter):
            total = 3  # type: ignore[assignment]

    with pytest.raises(TypeError, match="Twice: the handler total is hidden by what follows"):

        class Twice(Actor[Total]):
            @on
            async def total(self, _message: Total) -> int:
                return 1

            async def total(self, _message: Total) -> int:  # type: ignore[no-redef]  # noqa: F811 -- the point
                return 2

    with pytest.raises(TypeError, match="Thrice: the handler total is hidden"):

        class Thrice(Actor[Total | Add]):
            @on(Total)
            async def total(self, _message: Total) -> int:
                return 1

            @on(Add)  # type: ignore[no-redef]
            async def total(self, _message: Add) -> None:  # noqa: F811 -- the point
                pass
