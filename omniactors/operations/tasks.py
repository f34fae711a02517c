"""Publishing tasks and reading their results: the same rules for a script, a handler and the command line."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from omniactors.agents.current import event_in_hand
from omniactors.agents.publishing import check_size, schedule
from omniactors.agents.reports import published_draft
from omniactors.backoff import Backoff
from omniactors.errors import BackendError, BackendRefused, BatchFailed, EnvelopeError, StreamFull
from omniactors.operations.results import failure_of
from omniactors.streams.envelope import (
    EventEnvelope,
    WireEvent,
    check_event,
    check_topic,
    digest_of,
    new_id,
    wire_event,
    write_event,
)
from omniactors.streams.portions import portions, publication_weight
from omniactors.streams.settlement import Publication

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from omniactors.agents.current import CurrentEvent, Derived
    from omniactors.events.bus import EventBus
    from omniactors.streams.backend import Backend, Published
    from omniactors.streams.settlement import ResultRecord

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

    async def publish_wire(
        self,
        event: WireEvent[Any],
        *,
        is_new: bool = False,
        delay: float | None = None,
        at: float | datetime | None = None,
        wait_for_room: bool = False,
    ) -> str:
        """Publish one event with a checked topic; returns its id when it is durable.

        `is_new` says that its id was made for it: such an id is not remembered, except inside a
        handler, where it is derived from the event in hand and from what is published instead, so
        that a retry of the handler does not publish the same twice.
        """
        current = event_in_hand()
        check_event(event)
        derived = None if current is None else _follow(current, event, is_new=is_new)
        try:
            publication = self._publication(event, dedupe=derived is not None or not is_new)
            if delay is not None or at is not None:
                publication = schedule(publication, delay=delay, at=at)
            if wait_for_room:
                published = await self._write_patiently(publication)
            else:
                (published,) = await self._backend.publish([publication])
        except BaseException:
            if derived is not None:
                derived.take_back()
            raise
        if current is not None:
            current.published(publication.topic, self._backend.location)
        self._bus.publish_draft(published_draft(publication, is_duplicate=published.duplicate))
        return publication.task_id

    async def publish(self, event: EventEnvelope[Any], *, wait_for_room: bool = False) -> str:
        """Publish an event that was made before; its id is remembered."""
        if not isinstance(event, EventEnvelope):
            raise EnvelopeError(f"event_envelope must be an EventEnvelope, not {type(event).__name__}")
        check_topic(event.topic)
        return await self.publish_wire(wire_event(event), wait_for_room=wait_for_room)

    async def publish_batch(self, items: Sequence[BatchItem]) -> list[str]:
        """Publish many events; returns their ids, in order.

        All are checked first: a bad one raises EnvelopeError and nothing is published. Then they
        are written in chunks, each whole or not at all; raises BatchFailed when chunks failed. A store
        that takes nothing for now is waited for once: what comes behind that chunk is not tried.
        """
        current = event_in_hand()
        events = [_as_event(item, index) for index, item in enumerate(items)]
        derived: dict[int, Derived] = {}  # of those that are not published, as far as is known
        try:
            for index, (event, is_new) in enumerate(events):
                made = None if current is None else _follow_item(current, event, index, is_new=is_new)
                if made is not None:
                    derived[index] = made
            publications = [
                self._checked(event, index, dedupe=index in derived or not is_new)
                for index, (event, is_new) in enumerate(events)
            ]
            return await self._publish_chunks(publications, current, derived)
        finally:
            for each in derived.values():
                each.take_back()

    async def _publish_chunks(
        self, publications: list[Publication], current: CurrentEvent | None, derived: dict[int, Derived]
    ) -> list[str]:
        """Publish in chunks; what is published is taken out of `derived`."""
        published: list[str] = []
        failed: dict[int, Exception] = {}
        start = 0
        for chunk in portions(publications, publication_weight, count=CHUNK):
            places = range(start, start + len(chunk))
            start += len(chunk)
            try:
                fates = await self._backend.publish(chunk)
            except (BackendRefused, StreamFull) as error:
                failed.update(dict.fromkeys(places, error))
                continue
            except BackendError as error:
                failed.update(dict.fromkeys(places, error))
                rest = BackendError(f"not tried, since the store took nothing before: {error}")
                failed.update(dict.fromkeys(range(start, len(publications)), rest))
                break
            for place in places:
                derived.pop(place, None)
            told = zip(chunk, fates, strict=True)
            self._bus.publish_drafts(
                [published_draft(publication, is_duplicate=fate.duplicate) for publication, fate in told]
            )
            if current is not None:
                for publication in chunk:
                    current.published(publication.topic, self._backend.location)
            published += [publication.task_id for publication in chunk]
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
                raise failure_of(own[0])
            records = await self._backend.wait_results(task_id, records)

    async def _write_patiently(self, publication: Publication) -> Published:
        """Publish as soon as there is room."""
        attempt = 0
        while True:
            with suppress(StreamFull):
                (published,) = await self._backend.publish([publication])
                return published
            attempt += 1
            await trio.sleep(ROOM.delay(attempt, random.random()))  # noqa: S311 -- jitter, not a secret

    def _checked(self, event: WireEvent[Any], index: int, *, dedupe: bool) -> Publication:
        try:
            return self._publication(event, dedupe=dedupe)
        except EnvelopeError as error:
            error.add_note(f"in item {index} of the batch")
            raise

    def _publication(self, event: WireEvent[Any], *, dedupe: bool) -> Publication:
        return check_size(
            Publication(
                topic=event.topic or "",
                task_id=event.task_id or "",
                body=write_event(event),
                dedupe=dedupe,
                correlation_id=event.correlation_id,
                causation_id=event.causation_id,
            ),
            self._entry_limit,
        )


def _as_event(item: BatchItem, index: int) -> tuple[WireEvent[Any], bool]:
    """The event of an item, checked but for its content, and whether its id was made for it."""
    if isinstance(item, EventEnvelope):
        check_topic(item.topic)
        event = wire_event(item)
        check_event(event)
        return event, False
    if not isinstance(item, tuple) or len(item) != 2:  # noqa: PLR2004 -- a pair
        raise EnvelopeError(f"item {index} must be an EventEnvelope or a pair (topic, content), not {item!r}")
    topic, content = item
    try:
        topic = check_topic(topic)
    except EnvelopeError as error:
        raise EnvelopeError(f"item {index}: {error}") from None
    return WireEvent(content=content, topic=topic, task_id=new_id(), created_at=time.time()), True


def _follow(current: CurrentEvent, event: WireEvent[Any], *, is_new: bool) -> Derived | None:
    """Make the event follow from the one in hand; an id that is new is derived instead.

    What it does not say itself of correlation, causation and tenant is carried along. Raises ContentError.
    """
    cause = current.event
    if event.tenant_id is None:
        event.tenant_id = cause.tenant_id
    if event.correlation_id is None:
        event.correlation_id = cause.correlation_id
    if event.causation_id is None:
        event.causation_id = cause.id
    if not is_new:
        return None
    derived = current.derive(digest_of(event))
    event.task_id = derived.task_id
    return derived


def _follow_item(current: CurrentEvent, event: WireEvent[Any], index: int, *, is_new: bool) -> Derived | None:
    try:
        return _follow(current, event, is_new=is_new)
    except EnvelopeError as error:
        error.add_note(f"in item {index} of the batch")
        raise


def _of_agent(records: list[ResultRecord], agent: str | None) -> list[ResultRecord]:
    return [record for record in records if agent is None or record.agent == agent]


def _first_success(records: list[ResultRecord]) -> ResultRecord | None:
    return next((record for record in records if record.status == "success"), None)
