"""Publishing: what many tasks publish at the same time goes to Redis in one script call.

There is no task of its own: whoever finds nobody at work carries out the next batch for all. If
it is cancelled midway another one carries the same batch out again under the same number, which
happens once.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

import trio

from omniactors.errors import BackendError, BackendRefused, StreamFull
from omniactors.streams.backend import Published
from omniactors.streams.redis.calls import GeneralError
from omniactors.streams.redis.keys import clean
from omniactors.streams.redis.scripts import raw

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from omniactors.streams.redis.calls import Calls, Ticket
    from omniactors.streams.redis.keys import Keys
    from omniactors.streams.settlement import Publication

BATCH_COUNT = 256
"""Publications in one script call: it holds up everybody else for about a millisecond."""

BATCH_BYTES = 1 << 20

LATEST = 1 << 53
"""Milliseconds: the numbers of scripts are floats."""


class _Request:
    """One publish call: what it appends, and what became of it."""

    __slots__ = ("deadline", "error", "goes_alone", "ids", "is_abandoned", "is_done", "publications", "size", "task")

    def __init__(self, publications: Sequence[Publication], deadline: float) -> None:
        self.publications = publications
        self.deadline = deadline
        """When its patience ends, wherever it waits until then."""
        self.size = sum(map(_checked_size, publications))
        self.ids: list[bytes] | None = None
        self.error: BackendError | None = None
        self.task: trio.lowlevel.Task | None = None
        self.is_done = self.goes_alone = self.is_abandoned = False

    def park(self) -> Awaitable[None]:
        """Wait for `wake`."""
        self.task = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._leave)  # noqa: ASYNC105 -- awaited by the caller

    def wake(self) -> None:
        task, self.task = self.task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def finish(self, ids: list[bytes]) -> None:
        self.ids, self.is_done = ids, True
        self.wake()

    def fail(self, error: BackendError) -> None:
        self.error, self.is_done = error, True
        self.wake()

    def answer(self) -> list[Published]:
        """The fate of each; raises what the store refused with."""
        if self.error is not None:
            raise self.error
        return [
            Published(task_id=publication.task_id, entry_id=found.decode())
            if found[:1] != b"="
            else Published(task_id=publication.task_id, entry_id=found[1:].decode(), duplicate=True)
            for publication, found in zip(self.publications, self.ids or [], strict=True)
        ]

    def _leave(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


class _Batch:
    """Requests that are carried out together, and the ticket with which they happen once."""

    def __init__(self, requests: list[_Request], ticket: Ticket) -> None:
        self.requests = requests
        self.ticket = ticket

    def publications(self) -> Sequence[Publication]:
        """What all of them append, in order."""
        if len(self.requests) == 1:
            return self.requests[0].publications
        return [publication for request in self.requests for publication in request.publications]

    def patience(self) -> float:
        """Seconds for which it is tried."""
        return max(max(request.deadline for request in self.requests) - trio.current_time(), 0.0)

    def heir(self) -> _Request | None:
        """Somebody who still waits for it."""
        return next((request for request in self.requests if not request.is_abandoned), None)


class Publisher:
    """Appends publications. `window` (seconds) is how long ids are remembered, `limit` bounds each stream."""

    def __init__(self, calls: Calls, keys: Keys, *, window: float, limit: int | None) -> None:
        self._calls = calls
        self._keys = keys
        self._window = milliseconds(window)
        self._limit = -1 if limit is None else limit
        self._waiting: deque[_Request] = deque()
        self._interrupted: _Batch | None = None
        self._is_driven = False

    async def publish(self, publications: Sequence[Publication]) -> list[Published]:
        """Append all of them in one write; raises BackendError, StreamFull among them."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not publications:
            return []
        request = _Request(publications, trio.current_time() + self._calls.patience)
        self._waiting.append(request)
        try:
            while not request.is_done:
                if self._is_driven:
                    await request.park()
                else:
                    await self._drive()
        except BaseException:
            self._forget(request)
            raise
        return request.answer()

    def _forget(self, request: _Request) -> None:
        """Nobody waits for this one any more; what was sent of it may happen all the same."""
        request.is_abandoned = True
        request.task = None
        if not request.is_done and request in self._waiting:
            self._waiting.remove(request)
        batch = self._interrupted
        if batch is not None and batch.heir() is None:
            self._interrupted = None
            self._calls.retire(batch.ticket)
        self._wake_next()

    def _wake_next(self) -> None:
        if self._is_driven:
            return
        heir = self._interrupted.heir() if self._interrupted is not None else None
        if heir is not None:
            heir.wake()
        elif self._waiting:
            self._waiting[0].wake()

    def _gather(self) -> _Batch:
        requests = [self._waiting.popleft()]
        count, size = len(requests[0].publications), requests[0].size
        while self._waiting and not requests[0].goes_alone and not self._waiting[0].goes_alone:
            waiting = self._waiting[0]
            if count + len(waiting.publications) > BATCH_COUNT or size + waiting.size > BATCH_BYTES:
                break
            request = self._waiting.popleft()
            requests.append(request)
            count += len(request.publications)
            size += request.size
        return _Batch(requests, self._calls.open())

    async def _drive(self) -> None:
        """Carry out one batch."""
        batch, self._interrupted = self._interrupted or self._gather(), None
        self._is_driven = True
        try:
            reply = await self._append(batch)
        except (BackendRefused, GeneralError) as error:
            self._calls.retire(batch.ticket)
            self._refuse(batch.requests, error)
        except BackendError as error:
            self._calls.retire(batch.ticket)
            for request in batch.requests:
                request.fail(error)
            self._give_up(error)
        except BaseException:
            self._interrupted = batch
            raise
        else:
            self._calls.retire(batch.ticket)
            self._distribute(batch.requests, reply)
        finally:
            self._is_driven = False
            self._wake_next()

    async def _append(self, batch: _Batch) -> list[Any]:
        publications = batch.publications()
        _, number = batch.ticket
        # Every so often `publish` trims the stream, which this does not.
        if len(publications) == 1 and number % 256 and is_plain(publications[0]):
            entry_id = await self._append_alone(batch.ticket, publications[0], batch.patience())
            if entry_id is not None:
                return [entry_id]
        runs = runs_of(publications)
        bodies = [publication.body for publication in publications]
        reply: list[Any] = await self._calls.numbered(
            batch.ticket, "publish", [self._limit, self._window, runs], bodies, patience=batch.patience()
        )
        return reply

    async def _append_alone(self, ticket: Ticket, publication: Publication, patience: float) -> bytes | None:
        """Its entry id, or None when there may be no room."""
        keys, calls, topic = self._keys, self._calls, clean(publication.topic)
        slot, number = ticket
        entry_id: bytes | None = await calls.words(
            "append",
            keys.calls(calls.client),
            slot,
            number,
            keys.stream(topic),
            keys.later(topic),
            "" if self._limit < 0 else self._limit,
            0 if number % 64 else 1,
            publication.body,
            patience=patience,
        )
        return entry_id

    def _distribute(self, requests: list[_Request], reply: list[Any]) -> None:
        if reply[0] == b"full":
            self._refuse(requests, StreamFull(reply[1].decode(), reply[2], self._limit, reply[3]))
            return
        start = 0
        for request in requests:
            count = len(request.publications)
            request.finish(reply[start : start + count])
            start += count

    def _give_up(self, error: BackendError) -> None:
        """Nothing was taken for now: those who have waited for long enough behind it do not try it once more each."""
        now = trio.current_time()
        late = [request for request in self._waiting if request.deadline <= now]
        for request in late:
            self._waiting.remove(request)
            request.fail(type(error)(str(error)))

    def _refuse(self, requests: list[_Request], error: BackendError) -> None:
        """Nothing of the batch was written; whom the reason does not concern finds out by going alone."""
        if len(requests) == 1:
            requests[0].fail(error)
            return
        for request in requests:
            request.goes_alone = True
        self._waiting.extendleft(reversed([request for request in requests if not request.is_abandoned]))


def is_plain(publication: Publication) -> bool:
    """Whether it is only appended: its id is not remembered, and it does not wait."""
    return not publication.dedupe and publication.at is None and not publication.delay


def _checked_size(publication: Publication) -> int:
    """Bytes of its body; raises BackendError for what no script could take."""
    body, at, delay = publication.body, publication.at, publication.delay
    if not isinstance(body, bytes):
        raise BackendError(f"the body of an event must be bytes, not {type(body).__name__}")
    if (delay and not math.isfinite(delay)) or not (at is None or math.isfinite(at)):
        raise BackendError(f"delay and at must be finite numbers, not {delay!r} and {at!r}")
    return len(body)


def runs_of(publications: Sequence[Publication]) -> list[list[Any]]:
    """Publications as `publish` takes them: those in a row that are only appended to one topic are counted."""
    runs: list[list[Any]] = []
    topic = None
    for publication in publications:
        if not is_plain(publication):
            topic = None
            runs.append([clean(publication.topic), 1, *_particulars(publication)])
        elif publication.topic == topic:
            runs[-1][1] += 1
        else:
            topic = publication.topic
            runs.append([clean(topic), 1])
    return runs


def _particulars(publication: Publication) -> tuple[str, int, int]:
    """The id to remember or "", the time in ms when it is due or 0, the delay in ms."""
    at, delay = publication.at, publication.delay
    return (
        clean(publication.task_id) if publication.dedupe else "",
        0 if at is None else max(milliseconds(at), 1),
        0 if at is not None or not delay else milliseconds(delay),
    )


def publication_arguments(publication: Publication) -> list[Any]:
    """A publication of a settlement: [topic, id to remember or "", body, time when it is due or 0, delay], in ms."""
    _checked_size(publication)
    task_id, at, delay = _particulars(publication)
    return [clean(publication.topic), task_id, raw(publication.body), at, delay]


def milliseconds(seconds: float) -> int:
    """As scripts count: from 0 to what they can hold, some 285,000 years."""
    return round(min(max(seconds, 0.0) * 1000, LATEST))
