"""`SqliteBackend`: the backend protocol over one SQLite file, or over memory."""

from __future__ import annotations

import math
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import trio

from omniactors.errors import BackendRefused
from omniactors.streams.backend import EVERY_DEAD_LETTER
from omniactors.streams.envelope import check_content, encode_json
from omniactors.streams.inhand import InHand
from omniactors.streams.portions import portions, settlement_weight
from omniactors.streams.sqlite import dead, operations, ordering
from omniactors.streams.sqlite.copies import restore, write_copy
from omniactors.streams.sqlite.database import StoreSettings
from omniactors.streams.sqlite.searching import find_task
from omniactors.streams.sqlite.steadiness import Uptime, system_uptime
from omniactors.streams.sqlite.work import (
    Changes,
    Claim,
    Diagnose,
    Fetch,
    Publish,
    Read,
    Register,
    Release,
    Results,
    Runtimes,
    Settle,
    Snapshot,
    Unregister,
    Watch,
    Write,
)
from omniactors.streams.sqlite.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from omniactors.streams.backend import (
        AgentMetrics,
        AgentRecord,
        DeadFilter,
        DeadLetter,
        Fetched,
        Finding,
        Published,
        RuntimeRecord,
        Settled,
        StreamInfo,
        Want,
        Whereabouts,
    )
    from omniactors.streams.settlement import EntryKey, Publication, ResultRecord, Settlement

Synchronous = Literal["FULL", "NORMAL"]


class SqliteBackend:
    """A `Backend` over the file `path`, which several processes may use at once; None is memory.

    Opens nothing until first use, and makes the folder then. With `synchronous="FULL"` what was
    acknowledged survives a loss of power, with "NORMAL" the end of the process. An id is
    remembered for `dedupe_window` seconds. A call waits at most `lock_wait` seconds for another
    process and raises BackendBusy then. With `stream_limit` a stream that holds so many entries is
    full (StreamFull). `clock` tells the time in Unix seconds, the same in all processes, `uptime` how long
    the machine has been on, whatever is done to that clock. What is in
    memory is gone after `close()`.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        synchronous: Synchronous = "FULL",
        dedupe_window: float = 86_400.0,
        lock_wait: float = 30.0,
        stream_limit: int | None = None,
        clock: Callable[[], float] = time.time,
        uptime: Uptime | None = None,
    ) -> None:
        if synchronous not in {"FULL", "NORMAL"}:
            raise ValueError(f"synchronous must be 'FULL' or 'NORMAL', not {synchronous!r}")
        for name, value in (("dedupe_window", dedupe_window), ("lock_wait", lock_wait)):
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a finite number of at least 0, not {value!r}")
        if stream_limit is not None and stream_limit < 1:
            raise ValueError(f"stream_limit must be at least 1 or None, not {stream_limit!r}")
        self._lock_wait = lock_wait
        self._path = None if path is None else Path(path).absolute()
        self._in_hand = InHand()
        self._writer = Writer(
            StoreSettings(
                path=self._path,
                synchronous=synchronous,
                dedupe_window=dedupe_window,
                lock_wait=lock_wait,
                stream_limit=stream_limit,
                clock=clock,
                in_hand=self._in_hand,
                uptime=system_uptime() if uptime is None and clock is time.time else uptime,
            )
        )

    def __repr__(self) -> str:
        return f"<SqliteBackend {self.location}>"

    @property
    def settled_at_once(self) -> int:
        """Beyond this a larger transaction saves nothing."""
        return 512

    @property
    def in_hand(self) -> InHand:
        """In the file of our lease, while this backend serves."""
        return self._in_hand

    @property
    def location(self) -> str:
        """`sqlite:///` and the absolute path, or `memory://`."""
        return "memory://" if self._path is None else f"sqlite:///{self._path.as_posix()}"

    async def publish(self, publications: Sequence[Publication]) -> list[Published]:
        """Append all of them in one transaction; durable when it returns."""
        return await self._writer.call(Publish(tuple(publications)))

    async def create_groups(self, groups: Sequence[tuple[str, str]]) -> None:
        """Create groups (topic, agent) at the start of their streams."""
        groups = tuple(groups)
        changes = Changes(topics={topic for topic, _ in groups})
        await self._writer.call(Write(lambda connection, _: operations.create_groups(connection, groups), changes))

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a consumer until cancelled; raises BackendError when this backend is one already."""
        consumer = await self._writer.call(Register())
        try:
            task_status.started(consumer)
            await trio.sleep_forever()
        finally:
            # Bounded by the thread, which waits for the file lock a few seconds at most.
            with trio.CancelScope(shield=True):
                await self._writer.call(Unregister())

    async def announce(self, gateway: str | None, problem: str | None = None) -> None:
        """Record where this consumer's gateway listens, or why it is down; raises BackendError unless it serves."""
        await self._writer.call(
            Write(
                lambda connection, scene: operations.announce(connection, gateway, problem, scene), standing="announce"
            )
        )

    async def report(
        self, groups: Sequence[tuple[str, str]], gave_up: Mapping[str, str], reads: Sequence[str] = ()
    ) -> None:
        """Record what this consumer serves, and which agents gave up; raises BackendError when it does not serve."""
        serves, down = list(zip(groups, [*reads, *[""] * len(groups)], strict=False)), dict(gave_up)
        await self._writer.call(
            Write(lambda connection, scene: operations.report(connection, serves, down, scene), standing="report")
        )

    async def restart(self, agent: str) -> int:
        """Have every consumer in which this agent gave up try it again at once."""
        return await self._writer.call(Write(lambda connection, _: operations.restart(connection, agent)))

    async def restarts(self) -> frozenset[str]:
        """The agents of this consumer that are wanted again."""
        return await self._writer.call(Read(operations.read_restarts))

    async def runtimes(self) -> list[RuntimeRecord]:
        """The runtimes that are alive now, oldest first."""
        return await self._writer.call(Runtimes())

    async def fetch(self, wants: Sequence[Want]) -> Fetched:
        """Take entries; raises BackendError when this backend does not serve."""
        return await self._writer.call(Fetch(tuple(wants)))

    async def claim(self, keys: Sequence[tuple[EntryKey, str]]) -> list[bool]:
        """Claim fetched entries, each with its ordering key."""
        return await self._writer.call(Claim(tuple(keys)))

    async def withdraw(self, groups: Sequence[tuple[str, str]]) -> None:
        """Take no more of these groups until our next fetch of them; what was handed over to us goes back."""
        groups = tuple(groups)
        changes = Changes(topics={topic for topic, _ in groups})
        await self._writer.call(
            Write(lambda connection, scene: ordering.withdraw(connection, groups, scene.consumer), changes)
        )

    async def wait(self, positions: Mapping[str, int]) -> frozenset[str]:
        """The topics in which something may have changed since the fetches that gave their positions."""
        return await self._writer.call(Watch(dict(positions)))

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """Carry out each settlement whole or not at all; one that cannot be written holds up no other."""
        settled: list[Settled] = []
        for portion in portions(settlements, settlement_weight, count=self.settled_at_once):
            answers = await self._writer.call(Settle(tuple(portion)))
            settled += answers
        if not settlements:
            await trio.lowlevel.checkpoint()
        return settled

    async def release(self, keys: Sequence[EntryKey]) -> None:
        """Give entries back to their groups at once."""
        await self._writer.call(Release(tuple(keys)))

    async def get_results(self, task_id: str) -> list[ResultRecord]:
        """The unexpired results of a task, oldest first, one per agent."""
        return await self._writer.call(Results(task_id))

    async def wait_results(self, task_id: str, known: Sequence[ResultRecord]) -> list[ResultRecord]:
        """As `get_results`, as soon as there is one that is not among `known`."""
        return await self._writer.call(Results(task_id, known))

    async def find_task(self, task_id: str) -> list[Whereabouts]:
        """What is known of a task beside its results."""
        return await self._writer.call(Read(lambda connection, scene: find_task(connection, task_id, scene)))

    async def dead_letters(self, topic: str, *, limit: int, where: DeadFilter = EVERY_DEAD_LETTER) -> list[DeadLetter]:
        """The newest dead letters of a topic's groups that `where` admits, newest first."""
        return await self._writer.call(
            Read(lambda connection, _: dead.read_dead_letters(connection, topic, where, limit))
        )

    async def replay_dead(self, topic: str, where: DeadFilter, *, limit: int) -> int:
        """Give the oldest `limit` of these dead letters back to their groups; raises StreamFull."""
        changes = Changes(topics={topic})
        return await self._writer.call(
            Write(lambda connection, scene: dead.replay(connection, scene, topic, where, limit=limit), changes)
        )

    async def purge_dead(self, topic: str, where: DeadFilter, *, limit: int) -> int:
        """Delete the oldest `limit` of these dead letters."""
        return await self._writer.call(Write(lambda connection, _: dead.purge(connection, topic, where, limit)))

    async def pause(self, agent: str) -> None:
        """Have no consumer take anything for this agent until `resume`."""
        changes = Changes(anything=True)
        await self._writer.call(Write(lambda connection, _: operations.pause(connection, agent), changes))

    async def resume(self, agent: str) -> None:
        """End a pause."""
        changes = Changes(anything=True)
        await self._writer.call(Write(lambda connection, _: operations.resume(connection, agent), changes))

    async def paused(self) -> frozenset[str]:
        """The agents that are paused."""
        return await self._writer.call(Read(lambda connection, _: operations.read_paused(connection)))

    async def metrics(self) -> list[AgentMetrics]:
        """What every agent has done, by topic and agent."""
        return await self._writer.call(Read(lambda connection, _: operations.read_metrics(connection)))

    async def save_config(self, key: str, value: Any) -> None:  # noqa: ANN401 -- any JSON value
        """Keep a value for all processes; raises ContentError when it is no JSON value."""
        check_content(value)
        text = encode_json(value).decode()
        await self._writer.call(Write(lambda connection, _: operations.save_config(connection, key, text)))

    async def delete_config(self, key: str) -> bool:
        """Forget a value; True when there was one."""
        return await self._writer.call(Write(lambda connection, _: operations.delete_config(connection, key)))

    async def config(self) -> dict[str, Any]:
        """All values that are kept, by key."""
        return await self._writer.call(Read(lambda connection, _: operations.read_config(connection)))

    async def backup(self, target: Path, *, overwrite: bool = False) -> None:
        """Copy all that is stored now to a file; others read and write meanwhile. Cancelled, there is no file."""
        reader = await self._writer.call(Snapshot())

        def copy() -> None:
            with closing(reader):
                write_copy(reader, target, overwrite=overwrite, look=trio.from_thread.check_cancelled)

        await trio.to_thread.run_sync(copy)

    async def restore(self, source: Path) -> Path | None:
        """Put a backup in the place of what is stored, while nobody uses it; where the replaced file is now."""
        path = self._path
        if path is None:
            raise BackendRefused("memory:// is empty at each start: publish what it is to hold, or use sqlite:///FILE")
        return await trio.to_thread.run_sync(lambda: restore(path, source, wait=self._lock_wait))

    async def diagnose(self) -> list[Finding]:
        """Check what durability and speed depend on."""
        return await self._writer.call(Diagnose())

    async def streams(self) -> list[StreamInfo]:
        """Every stream that has entries, groups or dead letters, by topic."""
        return await self._writer.call(Read(operations.read_streams))

    async def save_agents(self, agents: Sequence[AgentRecord]) -> None:
        """Register agents; one that exists keeps its `created_at`."""
        agents = tuple(agents)
        await self._writer.call(Write(lambda connection, scene: operations.save_agents(connection, agents, scene)))

    async def list_agents(self) -> list[AgentRecord]:
        """The registered agents, by topic and name."""
        return await self._writer.call(Read(lambda connection, _: operations.read_agents(connection)))

    async def delete_groups(self, groups: Sequence[tuple[str, str]]) -> None:
        """Forget groups, and remove the entries that only they needed, some at a time."""
        groups = tuple(groups)
        while await self._writer.call(Write(lambda connection, _: operations.trim_without(connection, groups))):
            pass
        await self._writer.call(Write(lambda connection, _: operations.delete_groups(connection, groups)))

    async def delete_stream(self, topic: str) -> int:
        """Remove all entries and delayed publications of a topic without groups, some at a time."""
        removed = 0
        while count := await self._writer.call(
            Write(lambda connection, _: operations.delete_entries(connection, topic))
        ):
            removed += count
        return removed

    async def close(self) -> None:
        """Finish what was accepted and close the file; the next call opens it again."""
        await self._writer.close()
