"""Work: what callers ask of the database thread, as values.

`Publish`, `Settle`, `Release`, `Claim` and `Fetch` of one batch are merged into a few statements by
`batch.py`; the rest carries its own function.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from omniactors.streams.backend import Fetched, Finding, Published, RuntimeRecord, Settled, Want
from omniactors.streams.portions import publication_weight, settlement_weight
from omniactors.streams.settlement import EntryKey, Publication, ResultRecord, Settlement

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")


Group = tuple[str, str]
"""Topic and agent."""


@dataclass(eq=False)
class Changes:
    """What a batch changed, for those who wait: topics with something to fetch, tasks with a result.

    `anything` stands for all topics.
    """

    topics: set[str] = field(default_factory=set)
    tasks: set[str] = field(default_factory=set)
    anything: bool = False

    def add(self, other: Changes) -> None:
        """Take in what `other` holds."""
        self.topics |= other.topics
        self.tasks |= other.tasks
        self.anything = self.anything or other.anything


class Work(Generic[T]):
    """One request, answered with a T."""


@dataclass(frozen=True, eq=False)
class Publish(Work[list[Published]]):
    """Append them in this order."""

    publications: Sequence[Publication]


@dataclass(frozen=True, eq=False)
class Settle(Work[list[Settled]]):
    """Carry out each whole or not at all."""

    settlements: Sequence[Settlement]


@dataclass(frozen=True, eq=False)
class Release(Work[None]):
    """Give entries back."""

    keys: Sequence[EntryKey]


@dataclass(frozen=True, eq=False)
class Fetch(Work[Fetched]):
    """Take entries."""

    wants: Sequence[Want]


@dataclass(frozen=True, eq=False)
class Claim(Work[list[bool]]):
    """Claim entries, each with its ordering key."""

    keys: Sequence[tuple[EntryKey, str]]


@dataclass(frozen=True, eq=False)
class Register(Work[str]):
    """Become a consumer."""


@dataclass(frozen=True, eq=False)
class Unregister(Work[bool]):
    """Be a consumer no more."""


@dataclass(frozen=True, eq=False)
class Runtimes(Work[list[RuntimeRecord]]):
    """List the consumers that are alive."""


@dataclass(frozen=True, eq=False)
class Diagnose(Work[list[Finding]]):
    """Check the store."""


@dataclass(frozen=True, eq=False)
class Snapshot(Work["sqlite3.Connection"]):
    """A connection that reads what is there now, for another thread."""


@dataclass(frozen=True, eq=False)
class Results(Work[list[ResultRecord]]):
    """Read a task's results: at once, or with `known` as soon as there is one that is not among these."""

    task_id: str
    known: Sequence[ResultRecord] | None = None

    def is_answered_by(self, records: Sequence[ResultRecord]) -> bool:
        """Whether these are what it waits for."""
        return self.known is None or any(record not in self.known for record in records)


@dataclass(frozen=True, eq=False)
class Watch(Work[frozenset[str]]):
    """Wait for a change of a topic after its position; answered with those that changed."""

    positions: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Scene:
    """What an operation may know beside the database: the time (Unix seconds) and who we are.

    `consumer` is None unless this backend serves.
    """

    now: float
    consumer: str | None
    dedupe_window: float
    stream_limit: int | None = None


@dataclass(frozen=True, eq=False)
class Write(Work[T]):
    """Run `operation` inside the batch's transaction. `changes` is what may be different then.

    What tells of a consumer that is at work is `standing`: the last one of each such name is carried
    out again in a new file.
    """

    operation: Callable[[sqlite3.Connection, Scene], T]
    changes: Changes = field(default_factory=Changes)
    standing: str | None = None


@dataclass(frozen=True, eq=False)
class Read(Work[T]):
    """Run `operation` outside any transaction and any lock."""

    operation: Callable[[sqlite3.Connection, Scene], T]


def work_weight(work: Work[Any]) -> int:
    """Bytes that it writes, about."""
    match work:
        case Publish(publications):
            return sum(map(publication_weight, publications))
        case Settle(settlements):
            return sum(map(settlement_weight, settlements))
    return 0
