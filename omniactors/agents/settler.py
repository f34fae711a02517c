"""The settler: writes what handlers' ends decided, many at a time.

Settlements that are ready together go to the backend together; while one batch is written the next
one gathers. A handler does not wait for its settlement, so an agent on a slow disk is not slowed
to one event per write.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import trio

from omniactors.actors.lanes import Parker
from omniactors.agents.lane import EventLane
from omniactors.backoff import Backoff
from omniactors.errors import BackendError, BackendRefused, BackendUnusable
from omniactors.streams.envelope import EventEnvelope
from omniactors.streams.settlement import ErrorInfo, Settlement, lesser

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from omniactors.actors.incarnation import Incarnation
    from omniactors.streams.backend import Backend, Settled
    from omniactors.streams.settlement import EntryKey

Fate = Literal["committed", "late", "unconfirmed"]
"""What became of a settlement: it was written; its entry was not ours any more; or one of the two.

Unconfirmed is what was found gone after a write whose outcome nobody learned: mostly that very write
has removed it, so it counts as written.
"""

logger = logging.getLogger("omniactors.agents")

RETRY = Backoff(initial=0.05, maximum=2.0)
"""Between two tries of a write that the store refused for now."""


def severity(error: BackendError) -> int:
    """How loud the log says that the store fails: nobody but a person puts right what makes it unusable."""
    return logging.ERROR if isinstance(error, BackendUnusable) else logging.WARNING


class Job(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One settlement, the lane whose room it frees, and its event (None when it could not be read).

    `error` is how the handler failed.
    """

    lane: EventLane
    settlement: Settlement
    event: EventEnvelope[Any] | None
    error: ErrorInfo | None = None


class Settler:
    """Collects settlements and releases, and writes them until it is asked to stop; then it writes the rest."""

    def __init__(
        self, backend: Backend, *, on_settled: Callable[[list[Job], list[Fate]], None], on_stop: Callable[[], None]
    ) -> None:
        self._backend = backend
        self._on_settled = on_settled
        self._on_stop = on_stop
        self._jobs: list[Job] = []
        self._releases: list[tuple[EventLane | None, EntryKey]] = []
        self._withdrawals: list[tuple[str, str]] = []
        self._unknown: set[EntryKey] = set()
        """Entries with a settlement that was perhaps written: nobody learned its outcome."""
        self._attempts = 0
        self._parker = Parker()
        self._is_asked = False

    def submit(self, job: Job) -> None:
        """Have a settlement written; returns at once."""
        self._jobs.append(job)
        self._parker.wake()

    def give_back(self, lane: EventLane | None, keys: Sequence[EntryKey]) -> None:
        """Have entries released that will not be handled here; returns at once. `lane` holds them, if any does."""
        if keys:
            self._releases.extend((lane, key) for key in keys)
            self._parker.wake()

    def withdraw(self, groups: Sequence[tuple[str, str]]) -> None:
        """Have no more handed over to us for these groups, after what was given back; returns at once."""
        self._withdrawals.extend(groups)
        self._parker.wake()

    async def run(self, *, task_status: Incarnation) -> None:
        """Write what comes until asked to stop. Cancelled, what is not written yet comes back later."""
        self._is_asked = False
        task_status.on_stop = self._stop
        task_status.started()
        while True:
            if self._jobs:
                await self._settle(self._jobs[: self._backend.settled_at_once])
            elif self._releases:
                await self._release(self._releases[: self._backend.settled_at_once])
            elif self._withdrawals:
                await self._withdraw(list(self._withdrawals))
            elif self._is_asked:
                return
            else:
                await self._parker.park()

    def reset(self) -> None:
        """Forget what an earlier run could not write any more: its entries were released with its consumer."""
        self._jobs.clear()
        self._unknown.clear()
        self._releases.clear()
        self._withdrawals.clear()

    def _stop(self) -> None:
        self._on_stop()
        self._is_asked = True
        self._parker.wake()

    async def _settle(self, batch: list[Job]) -> None:
        """Write these settlements; what the store does not take for now waits behind the others."""
        outcomes = await self._outcomes([job.settlement for job in batch])
        del self._jobs[: len(batch)]
        settled: list[Job] = []
        fates: list[Fate] = []
        put_off: list[Job] = []
        for job, outcome in zip(batch, outcomes, strict=True):
            match outcome:
                case bool():
                    settled.append(job)
                    fates.append(self._fate(job, is_written=outcome))
                case BackendRefused():
                    self._let_die(job, outcome)
                case _:
                    put_off.append(job)
                    self._note_unknown(job, outcome)
        self._on_settled(settled, fates)
        self._free(Counter(job.lane for job in settled))
        self._jobs += put_off
        await self._pause(put_off, batch, outcomes)

    async def _outcomes(self, settlements: list[Settlement]) -> list[Settled]:
        try:
            return await self._backend.settle_many(settlements)
        except BackendError as error:
            return [error] * len(settlements)

    def _fate(self, job: Job, *, is_written: bool) -> Fate:
        if is_written and not self._unknown:
            return "committed"
        was_unknown = job.settlement.key in self._unknown
        self._unknown.discard(job.settlement.key)
        return "committed" if is_written else "unconfirmed" if was_unknown else "late"

    def _note_unknown(self, job: Job, error: BackendError) -> None:
        if not error.outcome_known:
            self._unknown.add(job.settlement.key)

    def _let_die(self, job: Job, error: BackendRefused) -> None:
        """What can never be written ends in the dead letters, so that it is in nobody's way."""
        info = ErrorInfo(type="BackendRefused", message=f"what its handler's end has to write is refused: {error}")
        settlement = lesser(job.settlement, job.event, info)
        if settlement is None:
            logger.error(
                "the end of %s cannot be written, not even as a dead letter; it stays in our hands until this process "
                "ends: %s",
                job.settlement.key,
                error,
            )
            self._unknown.discard(job.settlement.key)
            self._free(Counter([job.lane]))
        else:
            self._jobs.append(Job(job.lane, settlement, job.event, info))

    async def _pause(self, put_off: list[Job], batch: list[Job], outcomes: list[Settled]) -> None:
        """When nothing of a call was taken, all that wait have the same patience; it is not had one by one."""
        if len(put_off) < len(batch):
            self._attempts = 0
            return
        self._attempts += 1
        (error, *_) = (outcome for outcome in outcomes if isinstance(outcome, BackendError))
        logger.log(severity(error), "settlements wait, the store refuses them: %s", error)
        await trio.sleep(RETRY.delay(self._attempts, random.random()))  # noqa: S311 -- jitter, not a secret

    async def _release(self, batch: list[tuple[EventLane | None, EntryKey]]) -> None:
        await self._persist(lambda: self._backend.release([key for _, key in batch]))
        del self._releases[: len(batch)]
        self._free(Counter(lane for lane, _ in batch if lane is not None))

    async def _withdraw(self, groups: list[tuple[str, str]]) -> None:
        await self._persist(lambda: self._backend.withdraw(groups))
        del self._withdrawals[: len(groups)]

    def _free(self, freed: Counter[EventLane]) -> None:
        now = time.perf_counter()
        for lane, count in freed.items():
            lane.settled(count, now)

    async def _persist(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write until the store takes it. Trying again is safe: an entry is given back once."""
        attempt = 0
        while True:
            try:
                return await write()
            except BackendError as error:
                attempt += 1
                logger.log(severity(error), "what is given back waits, the store refuses it: %s", error)
                await trio.sleep(RETRY.delay(attempt, random.random()))  # noqa: S311 -- jitter, not a secret
