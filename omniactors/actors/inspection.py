"""Inspection: what a tree is doing at this moment, as frozen values that print as a tree."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise, zip_longest
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


@dataclass(frozen=True, eq=False, repr=False)
class ChildInfo:
    """One child, or the root of a tree, at one moment; `as_dict()` is the same for JSON."""

    path: str
    """The names from the root supervisor down to it, joined by '/'."""
    kind: Kind
    status: Status
    incarnation: int
    """How often it was started."""
    restart: RestartType | None = None
    """When it is started again; None for the root of the tree."""
    failed: int = 0
    """How often it crashed."""
    history: tuple[PastExit, ...] = ()
    """Its last exits, newest last."""
    mailbox: MailboxInfo | None = None
    """Of actors and pools."""
    handling: str | None = None
    """The type of the message in hand."""
    waits_for: str | None = None
    """The path of what it waits for in an ask or a tell."""
    waiting: float | None = None
    """For how many seconds it has waited so."""
    stack: tuple[str, ...] = ()
    """Where its task stands, outermost first, as "file:line function"."""
    strategy: str | None = None
    """Of supervisors: who is restarted with a child that failed."""
    limit: str | None = None
    """Of supervisors: how many restarts are allowed."""
    restarts: int | None = None
    """Of supervisors: how many there are in the window now."""
    children: tuple[ChildInfo, ...] = ()
    """Of supervisors and pools, in start order."""

    def __iter__(self) -> Iterator[ChildInfo]:
        """All of the tree from here down, parents first."""
        pending = [self]
        while pending:
            info = pending.pop()
            yield info
            pending += reversed(info.children)

    def __getitem__(self, path: str) -> ChildInfo:
        """The one at `path`; raises KeyError."""
        for info in self:
            if info.path == path:
                return info
        raise KeyError(path)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChildInfo):
            return NotImplemented
        return all(mine == its for mine, its in zip_longest(_flat(self), _flat(other)))

    def __hash__(self) -> int:
        return hash((self.path, self.status, self.incarnation))

    def __repr__(self) -> str:
        return f"<ChildInfo {self.path}: {self.kind}, {self.status}, {sum(1 for _ in self) - 1} below it>"

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values, under the same names: dicts, lists, texts, numbers and null."""
        written: dict[int, dict[str, Any]] = {}
        for info in reversed(list(self)):  # children first
            values = dict(vars(info))
            values["history"] = [dataclasses.asdict(past) for past in info.history]
            values["mailbox"] = dataclasses.asdict(info.mailbox) if info.mailbox is not None else None
            values["stack"] = list(info.stack)
            values["children"] = [written.pop(id(child)) for child in info.children]
            written[id(info)] = values
        return written[id(self)]

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _flat(info: ChildInfo) -> Iterator[list[object]]:
    """The values of each in the tree, its children only by number."""
    for each in info:
        yield [len(value) if name == "children" else value for name, value in vars(each).items()]


def describe_children(slots: Sequence[Slot], loops: Sequence[CodeType]) -> tuple[ChildInfo, ...]:
    """What these children are doing, with all below them; `loops` are the code of what takes messages.

    Not by recursion: trees may be a thousand levels deep.
    """
    found: list[tuple[Slot, int]] = []
    pending = [(slot, -1) for slot in reversed(slots)]
    while pending:
        slot, parent = pending.pop()
        found.append((slot, parent))
        if slot.child.kind == "supervisor" and slot.value is not None:
            pending += [(child, len(found) - 1) for child in reversed(slot.value.slots())]
    below: list[list[ChildInfo]] = [[] for _ in range(len(found) + 1)]  # the last is for those without a parent
    for number, (slot, parent) in reversed(list(enumerate(found))):
        below[parent].append(_describe(slot, tuple(reversed(below[number])), loops))
    return tuple(reversed(below[-1]))


def _describe(slot: Slot, children: tuple[ChildInfo, ...], loops: Sequence[CodeType]) -> ChildInfo:
    place, now = slot.place, trio.current_time()
    queue = slot.ref.queue if isinstance(slot.ref, ActorRef) else None
    is_nested = slot.child.kind == "supervisor" and slot.value is not None
    strategy, limit, restarts = slot.value.limits() if is_nested else (None, None, None)
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
        strategy=strategy,
        limit=limit,
        restarts=restarts,
        children=children,
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


def _lines(info: ChildInfo) -> Iterator[str]:
    pending = [(info, "", "")]
    while pending:
        each, first, rest = pending.pop()
        yield first + _line(each)
        branches = [
            (child, f"{rest}{LAST if is_last else '|'}- ", f"{rest}{'   ' if is_last else '|  '}")
            for child, is_last in zip(each.children, [*[False] * (len(each.children) - 1), True], strict=False)
        ]
        pending += reversed(branches)


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
