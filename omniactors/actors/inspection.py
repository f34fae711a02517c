"""Inspection: what a tree is doing at this moment, as frozen values that print as a tree."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import trio

from omniactors.actors.lanes import Lane
from omniactors.actors.mailbox import Ask
from omniactors.actors.refs import ActorRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import CodeType

    from omniactors.actors.mailbox import MailboxQueue
    from omniactors.actors.refs import Status
    from omniactors.actors.rules import RestartType
    from omniactors.actors.slot import Slot

LAST = "'"
"""How the last branch of a drawn tree begins."""

Kind = Literal["supervisor", "pool", "actor", "function"]


@dataclass(frozen=True)
class PastExit:
    """One end of a child: how many seconds ago, of which incarnation, and why."""

    ago: float
    incarnation: int
    reason: str


@dataclass(frozen=True)
class MailboxInfo:
    """A mailbox now, and what went through it over all incarnations."""

    queued: int
    capacity: int
    stashed: int
    waiting_senders: int
    taken: int
    dropped: int


@dataclass(frozen=True)
class ChildInfo:
    """One child, or the root of a tree, at one moment.

    `failed` counts its crashes. `handling` is the type of the message in hand. `waits_for` is the
    path of what it waits for in an ask or a tell, `waiting` for how many seconds. `stack` is where
    its task stands, outermost first, as "file:line function". `history` holds its last exits,
    newest last. Supervisors have `strategy`, `limit` and `restarts` (those in the window now).
    """

    path: str
    kind: Kind
    status: Status
    incarnation: int
    restart: RestartType | None = None
    failed: int = 0
    history: tuple[PastExit, ...] = ()
    mailbox: MailboxInfo | None = None
    handling: str | None = None
    waits_for: str | None = None
    waiting: float | None = None
    stack: tuple[str, ...] = ()
    strategy: str | None = None
    limit: str | None = None
    restarts: int | None = None
    children: tuple[ChildInfo, ...] = ()

    def __iter__(self) -> Iterator[ChildInfo]:
        """All of the tree from here down, parents first."""
        yield self
        for child in self.children:
            yield from child

    def __getitem__(self, path: str) -> ChildInfo:
        """The one at `path`; raises KeyError."""
        for info in self:
            if info.path == path:
                return info
        raise KeyError(path)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return "\n".join(_lines(self, "", ""))


def describe_child(slot: Slot, loops: Sequence[CodeType]) -> ChildInfo:
    """What the child of `slot` is doing; `loops` are the code of what takes messages and has them handled."""
    place, now = slot.place, trio.current_time()
    queue = slot.ref.queue if isinstance(slot.ref, ActorRef) else None
    nested: ChildInfo | None = slot.value.tree() if slot.child.kind == "supervisor" and slot.value is not None else None
    is_waiting = place.waits_for is not None
    return ChildInfo(
        path=slot.path,
        kind=_kind(slot, queue),
        status=slot.state,
        incarnation=slot.incarnation,
        restart=slot.spec.restart,
        failed=slot.crashes,
        history=tuple(PastExit(now - at, incarnation, reason) for at, incarnation, reason in slot.history),
        mailbox=_mailbox(queue) if queue is not None else None,
        handling=_message_in_hand(slot, loops) if slot.is_actor else None,
        waits_for=place.waits_for.path if place.waits_for is not None else None,
        waiting=now - place.since if is_waiting else None,
        stack=slot.run.stack() if slot.run is not None else (),
        strategy=nested.strategy if nested else None,
        limit=nested.limit if nested else None,
        restarts=nested.restarts if nested else None,
        children=nested.children if nested else (),
    )


def _kind(slot: Slot, queue: MailboxQueue | None) -> Kind:
    if slot.child.kind == "supervisor":
        return "supervisor" if queue is None else "pool"
    return "function" if queue is None else "actor"


def _mailbox(queue: MailboxQueue) -> MailboxInfo:
    return MailboxInfo(
        queued=len(queue.messages),
        capacity=queue.config.capacity,
        stashed=len(queue.stashed),
        waiting_senders=len(queue.senders),
        taken=queue.taken,
        dropped=queue.dropped,
    )


def _message_in_hand(slot: Slot, loops: Sequence[CodeType]) -> str | None:
    """The type of the message in hand, read from the loop's frame: to note it would cost every message."""
    task = slot.run.task if slot.run is not None else None
    frames = [frame for frame, _ in task.iter_await_frames()] if task is not None else []
    for loop, _handler in pairwise(frames):
        if loop.f_code in loops:
            message, lane = loop.f_locals.get("message"), loop.f_locals.get("lane")
            if isinstance(lane, Lane):
                return lane.describe(message)
            return type(message.message if isinstance(message, Ask) else message).__name__
    return None


def _lines(info: ChildInfo, first: str, rest: str) -> Iterator[str]:
    yield first + _line(info)
    for number, child in enumerate(info.children, 1):
        is_last = number == len(info.children)
        yield from _lines(child, f"{rest}{LAST if is_last else '|'}- ", f"{rest}{'   ' if is_last else '|  '}")


def _line(info: ChildInfo) -> str:
    name = info.path.rpartition("/")[2] if info.restart is not None else info.path
    parts = [info.kind if info.strategy is None else f"{info.kind} {info.strategy}", info.status]
    if info.incarnation > 1:
        parts.append(f"incarnation {info.incarnation}")
    if info.failed:
        parts.append(f"{info.failed} crashed")
    if info.limit is not None:
        parts.append(f"{info.restarts} of {info.limit}")
    if info.mailbox is not None:
        parts.append(f"mailbox {info.mailbox.queued}/{info.mailbox.capacity}, {info.mailbox.taken} taken")
    if info.handling is not None:
        parts.append(f"handles {info.handling}")
    if info.waits_for is not None:
        parts.append(f"waits for {info.waits_for} since {info.waiting:.1f} s")
    return f"{name}  {', '.join(parts)}"
