"""Trees: pools, subtrees, specs and dynamic supervisors; what cannot work is refused by the checkers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

import trio

from omniactors import (
    Actor,
    ActorRef,
    ActorStatistics,
    BroadcastRef,
    ChildCounts,
    ChildRef,
    ChildSpec,
    DynamicSupervisor,
    ExitReason,
    Intensity,
    Mailbox,
    PoolRef,
    Request,
    Supervisor,
    on,
    open_supervisor,
    pool,
    subtree,
)


@dataclass(frozen=True)
class Resize:
    """Told."""

    width: int


class Url(Request[str | None]):
    """Asked; there may be none."""


class Sizes(Request[dict[str, list[int]]]):
    """Asked; its reply is nested."""


Messages = Resize | Url | Sizes


class Painter(Actor[Messages]):
    """Handles all of them."""

    @on
    async def resize(self, message: Resize) -> None:
        """Take it."""

    @on
    async def url(self, _message: Url) -> str | None:
        """Tell it."""
        return None

    @on
    async def sizes(self, _message: Sizes) -> dict[str, list[int]]:
        """Tell them."""
        return {}


async def replies(painter: ActorRef[Messages]) -> None:
    """Each request has its own reply, and a plain message may be asked for its end."""
    assert_type(await painter.ask(Url()), str | None)
    assert_type(await painter.ask(Sizes()), dict[str, list[int]])
    assert_type(await painter.ask(Resize(1)), Any)
    assert_type(await painter.tell(Resize(1)), None)
    await painter.ask(3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    (await painter.ask(Sizes())).append(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


async def from_a_thread(painter: ActorRef[Messages]) -> None:
    """The same from another thread, without await."""
    painter.from_thread.tell(Resize(1))
    painter.from_thread.tell("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(painter.from_thread.ask(Url()), str | None)


async def what_all_references_tell(painter: ActorRef[Messages]) -> None:
    """Questions that need no message."""
    assert_type(painter.statistics(), ActorStatistics)
    assert_type(painter.incarnation, int)
    assert_type(await painter.wait_stopped(), ExitReason)
    reference: ChildRef = painter
    await reference.tell(Resize(1))  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


async def pools() -> None:
    """A pool is talked to like one of its actors."""
    async with open_supervisor() as sup:
        crew = await sup.start_child(pool(Painter, size=3))
        assert_type(crew, PoolRef[Messages])
        assert_type(await crew.ask(Url()), str | None)
        await crew.tell("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        everybody = await sup.start_child(pool(Painter, size=3, route="broadcast"))
        assert_type(everybody, BroadcastRef[Messages])
        pool(Painter)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
        pool(trio.sleep, size=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
        pool(Painter, size=3, route="best")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def specs() -> None:
    """A spec may be of any kind, so its reference is what the annotation says."""
    ChildSpec(Painter, restart="always")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ChildSpec(Painter, restarts="permanent")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ChildSpec(Painter, mailbox=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ChildSpec(Painter, on_crash="drop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Mailbox(overflow="forget")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Intensity(restarts="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with open_supervisor(ChildSpec(Painter, id="one")) as sup:
        painter: ActorRef[Messages] = await sup.start_child(ChildSpec(Painter, id="two"))
        await painter.tell(Resize(1))
        assert_type(sup.child("one"), ChildRef)
        assert_type(sup.child_spec("one"), ChildSpec)
        assert_type(sup.which_children(), list[ChildRef])
        assert_type(sup.count_children(), ChildCounts)


async def trees() -> None:
    """Subtrees take what supervisors take."""
    subtree(Painter, strategy="one_for_one", auto_shutdown="all_significant")
    subtree(Painter, strategy="all_for_one")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    subtree(Painter, stop_deadline="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    open_supervisor(Painter, auto_shutdown="always")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with open_supervisor(subtree(Painter, name="tree")) as sup:
        tree = sup.child("tree")
        await tree.ask(Url())  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        inner: Supervisor = tree.value
        assert_type(await inner.start_child(Painter), ActorRef[Messages])


async def dynamic() -> None:
    """As a block and as a child."""
    async with DynamicSupervisor(max_children=3) as sup:
        assert_type(sup, DynamicSupervisor)
        assert_type(await sup.start_child(Painter), ActorRef[Messages])
        assert_type(await sup.start_child(pool(Painter, size=2)), PoolRef[Messages])
        assert_type(await sup.start_child(subtree(Painter)), ChildRef)
        assert_type(await sup.start_child(DynamicSupervisor()), ChildRef)
        await sup.start_child(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DynamicSupervisor(strategy="one_for_all")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
