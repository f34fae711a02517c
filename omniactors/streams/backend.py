"""The backend protocol: what a durable store must do, and the values that go in and out.

One contract suite (`tests/streams/contract.py`) runs over every implementation. All methods work
from any trio run of the process, also side by side in several threads; all raise `BackendError` or a subclass.
Cancelling a call withdraws it if it has not begun. Once it has begun it happens whole or not at all:
the embedded store waits for it, a store behind a network returns at once and leaves the outcome unknown.
A call that fails and may have taken place all the same says so (`BackendError.outcome_known`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
import trio

from omniactors.errors import BackendError
from omniactors.streams.settlement import DeadReason, EntryKey, Publication, ResultRecord, Settlement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from omniactors.streams.inhand import InHand


class Want(msgspec.Struct, frozen=True, gc=False):
    """Room for `credit` entries of one topic at one agent.

    With `limit` all consumers together never own more than so many entries of the group.
    `is_ordered` says that the agent's events have ordering keys: what is fetched is to be claimed
    (`Backend.claim`) before it is handled, and until then no other consumer gets anything of the
    group, so that the claims come in the order of the stream.
    """

    topic: str
    agent: str
    credit: int
    limit: int | None = None
    is_ordered: bool = False


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One delivery: the body as it was written, and its history.

    `attempts` counts tries that ended with an outcome, before this one; `crashes` counts
    deliveries since then in which a handler had begun when the process died (see `streams.crashes`).
    `deliveries` counts how often it was handed to a consumer, this time included.
    """

    key: EntryKey
    body: bytes
    attempts: int = 0
    crashes: int = 0
    deliveries: int = 1


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """What a fetch took, and how to go on. `position` is for `Backend.wait`.

    `next_due` is the number of seconds until the next delayed entry of the groups asked for, or the
    next delayed publication of their topics, or None; what is due already, but found no room, is
    not counted. `paused` are the agents among those asked for that are paused: nothing was taken
    for them. `has_more` is set when a group has more to give at once, although less than its credit
    was taken.
    """

    entries: list[Entry]
    position: int
    next_due: float | None = None
    paused: frozenset[str] = frozenset()
    has_more: bool = False


class Published(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fate of one publication. `duplicate` is set when its id was known and nothing was appended.

    `entry_id` is empty for one that is delayed: it gets its id when it becomes visible.
    """

    task_id: str
    entry_id: str
    duplicate: bool = False


Settled = bool | BackendError
"""What became of a settlement: True, it is written; False, its entry was no longer ours, and nothing is.

An error: it is not written. BackendRefused says that it never will be, any other to try again.
"""


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


class DeadFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters of a topic are meant; what is None does not narrow. Times are in Unix seconds.

    `since` is the earliest `failed_at`, `until` the first that is too late.
    """

    agent: str | None = None
    reason: DeadReason | None = None
    error_type: str | None = None
    since: float | None = None
    until: float | None = None
    ids: tuple[str, ...] | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Whether this dead letter is meant."""
        return (
            (self.agent is None or letter.agent == self.agent)
            and (self.reason is None or letter.reason == self.reason)
            and (self.error_type is None or letter.error_type == self.error_type)
            and (self.since is None or letter.failed_at >= self.since)
            and (self.until is None or letter.failed_at < self.until)
            and (self.ids is None or letter.id in self.ids)
        )


EVERY_DEAD_LETTER = DeadFilter()


class StreamInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One topic's stream: entries stored, and per agent how many are pending, delayed and dead.

    `scheduled` are the publications that are not visible yet.
    """

    topic: str
    length: int
    groups: list[GroupInfo]
    scheduled: int = 0


class GroupInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One group, in numbers of entries.

    `waiting` can be taken now (new, released, or due again), `pending` are held by a consumer,
    `delayed` wait for the time of their retry, `dead` are in the dead letters. `served_at` is when a
    runtime last began or ended to serve it, in Unix seconds; None when none has said so.
    """

    agent: str
    waiting: int
    pending: int
    delayed: int
    dead: int
    served_at: float | None = None


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """What a store knows of a task that has no result.

    "scheduled": it is not visible yet. "queued": it waits in the stream, for `agent`, or for anybody
    when that is None. "running": a process has it in hand. "retrying": it failed, and waits for the
    time of its next try. "expired": there was a result, or the id is remembered, and nothing else is left.
    """

    topic: str
    state: Literal["scheduled", "queued", "running", "retrying", "expired"]
    agent: str | None = None


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
    """A live runtime: its consumer id, its process, and where its gateway listens (a URL or None).

    `gateway_problem` says why the gateway that it should have is down; work goes on without.
    `groups` are the pairs (topic, agent) that it serves, None when it does not say (an older version),
    `reads` for each of them a fingerprint of what it reads its content as;
    `gave_up` those of its agents that gave up, each with the last reason.
    """

    consumer: str
    pid: int
    host: str
    started_at: float
    gateway: str | None = None
    gateway_problem: str | None = None
    groups: tuple[tuple[str, str], ...] | None = None
    reads: tuple[str, ...] = ()
    gave_up: dict[str, str] = {}


class AgentMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What one agent has done on one topic since the store began, in numbers of settled tries.

    `seconds` is the time its handlers took, all tries together.
    """

    topic: str
    agent: str
    completed: int = 0
    retried: int = 0
    dead: int = 0
    seconds: float = 0.0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check of a store: what was found, and what to change (empty when all is well)."""

    check: str
    status: Literal["ok", "warning", "error"]
    message: str
    advice: str = ""


class Backend(Protocol):
    """A durable store of streams, groups, results, dead letters and the registry."""

    @property
    def settled_at_once(self) -> int:
        """How many settlements go well into one write: more would hold up others, and the next fetch."""
        ...

    @property
    def in_hand(self) -> InHand:
        """Where to note what has begun, for those who take over when this process dies."""
        ...

    @property
    def location(self) -> str:
        """Where the data is: a URL with an absolute path and without secrets."""
        ...

    async def publish(self, publications: Sequence[Publication]) -> list[Published]:
        """Append all of them in one atomic write, in this order; durable when it returns.

        Raises StreamFull when a stream has no room for its part: then nothing is written. Delayed
        publications count, and what settlements publish is exempt.
        """
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

    async def announce(self, gateway: str | None, problem: str | None = None) -> None:
        """Record where this consumer's gateway listens, or why it is down."""
        ...

    async def report(
        self, groups: Sequence[tuple[str, str]], gave_up: Mapping[str, str], reads: Sequence[str] = ()
    ) -> None:
        """Record which groups this consumer serves, which of its agents gave up and why, and what each group reads.

        What `restarts` told until now is done with.
        """
        ...

    async def runtimes(self) -> list[RuntimeRecord]:
        """The runtimes that are alive now."""
        ...

    async def restart(self, agent: str) -> int:
        """Have every consumer in which this agent gave up try it again at once; returns how many there are."""
        ...

    async def restarts(self) -> frozenset[str]:
        """The agents of this consumer that somebody wants to be tried again, since its last report."""
        ...

    async def fetch(self, wants: Sequence[Want]) -> Fetched:
        """Take entries, per want never more than its credit; does not wait.

        Released and due entries come first, by the time since when they are due (released ones
        before all, in the order of their ids), then new ones in the order of their publication.
        What is returned is owned by this consumer until it is settled or released. Only while
        serving. A group that does not exist is created. Of large bodies a fetch brings fewer (some MiB,
        one entry at least), and says so with `has_more`.
        """
        ...

    async def claim(self, keys: Sequence[tuple[EntryKey, str]]) -> list[bool]:
        """Claim fetched entries of an ordered group, in the order of their fetch, each with its ordering key.

        True: it may be handled here, in its turn. False: its key is at work at another consumer,
        which was given the entry and gets it from its next fetch; or earlier entries have come back
        to the group meanwhile, and it went back to be fetched after them. Entries that were handed
        over count as fetched, and are claimed again without harm. Every ordered fetch that took
        something is followed by a claim, release or settlement of each entry.
        """
        ...

    async def withdraw(self, groups: Sequence[tuple[str, str]]) -> None:
        """Take no more of these groups: what others handed over to us goes back to them.

        Nothing is handed over to us until our next fetch of a group. What was fetched stays ours.
        """
        ...

    async def wait(self, positions: Mapping[str, int]) -> frozenset[str]:
        """The topics in which something may have changed, as soon as there are any.

        `positions` gives for each topic the position of the last fetch that asked for it. Spurious
        returns are allowed, lost ones are not. Cancellable at any time.
        """
        ...

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """Carry out each settlement whole or not at all; what became of each.

        One that cannot be written holds up no other. A BackendError that is raised stands for all.
        """
        ...

    async def release(self, keys: Sequence[EntryKey]) -> None:
        """Give entries back to their groups at once, attempts unchanged; keys that are not ours are ignored."""
        ...

    async def get_results(self, task_id: str) -> list[ResultRecord]:
        """The unexpired results of a task, oldest first, one per agent."""
        ...

    async def wait_results(self, task_id: str, known: Sequence[ResultRecord]) -> list[ResultRecord]:
        """As `get_results`, as soon as there is one that is not among `known`. Cancellable at any time."""
        ...

    async def find_task(self, task_id: str) -> list[Whereabouts]:
        """What is known of a task beside its results; looks through all streams, so it is for people, not programs."""
        ...

    async def dead_letters(self, topic: str, *, limit: int, where: DeadFilter = EVERY_DEAD_LETTER) -> list[DeadLetter]:
        """The newest dead letters of a topic's groups that `where` admits, newest first.

        Fewer than `limit` where their bodies are so large that they would not fit into memory together.
        """
        ...

    async def replay_dead(self, topic: str, where: DeadFilter, *, limit: int) -> int:
        """Give the oldest `limit` of these dead letters back to their groups as new; returns how many.

        Each is delivered to its own group only, with no tries behind it; the dead letter and the
        result that told of the failure are gone in the same write. Raises StreamFull when there is
        no room for all of them: then nothing is replayed.
        """
        ...

    async def purge_dead(self, topic: str, where: DeadFilter, *, limit: int) -> int:
        """Delete the oldest `limit` of these dead letters; returns how many."""
        ...

    async def pause(self, agent: str) -> None:
        """Have no consumer take anything for this agent until `resume`, restarts included."""
        ...

    async def resume(self, agent: str) -> None:
        """End a pause; nothing happens when there is none."""
        ...

    async def paused(self) -> frozenset[str]:
        """The agents that are paused."""
        ...

    async def metrics(self) -> list[AgentMetrics]:
        """What every agent has done, by topic and agent."""
        ...

    async def save_config(self, key: str, value: Any) -> None:  # noqa: ANN401 -- any JSON value
        """Keep a value for all processes; it replaces what is there."""
        ...

    async def delete_config(self, key: str) -> bool:
        """Forget a value; True when there was one."""
        ...

    async def config(self) -> dict[str, Any]:
        """All values that are kept, by key."""
        ...

    async def backup(self, target: Path, *, overwrite: bool = False) -> None:
        """Copy all that is stored at one moment to a file, whole or not at all, while others read and write.

        Raises BackendRefused when the file exists and may not be overwritten, or when this store is copied by
        other means: the error says by which.
        """
        ...

    async def restore(self, source: Path) -> Path | None:
        """Put a backup in the place of what is stored, while nobody uses it; where the replaced file is now.

        Raises BackendBusy when somebody does, BackendRefused for what is no sound backup, or when this store is
        restored by other means.
        """
        ...

    async def diagnose(self) -> list[Finding]:
        """Check what durability and speed depend on; the first finding is about reaching the store.

        Never raises BackendError: a store that cannot be reached is a finding.
        """
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

    async def delete_groups(self, groups: Sequence[tuple[str, str]]) -> None:
        """Forget these groups, with what they have in hand, their counters, registrations and pauses.

        Entries that only they needed are removed; those of a topic without any other group stay for
        whoever reads it next. Dead letters stay. A group that is fetched for comes back.
        """
        ...

    async def delete_stream(self, topic: str) -> int:
        """Remove all entries and delayed publications of a topic that has no groups; returns how many there were."""
        ...

    async def close(self) -> None:
        """Finish what was accepted and let go of the store; the next call opens it again."""
        ...
