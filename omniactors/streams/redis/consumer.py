"""The consumer: what a backend is to the others while it serves. Its lease, its takeovers, what it holds."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from omniactors.errors import BackendError
from omniactors.streams.backend import RuntimeRecord
from omniactors.streams.redis.keys import group_name
from omniactors.streams.redis.lease import LeaseThread, connect_thread
from omniactors.streams.redis.scripts import raw

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from omniactors.streams.redis.calls import Calls
    from omniactors.streams.redis.keys import Keys
    from omniactors.streams.settlement import EntryKey

logger = logging.getLogger("omniactors.streams")

KEEP: Final = 5.0
"""Seconds between two rounds of housekeeping, at most."""

TICK: Final = 1.0
"""Seconds between two signs of life of the event loop."""

CHUNK: Final = 100
"""Groups in one script call."""

Group = tuple[str, str]


@dataclass(frozen=True)
class Lease:
    """How a consumer's lease is kept: for `seconds`, by a thread that connects to `url`."""

    url: str
    seconds: float


@dataclass
class Consumer:
    """One consumer. `held` are the ids of the entries that it owns, by group; it has groups it ever fetched for."""

    calls: Calls
    keys: Keys
    lease: Lease
    on_reentry: Callable[[bytes], Awaitable[None]]
    """Called with the newest bell when the lease had been lost, and this is a new consumer."""
    id: str = ""
    gateway: str | None = None
    gateway_problem: str | None = None
    groups: tuple[Group, ...] | None = None
    gave_up: dict[str, str] = field(default_factory=dict)
    held: dict[Group, dict[str, int]] = field(default_factory=dict)
    _started_at: float = field(default_factory=time.time)
    _thread: LeaseThread | None = None
    _entering: trio.Lock = field(default_factory=trio.Lock)

    async def enter(self) -> bytes:
        """Register under a new id; the newest bell."""
        consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}".replace(" ", "_").replace(":", "_")
        milliseconds = round(self.lease.seconds * 1000)
        bell: bytes = await self.calls.script("enter", [consumer, raw(self._record(consumer)), milliseconds])
        self.id = consumer
        self.held.clear()
        return bell

    async def reenter(self, lost: str) -> None:
        """Be a new consumer, once, after the one called `lost` was found to be registered no more."""
        async with self._entering:
            if self.id != lost:
                return
            logger.error(
                "consumer %s is registered no more: its lease ended or the store was flushed; "
                "what it held is delivered again, and its settlements count no more",
                lost,
            )
            groups = [group_name(*group) for group in self.held]
            bell = await self.enter()
            if self._thread is not None:
                self._thread.consumer = self.id
            await self.on_reentry(bell)
            # What the old one took while it was taken over from belongs to nobody.
            await self._give_back(lost, groups, crashes=0)

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew the lease, take over from vanished consumers, promote what is due; until cancelled."""
        token = trio.lowlevel.current_trio_token()
        losses, lost = trio.open_memory_channel[str](8)

        def note(consumer: str) -> None:
            with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                losses.send_nowait(consumer)

        def on_lost(consumer: str) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(note, consumer)

        thread = LeaseThread(
            lambda timeout: connect_thread(self.lease.url, timeout),
            consumers=self.keys.consumers,
            prefix=self.keys.lease(""),
            consumer=self.id,
            lease=self.lease.seconds,
            on_lost=on_lost,
        )
        with thread:
            self._thread = thread
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tick, thread)
                nursery.start_soon(self._keep_house, thread)
                task_status.started()
                async for consumer in lost:
                    try:
                        await self.reenter(consumer)
                    except BackendError as error:
                        logger.warning("the lease could not be taken again: %s", error)

    async def leave(self) -> None:
        """Give back what is held and be no consumer any more; when that fails others take it over in time."""
        try:
            await self._give_back(self.id, [group_name(*group) for group in self.held], crashes=0)
            await self.calls.script("exit", [self.id, 0])
        except BackendError as error:
            logger.warning("consumer %s left its work for others to take over: %s", self.id, error)
        self.id = ""
        self.held.clear()

    async def announce(self, gateway: str | None, problem: str | None) -> None:
        """Record where our gateway listens, or why it is down."""
        self.gateway, self.gateway_problem = gateway, problem
        await self._tell()

    async def report(self, groups: Sequence[Group], gave_up: Mapping[str, str]) -> None:
        """Record which groups we serve, and which of our agents gave up."""
        self.groups, self.gave_up = tuple(groups), dict(gave_up)
        await self._tell()

    async def _tell(self) -> None:
        await self.calls.script("announce", [self.id, raw(self._record(self.id))])

    # -- what is held ---------------------------------------------------------------------------

    def take(self, group: Group, ids: Iterable[str], number: int) -> None:
        """These entries are ours, by the fetch of this number."""
        self.held.setdefault(group, {}).update(dict.fromkeys(ids, number))

    def noted(self, keys: Iterable[EntryKey]) -> list[tuple[dict[str, int], str, int]]:
        """What `drop` needs, from the time before the call that gives them away."""
        found = []
        for key in keys:
            held = self.held.get((key.topic, key.agent), {})
            if key.entry_id in held:
                found.append((held, key.entry_id, held[key.entry_id]))
        return found

    def drop(self, noted: Iterable[tuple[dict[str, int], str, int]]) -> None:
        """These are ours no more, unless a later fetch has brought them again."""
        for held, entry_id, number in noted:
            if held.get(entry_id) == number:
                del held[entry_id]

    async def recover(self, number: int) -> None:
        """Give back what fetch `number` took, whose reply never came, and make void what is still to come of it."""
        groups = list(self.held.items())
        for start in range(0, max(len(groups), 1), CHUNK):
            blocks = [[topic, agent, list(ids)] for (topic, agent), ids in groups[start : start + CHUNK]]
            await self.calls.script("recover", [self.calls.client, number, self.id, blocks], patience=0)

    # -- housekeeping ---------------------------------------------------------------------------

    def _record(self, consumer: str) -> bytes:
        return msgspec.json.encode(
            RuntimeRecord(
                consumer=consumer,
                pid=os.getpid(),
                host=socket.gethostname(),
                started_at=self._started_at,
                gateway=self.gateway,
                gateway_problem=self.gateway_problem,
                groups=self.groups,
                gave_up=self.gave_up,
            )
        )

    async def _tick(self, thread: LeaseThread) -> None:
        while True:
            thread.tick()
            await trio.sleep(TICK)

    async def _keep_house(self, thread: LeaseThread) -> None:
        cursor, period = "0", min(KEEP, self.lease.seconds / 3)
        while True:
            delay = period
            try:
                consumer = self.id
                reply = await self.calls.script("keep", [consumer, cursor, self.lease.seconds])
                is_registered, vanished, next_end, next_due, cursor = reply
                cursor = cursor.decode()
                if not is_registered:
                    await self.reenter(consumer)
                if thread.is_steady:
                    for other in vanished:
                        await self.take_over(other.decode())
                soon = [moment / 1000 for moment in (next_end, next_due) if moment >= 0]
                delay = min(period, *soon) if soon else period
            except BackendError as error:
                logger.warning("housekeeping waits: %s", error)
            await trio.sleep(max(delay, 0.02))

    async def take_over(self, other: str) -> None:
        """Give the work of a vanished consumer back to its groups."""
        groups = await self.calls.command("SMEMBERS", self.keys.groups)
        names = [group.decode() for group in groups]
        if await self._give_back(other, names, crashes=1) and await self.calls.script("exit", [other, 1]):
            logger.warning("consumer %s vanished; its work is taken over", other)

    async def _give_back(self, consumer: str, groups: list[str], *, crashes: int) -> bool:
        """False when the consumer turned out to be alive."""
        left = groups
        while left:
            chunk = left[:CHUNK]
            done = await self.calls.script("leave", [consumer, crashes, chunk])
            if done < 0:
                return False
            left = left[done:]
        return True
