"""What the model of a durable store holds: plain data, with the questions that one thing can answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from omniactors.streams.backend import DeadFilter
    from omniactors.streams.settlement import Dead, Publication, ResultRecord

RELEASED = 0.0
"""The due time of what was given back: before all that is due at a time."""


class Full(Exception):
    """A stream has no room."""


@dataclass(eq=False)
class Item:
    """An entry of a stream; serials grow as its ids do. Only the group `only` sees it, if that is set."""

    serial: int
    topic: str
    task_id: str
    body: bytes
    only: str | None = None


@dataclass(eq=False)
class Scheduled:
    """A publication that becomes visible at `due`, those of one time in the order of `number`."""

    due: float
    number: int
    publication: Publication


@dataclass(eq=False)
class Place:
    """Where an entry stands in a group that took it: in the hands of `owner`, or free from `due` on.

    `key` is what the owner claimed it by; `awaits_claim` that it is still to claim what it fetched;
    `is_handed` that another consumer's claim gave it to the owner, who has not fetched it yet.
    """

    item: Item
    attempts: int = 0
    crashes: int = 0
    owner: str | None = None
    due: float = RELEASED
    key: str | None = None
    awaits_claim: bool = False
    is_handed: bool = False

    def free(self, due: float = RELEASED) -> None:
        """Take it out of its owner's hands."""
        self.owner, self.due, self.key = None, due, None
        self.awaits_claim = self.is_handed = False


@dataclass(eq=False)
class Group:
    """An agent's part in a topic: what is above the cursor is new to it.

    Nothing is handed over to the consumers in `withdrawn`.
    """

    topic: str
    agent: str
    cursor: int = 0
    withdrawn: set[str] = field(default_factory=set)
    places: dict[int, Place] = field(default_factory=dict)

    def owned(self, consumer: str | None = None) -> list[Place]:
        """What is in that consumer's hands, or in anybody's, in the order of the ids."""
        places = (place for place in self.places.values() if place.owner is not None)
        return sorted(
            (place for place in places if consumer in {None, place.owner}), key=lambda place: place.item.serial
        )

    def free(self) -> list[Place]:
        """What is free, in the order in which it is taken."""
        places = (place for place in self.places.values() if place.owner is None)
        return sorted(places, key=lambda place: (place.due, place.item.serial))

    def gate(self) -> str | None:
        """The consumer that keeps other ordered fetches out until it has claimed what it fetched."""
        return next((place.owner for place in self.places.values() if place.awaits_claim), None)

    def at_work_on(self, key: str) -> str | None:
        """The consumer to which an ordering key belongs."""
        return next((place.owner for place in self.places.values() if place.key == key), None)


@dataclass(eq=False)
class Letter:
    """A dead letter."""

    number: int
    topic: str
    agent: str
    item: Item
    dead: Dead
    failed_at: float

    def is_meant(self, topic: str, where: DeadFilter) -> bool:
        """Whether a filter admits it; its ids are our numbers."""
        return (
            self.topic == topic
            and where.agent in {None, self.agent}
            and where.reason in {None, self.dead.reason}
            and where.error_type in {None, self.dead.error.type}
            and (where.since is None or where.since <= self.failed_at)
            and (where.until is None or self.failed_at < where.until)
            and (where.ids is None or str(self.number) in where.ids)
        )


@dataclass(eq=False)
class Stored:
    """A result."""

    record: ResultRecord
    stored_at: float
    expires: float


@dataclass
class Counts:
    """What an agent did."""

    completed: int = 0
    retried: int = 0
    dead: int = 0
    seconds: float = 0.0


class Hold(NamedTuple):
    """Names one delivery, as an EntryKey does."""

    topic: str
    agent: str
    serial: int
    consumer: str


@dataclass(eq=False)
class Fate:
    """What became of a publication: its entry, or None when it is delayed."""

    item: Item | None
    is_duplicate: bool = False


class Numbers(NamedTuple):
    """A group in numbers, as `GroupInfo`."""

    agent: str
    waiting: int
    pending: int
    delayed: int
    dead: int
