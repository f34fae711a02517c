"""A subscription: one agent as a runtime knows it, with its lane, its decoder and what it has done so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from omniactors.agents.annotations import fingerprint, runs_code
from omniactors.agents.lane import Delivery, EventLane
from omniactors.errors import AgentError, EntryError
from omniactors.streams.envelope import EventDecoder, glimpse

if TYPE_CHECKING:
    from collections.abc import Callable

    from omniactors.agents.options import AgentOptions
    from omniactors.agents.settler import Settler
    from omniactors.events.bus import EventBus
    from omniactors.streams.backend import Backend, Entry
    from omniactors.streams.envelope import EventEnvelope


class Clock(Protocol):
    """Wall clock and chance, so that tests can set both."""

    def now(self) -> float:
        """Unix seconds."""
        ...

    def random(self) -> float:
        """From [0, 1)."""
        ...


@dataclass(frozen=True)
class Services:
    """What agents need of the runtime around them."""

    backend: Backend
    settler: Settler
    bus: EventBus
    clock: Clock
    result_ttl: float
    entry_limit: int


class Subscription:
    """One agent on its topics: its options with a name, and the lane its instances work from.

    `groups` are what it reads: (topic, agent) for each topic.
    """

    def __init__(
        self,
        options: AgentOptions,
        *,
        name: str,
        content_type: Any,  # noqa: ANN401 -- any type form that msgspec reads
        services: Services,
        on_room: Callable[[Subscription], None],
    ) -> None:
        if not options.topics:
            raise AgentError(f"agent {name.rstrip('@')!r} has no topic; give one with topic= or topics=")
        self.options = options
        self.name = name
        self.groups: list[tuple[str, str]] = [(topic, name) for topic in options.topics]
        self.services = services
        self.lane = EventLane(options.capacity, options.concurrency, lambda: on_room(self))
        self.fingerprint = fingerprint(content_type)
        self.runs_code = runs_code(content_type) or callable(options.key)
        """Whether to read an event may run code of users."""
        self._decoder: EventDecoder[Any] = EventDecoder(content_type)

    @property
    def is_ordered(self) -> bool:
        """Whether its events have ordering keys."""
        return self.options.key is not None

    def read(self, entry: Entry) -> Delivery | EntryError:
        """The entry as an event to handle, or why it is none."""
        try:
            event = _decoded(self._decoder, entry)
        except EntryError as error:
            return error
        try:
            return Delivery(entry.key, event, self.options.ordering_of(event), len(entry.body))
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- a key function may raise anything
            failure = EntryError(f"the ordering key of agent {self.name!r} cannot be had: {error!r}")
            failure.__cause__ = error
            return failure

    def __repr__(self) -> str:
        return f"<Subscription {self.name} on {', '.join(self.options.topics)}, {self.lane.held} held>"


def readable(entry: Entry) -> EventEnvelope[Any] | None:
    """The event of an entry that its agent could not read, at least whose it is, so that its waiters can be told."""
    try:
        return _decoded(_ANY, entry)
    except EntryError:
        return glimpse(entry.body, topic=entry.key.topic, attempts=entry.attempts + 1)


def _decoded(decoder: EventDecoder[Any], entry: Entry) -> EventEnvelope[Any]:
    return decoder.decode(
        entry.body,
        topic=entry.key.topic,
        entry_id=entry.key.entry_id,
        attempts=entry.attempts + 1,
        deliveries=entry.deliveries,
    )


_ANY: EventDecoder[Any] = EventDecoder()
