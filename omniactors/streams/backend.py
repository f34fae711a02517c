"""The backend protocol: what a durable store must do, and the values that go in and out.

One contract suite (`tests/streams/contract.py`) runs over every implementation. All methods work
from any trio run of the process, also one after another; all raise `BackendError` or a subclass.
Cancelling a call withdraws it if it has not begun; once it has begun it is waited for, so a
cancelled call never leaves an operation half done and its outcome is never unknown for long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import trio

from omniactors.streams.settlement import DeadReason, EntryKey, Publication, ResultRecord, Settlement

if TYPE_CHECKING:
    from collections.abc import Sequence


class Want(msgspec.Struct, frozen=True):
    """Room for `credit` entries of one topic at one agent."""

    topic: str
    agent: str
    credit: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One delivery: the body as it was written, and its history.

    `attempts` counts tries that ended with an outcome, before this one; `crashes` counts
    deliveries since then whose owner vanished without any outcome.
    """

    key: EntryKey
    body: bytes
    attempts: int = 0
    crashes: int = 0


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """What a fetch took, and how to go on. `position` is for `Backend.wait`.

    `next_due` is the number of seconds until the next delayed entry of the groups asked for, or
    None; entries that are due already, but found no room, are not counted.
    """

    entries: list[Entry]
    position: int
    next_due: float | None = None


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """The fate of one publication. `duplicate` is set when its id was known and nothing was appended."""

    task_id: str
    entry_id: str
    duplicate: bool = False


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter as it is stored. `failed_at` is in Unix seconds.

    `failed_message` is the event as a JSON object when it could be read, else None. `body` is the
    entry's bytes: text when they are UTF-8, else base64, as `body_encoding` says.
    """

    id: str
    topic: str
    agent: str
    original_stream: str
    original_id: str
    failed_message: Any
    error: str
    reason: DeadReason
    error_type: str
    traceback: str
    attempts: int
    retry_count: int
    failed_at: float
    body: str
    body_encoding: str = "utf-8"


class StreamInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One topic's stream: entries stored, and per agent how many are pending, delayed and dead."""

    topic: str
    length: int
    groups: list[GroupInfo]


class GroupInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One group, in numbers of entries.

    `waiting` can be taken now (new, released, or due again), `pending` are held by a consumer,
    `delayed` wait for the time of their retry, `dead` are in the dead letters.
    """

    agent: str
    waiting: int
    pending: int
    delayed: int
    dead: int


class AgentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A registered agent, as other processes see it. `created_at` is in Unix seconds."""

    topic: str
    name: str
    callback: str = ""
    tools: tuple[str, ...] = ()
    description: str = ""
    config: dict[str, Any] = {}
    created_at: float = 0.0


class RuntimeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A live runtime: its consumer id, its process, and where its gateway listens (a URL or None)."""

    consumer: str
    pid: int
    host: str
    started_at: float
    gateway: str | None = None


class Backend(Protocol):
    """A durable store of streams, groups, results, dead letters and the registry."""

    @property
    def location(self) -> str:
        """Where the data is: a URL with an absolute path and without secrets."""
        ...

    async def publish(self, publications: Sequence[Publication]) -> list[Published]:
        """Append all of them in one atomic write, in this order; durable when it returns."""
        ...

    async def create_groups(self, groups: Sequence[tuple[str, str]]) -> None:
        """Create groups (topic, agent) at the start of their streams; those that exist are left alone."""
        ...

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a consumer until cancelled; started with the consumer's id.

        Holds the lease, gives the work of vanished consumers back to their groups, and removes what
        has expired. On the way out whatever this consumer still holds is released and its
        registration removed.
        """
        ...

    async def announce(self, gateway: str | None) -> None:
        """Record where this consumer's gateway listens."""
        ...

    async def runtimes(self) -> list[RuntimeRecord]:
        """The runtimes that are alive now."""
        ...

    async def fetch(self, wants: Sequence[Want]) -> Fetched:
        """Take entries, per want never more than its credit; does not wait.

        Released and due entries come first, by the time since when they are due (released ones
        before all, in the order of their ids), then new ones in the order of their publication.
        What is returned is owned by this consumer until it is settled or released. Only while
        serving. A group that does not exist is created.
        """
        ...

    async def wait(self, topics: Sequence[str], position: int) -> None:
        """Return when something may have changed in `topics` since the fetch that gave `position`.

        Spurious returns are allowed, lost ones are not. Cancellable at any time.
        """
        ...

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Carry out each settlement whole or not at all.

        False stands for one whose entry was no longer ours: nothing of it was written.
        """
        ...

    async def release(self, keys: Sequence[EntryKey]) -> None:
        """Give entries back to their groups at once, attempts unchanged; keys that are not ours are ignored."""
        ...

    async def get_results(self, task_id: str) -> list[ResultRecord]:
        """The unexpired results of a task, oldest first, one per agent."""
        ...

    async def wait_results(self, task_id: str, known: int) -> list[ResultRecord]:
        """As `get_results`, as soon as there are more than `known`. Cancellable at any time."""
        ...

    async def dead_letters(self, topic: str, *, limit: int) -> list[DeadLetter]:
        """The newest dead letters of a topic's groups, newest first."""
        ...

    async def streams(self) -> list[StreamInfo]:
        """Every stream there is, by topic."""
        ...

    async def save_agents(self, agents: Sequence[AgentRecord]) -> None:
        """Register agents; one that exists (same topic and name) keeps its `created_at`."""
        ...

    async def list_agents(self) -> list[AgentRecord]:
        """The registered agents, by topic and name."""
        ...

    async def close(self) -> None:
        """Finish what was accepted and let go of the store; the next call opens it again."""
        ...
