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
from omniactors.streams.crashes import SUSPECT_CRASHES
from omniactors.streams.inhand import InHand, read_begun
from omniactors.streams.redis.keys import group_name
from omniactors.streams.redis.scripts import raw

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from omniactors.streams.redis.calls import Calls
    from omniactors.streams.redis.keys import Keys
    from omniactors.streams.redis.lease import Lease
    from omniactors.streams.settlement import EntryKey

logger = logging.getLogger("omniactors.streams")

KEEP: Final = 5.0
"""Seconds between two rounds of housekeeping, at most."""

TICK: Final = 1.0
"""Seconds between two signs of life of the event loop."""

CHUNK: Final = 100
"""Groups in one script call."""

Group = tuple[str, str]

Name = str | msgspec.Raw
"""As ours, or as it was found."""


@dataclass
class Consumer:
    """One consumer. `held` are the ids of the entries that it owns, by group; it has groups it ever fetched for."""

    calls: Calls
    keys: Keys
    lease: Lease
    in_hand: InHand
    on_reentry: Callable[[bytes], Awaitable[None]]
    """Called with the newest bell when the lease had been lost, and this is a new consumer."""
    id: str = ""
    gateway: str | None = None
    gateway_problem: str | None = None
    groups: tuple[Group, ...] | None = None
    reads: tuple[str, ...] = ()
    gave_up: dict[str, str] = field(default_factory=dict)
    held: dict[Group, dict[str, int]] = field(default_factory=dict)
    _started_at: float = field(default_factory=time.time)
    _told: set[str] = field(default_factory=set)
    _entering: trio.Lock = field(default_factory=trio.Lock)

    async def enter(self) -> bytes:
        """Register under a new id; the newest bell."""
        consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}".replace(" ", "_").replace(":", "_")
        milliseconds = round(self.lease.seconds * 1000)
        bell: bytes = await self.calls.script("enter", [consumer, raw(self._record(consumer)), milliseconds])
        self.id = consumer
        self.held.clear()
        self.lease.enter(consumer)
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
            await self.on_reentry(bell)
            # What the old one took while it was taken over from belongs to nobody.
            await self._give_back(lost, groups, begun=[])

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew the lease, take over from vanished consumers, promote what is due; until cancelled."""
        losses, lost = trio.open_memory_channel[str](8)

        def on_lost(consumer: str) -> None:
            with contextlib.suppress(trio.WouldBlock):
                losses.send_nowait(consumer)

        async with trio.open_nursery() as nursery:
            await nursery.start(self.lease.keep, on_lost)
            nursery.start_soon(self._tick)
            nursery.start_soon(self._keep_house)
            task_status.started()
            async for consumer in lost:
                try:
                    await self.reenter(consumer)
                except BackendError as error:
                    logger.warning("the lease could not be taken again: %s", error)

    async def leave(self) -> None:
        """Give back what is held and be no consumer any more; when that fails others take it over in time."""
        is_left = False
        try:
            begun = read_begun(self.in_hand.read(), only="culprits")
            await self._give_back(self.id, [group_name(*group) for group in self.held], begun=_words(begun or ()))
            await self.calls.script("exit", [self.id, 0])
            is_left = True
        except BackendError as error:
            logger.warning("consumer %s left its work for others to take over: %s", self.id, error)
        finally:
            await self.lease.end(is_left=is_left)
            self.in_hand.detach()
        self.id = ""
        self.held.clear()

    async def announce(self, gateway: str | None, problem: str | None) -> None:
        """Record where our gateway listens, or why it is down."""
        self.gateway, self.gateway_problem = gateway, problem
        await self._tell()

    async def report(self, groups: Sequence[Group], gave_up: Mapping[str, str], reads: Sequence[str]) -> None:
        """Record which groups we serve and as what we read them, and which of our agents gave up."""
        self.groups, self.gave_up, self.reads = tuple(groups), dict(gave_up), tuple(reads)
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
                reads=self.reads,
                gave_up=self.gave_up,
            )
        )

    async def _tick(self) -> None:
        while True:
            self.in_hand.tick()
            await trio.sleep(TICK)

    async def _keep_house(self) -> None:
        cursor, period = "0", min(KEEP, self.lease.seconds / 3)
        while True:
            delay = period
            try:
                consumer = self.id
                reply = await self.calls.script("keep", [consumer, cursor, self.lease.seconds, SUSPECT_CRASHES])
                is_registered, vanished, next_end, next_due, cursor, problems = reply
                cursor = cursor.decode()
                for member, problem in zip(problems[::2], problems[1::2], strict=True):
                    self._tell_once(member, problem.decode("utf-8", "replace"))
                if not is_registered:
                    await self.reenter(consumer)
                if self.lease.is_steady:
                    await self._take_over_all(vanished)
                soon = [moment / 1000 for moment in (next_end, next_due) if moment >= 0]
                delay = min(period, *soon) if soon else period
            except BackendError as error:
                logger.warning("housekeeping waits: %s", error)
            await trio.sleep(max(delay, 0.02))

    async def _take_over_all(self, vanished: Iterable[bytes]) -> None:
        """One that cannot be taken over keeps nobody from the others."""
        for other in vanished:
            try:
                await self.take_over(other)
            except BackendError as error:
                self._tell_once(other, str(error))

    def _tell_once(self, member: bytes, problem: str) -> None:
        name = member.decode("utf-8", "replace")
        if name not in self._told:
            self._told.add(name)
            logger.warning("housekeeping leaves %s out: %s", name, problem)

    async def take_over(self, other: bytes) -> None:
        """Give the work of a vanished consumer back to its groups; what had begun there is not known.

        Names go back as they came: some may be no text.
        """
        consumer = raw(other)
        groups = [raw(group) for group in await self.calls.command("SMEMBERS", self.keys.groups)]
        chunks = [groups[at : at + CHUNK] for at in range(0, len(groups), CHUNK)]
        held = sum([await self.calls.script("held", [consumer, chunk]) for chunk in chunks])
        most = False if held == 1 else SUSPECT_CRASHES
        is_done = await self._give_back(consumer, groups, begun=None, most=most)
        if is_done and await self.calls.script("exit", [consumer, 1]):
            logger.warning("consumer %s vanished; its work is taken over", other.decode("utf-8", "replace"))

    async def _give_back(
        self, consumer: Name, groups: Sequence[Name], *, begun: list[str] | None, most: int = SUSPECT_CRASHES
    ) -> bool:
        """False when the consumer turned out to be alive; `begun` is None when it is not known (see leave.lua)."""
        left = groups
        while left:
            chunk = left[:CHUNK]
            done = await self.calls.script("leave", [consumer, False if begun is None else begun, most, chunk])
            if done < 0:
                return False
            left = left[done:]
        return True


def _words(begun: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{group} {entry_id}" for group, entry_id in begun]
