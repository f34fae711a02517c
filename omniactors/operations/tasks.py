"""Publishing tasks and reading their results: the same rules for a script, a handler and the command line."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from omniactors.agents.current import event_in_hand
from omniactors.agents.publishing import check_size, schedule
from omniactors.agents.reports import published_draft
from omniactors.backoff import Backoff
from omniactors.errors import BackendError, BatchFailed, EnvelopeError, StreamFull, TaskFailed
from omniactors.streams.envelope import EventEnvelope, PayloadBase, check_topic
from omniactors.streams.settlement import to_publication

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from omniactors.events.bus import EventBus
    from omniactors.streams.backend import Backend, Published
    from omniactors.streams.settlement import Publication, ResultRecord

CHUNK = 500
"""Events in one write of a batch: large enough to be cheap, small enough to let others in between."""

ROOM = Backoff(initial=0.02, maximum=1.0, jitter=1.0)
"""Between two looks for room in a full stream; many publishers may wait, so chance spreads them."""

BatchItem = EventEnvelope[Any] | tuple[str, Any]


class TaskOperations:
    """Publish, and wait for results."""

    def __init__(self, backend: Backend, bus: EventBus, *, entry_limit: int) -> None:
        self._backend = backend
        self._bus = bus
        self._entry_limit = entry_limit

    async def publish(
        self,
        event: EventEnvelope[Any],
        *,
        is_new: bool = False,
        delay: float | None = None,
        at: float | datetime | None = None,
        wait_for_room: bool = False,
    ) -> str:
        """Publish one event; returns its id when it is durable.

        `is_new` says that its id was made for it: such an id is not remembered, except inside a
        handler, where it is derived from the event in hand instead, so that a retry of the handler
        does not publish twice.
        """
        if not isinstance(event, EventEnvelope):
            raise EnvelopeError(f"event_envelope must be an EventEnvelope, not {type(event).__name__}")
        check_topic(event.topic)
        event, dedupe = _in_hand(event, is_new=is_new)
        publication = schedule(self._sized(event, dedupe=dedupe), delay=delay, at=at)
        published = await self._write(publication, has_patience=wait_for_room)
        self._tell(event, published)
        return published.task_id

    async def publish_batch(self, items: Sequence[BatchItem]) -> list[str]:
        """Publish many events; returns their ids, in order.

        All are checked first: a bad one raises EnvelopeError and nothing is published. Then they
        are written in chunks, each whole or not at all; raises BatchFailed when chunks failed.
        """
        events = [_in_hand(*_as_event(item, index)) for index, item in enumerate(items)]
        publications = [self._checked(event, dedupe, index) for index, (event, dedupe) in enumerate(events)]
        published: list[str] = []
        failed: dict[int, Exception] = {}
        for start in range(0, len(publications), CHUNK):
            chunk = publications[start : start + CHUNK]
            try:
                fates = await self._backend.publish(chunk)
            except BackendError as error:
                failed.update(dict.fromkeys(range(start, start + len(chunk)), error))
                continue
            for (event, _), fate in zip(events[start : start + CHUNK], fates, strict=True):
                self._tell(event, fate)
            published.extend(fate.task_id for fate in fates)
        if failed:
            raise BatchFailed(tuple(published), failed)
        return published

    async def get_result(self, task_id: str, agent: str | None = None) -> Any:  # noqa: ANN401 -- any JSON value
        """What the agent returned; None until then, and once it is expired."""
        records = await self._backend.get_results(task_id)
        record = _first_success(_of_agent(records, agent))
        return None if record is None else record.result

    async def wait_result(self, task_id: str, agent: str | None = None) -> Any:  # noqa: ANN401 -- any JSON value
        """What the agent returned, as soon as it has; raises TaskFailed when the task was dead-lettered."""
        records = await self._backend.get_results(task_id)
        while True:
            own = _of_agent(records, agent)
            record = _first_success(own)
            if record is not None:
                return record.result
            if own:
                raise TaskFailed(task_id, own[0].agent, own[0].error or "", own[0].attempts)
            records = await self._backend.wait_results(task_id, len(records))

    async def _write(self, publication: Publication, *, has_patience: bool) -> Published:
        attempt = 0
        while True:
            try:
                (published,) = await self._backend.publish([publication])
            except StreamFull:
                if not has_patience:
                    raise
            else:
                return published
            attempt += 1
            await trio.sleep(ROOM.delay(attempt, random.random()))  # noqa: S311 -- jitter, not a secret

    def _checked(self, event: EventEnvelope[Any], dedupe: bool, index: int) -> Publication:  # noqa: FBT001 -- a pair's second half
        try:
            return self._sized(event, dedupe=dedupe)
        except EnvelopeError as error:
            error.add_note(f"in item {index} of the batch")
            raise

    def _sized(self, event: EventEnvelope[Any], *, dedupe: bool) -> Publication:
        return check_size(to_publication(event, dedupe=dedupe), self._entry_limit)

    def _tell(self, event: EventEnvelope[Any], published: Published) -> None:
        draft = published_draft(
            event.id,
            event.topic,
            correlation_id=event.correlation_id,
            causation_id=event.causation_id,
            is_duplicate=published.duplicate,
        )
        self._bus.publish_draft(draft)


def _as_event(item: BatchItem, index: int) -> tuple[EventEnvelope[Any], bool]:
    """The event of an item, and whether its id is new."""
    if isinstance(item, EventEnvelope):
        check_topic(item.topic)
        return item, False
    if not isinstance(item, tuple) or len(item) != 2:  # noqa: PLR2004 -- a pair
        raise EnvelopeError(f"item {index} must be an EventEnvelope or a pair (topic, content), not {item!r}")
    topic, content = item
    try:
        return EventEnvelope(topic=check_topic(topic), payload=PayloadBase(content=content)), True
    except EnvelopeError as error:
        raise EnvelopeError(f"item {index}: {error}") from None


def _in_hand(event: EventEnvelope[Any], is_new: bool) -> tuple[EventEnvelope[Any], bool]:  # noqa: FBT001 -- a pair's second half
    """The event as it is published from here, and whether its id is to be remembered.

    Inside a handler it follows from the event in hand: what it does not say itself of correlation,
    causation and tenant is carried along.
    """
    current = event_in_hand()
    if current is None:
        return event, not is_new
    cause = current.event
    carried = msgspec.structs.replace(
        event,
        id=current.next_id("published") if is_new else event.id,
        tenant_id=event.tenant_id if event.tenant_id is not None else cause.tenant_id,
        correlation_id=event.correlation_id if event.correlation_id is not None else cause.correlation_id,
        causation_id=event.causation_id if event.causation_id is not None else cause.id,
    )
    return carried, True


def _of_agent(records: list[ResultRecord], agent: str | None) -> list[ResultRecord]:
    return [record for record in records if agent is None or record.agent == agent]


def _first_success(records: list[ResultRecord]) -> ResultRecord | None:
    return next((record for record in records if record.status == "success"), None)
