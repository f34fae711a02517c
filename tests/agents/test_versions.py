"""A rolling deploy: two versions of one agent, which read their content as different types."""

from __future__ import annotations

import enum
import importlib
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from omniactors import Agent, Backoff, EventEnvelope, OmniActors, TaskFailed
from omniactors.agents import router
from omniactors.agents.annotations import fingerprint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


class First(msgspec.Struct):
    text: str


class Second(msgspec.Struct):
    text: str | list[str]


def chat(content: Any, seen: list[tuple[int, int]], **keywords: Any) -> type[Agent]:
    class Chat(Agent, topic="chat", name="chat", **keywords):
        async def handle(self, event: EventEnvelope[content]) -> str:
            seen.append((event.delivery_attempts, event.deliveries))
            return type(event.payload.content).__name__

    return Chat


@asynccontextmanager
async def open_systems(*systems: OmniActors) -> AsyncIterator[None]:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for system in systems:
                await nursery.start(system.run)
            yield
            nursery.cancel_scope.cancel()
    for system in systems:
        await system.shutdown()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "PASS", Backoff(initial=0.01, maximum=0.02))


@pytest.mark.parametrize("keywords", [{}, {"key": "text"}], ids=["unordered", "ordered"])
async def test_what_the_old_version_cannot_read_is_left_to_the_new_one(
    new_system: Callable[..., OmniActors], keywords: dict[str, Any]
) -> None:
    old, new = new_system(), new_system()
    by_old: list[tuple[int, int]] = []
    by_new: list[tuple[int, int]] = []
    old.add(chat(First, by_old, **keywords))
    new.add(chat(Second, by_new, **keywords))
    async with open_systems(old, new):
        ids = await old.publish_batch([("chat", {"text": ["a", str(n)]}) for n in range(12)])
        assert [await old.wait_result(task_id) for task_id in ids] == ["Second"] * 12
        assert await old.streams.dlq("chat") == []
    assert by_old == []
    assert {attempts for attempts, _ in by_new} == {1}
    assert all(deliveries >= attempts for attempts, deliveries in by_new)


async def test_what_no_version_can_read_is_dead_after_a_while(
    new_system: Callable[..., OmniActors], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "MAX_PASSES", 5)
    old, new = new_system(), new_system()
    old.add(chat(First, []))
    new.add(chat(Second, []))
    async with open_systems(old, new):
        with pytest.raises(TaskFailed, match="Expected"):
            await old.wait_result(await old.publish("chat", {"text": 5}))
        (letter,) = await old.streams.dlq("chat")
        assert letter.reason == "decode"


async def test_what_every_process_reads_alike_is_dead_at_once(
    new_system: Callable[..., OmniActors], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "PASS", Backoff(initial=3600.0, jitter=0))
    one, two, other = new_system(), new_system(), new_system()

    class Other(Agent, topic="chat", name="other"):
        async def handle(self, event: EventEnvelope[Any]) -> None:
            pass

    for system in (one, two):
        system.add(chat(First, []))
    other.add(Other)
    async with open_systems(one, two, other):
        with pytest.raises(TaskFailed, match="Expected `str`, got `array`"):
            await one.wait_result(await one.publish("chat", {"text": []}), agent="chat")


async def test_when_the_other_version_is_gone_what_it_alone_could_read_is_dead(
    new_system: Callable[..., OmniActors],
) -> None:
    old, new = new_system(), new_system()
    old.add(chat(First, []))
    new.add(chat(Second, []))
    async with open_systems(old):
        async with open_systems(new):
            pass
        with pytest.raises(TaskFailed):
            await old.wait_result(await old.publish("chat", {"text": []}))


def test_a_fingerprint_is_the_same_for_what_reads_the_same() -> None:
    def factory() -> Any:
        return msgspec.defstruct("Made", [("x", list[int], msgspec.field(default_factory=lambda: [1]))], module="m")

    assert fingerprint(factory()) == fingerprint(factory())
    assert len({fingerprint(kind) for kind in (Any, int, First, Second, dict[str, First], dict[str, Second])}) == 6


def test_an_enum_with_one_more_member_is_another_type() -> None:
    one, two = enum.Enum("Colour", {"RED": "red"}), enum.Enum("Colour", {"RED": "red", "BLUE": "blue"})
    assert fingerprint(one) == fingerprint(enum.Enum("Colour", {"RED": "red"}))
    assert fingerprint(one) != fingerprint(two)


def test_a_type_whose_own_code_refuses_less_in_another_version_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import msgspec\nclass Order(msgspec.Struct):\n  n: int\n  def __post_init__(self): assert self.n < {}\n"

    def of_version(most: int) -> str:
        folder = tmp_path / str(most)
        folder.mkdir(exist_ok=True)
        (folder / "orders.py").write_text(text.format(most))
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            patch.delitem(sys.modules, "orders", raising=False)
            found = fingerprint(importlib.import_module("orders").Order)
        sys.modules.pop("orders", None)
        return found

    assert of_version(5) == of_version(5)
    assert of_version(5) != of_version(9)


def test_models_of_pydantic_are_told_apart_by_their_schema() -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")
    first = pydantic.create_model("Note", text=(str, ...))
    second = pydantic.create_model("Note", text=(str, ...), more=(int, 0))
    assert fingerprint(first) == fingerprint(pydantic.create_model("Note", text=(str, ...)))
    assert fingerprint(first) != fingerprint(second)
