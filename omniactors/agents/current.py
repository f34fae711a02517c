"""The event being handled, as far as a publish from inside its handler needs to know it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from omniactors.streams.settlement import derived_id

if TYPE_CHECKING:
    from omniactors.streams.envelope import EventEnvelope
    from omniactors.streams.settlement import Publication


class CurrentEvent:
    """One try of one event. Publishes are numbered, so that a later try gives them the same ids."""

    __slots__ = ("_numbers", "agent", "event", "is_over", "publications")

    def __init__(self, event: EventEnvelope[Any], agent: str) -> None:
        self.event = event
        self.agent = agent
        self.publications: list[Publication] | None = None
        """What the handler has published so far as part of its settlement; made with the first."""
        self.is_over = False
        """Whether its outcome is decided: what is published later does not belong to it."""
        self._numbers: dict[str, int] | None = None

    def add(self, publication: Publication) -> None:
        """Publish this with the settlement."""
        if self.publications is None:
            self.publications = []
        self.publications.append(publication)

    def next_id(self, kind: str) -> str:
        """The id of the next publish of this kind, the same at every try."""
        if self._numbers is None:
            self._numbers = {}
        number = self._numbers[kind] = self._numbers.get(kind, 0) + 1
        return derived_id(self.event.id, self.agent, f"{kind}-{number}")


current_event: ContextVar[CurrentEvent | None] = ContextVar("omniactors_current_event", default=None)


def event_in_hand() -> CurrentEvent | None:
    """The event whose handler runs now, or None outside a handler and after its end."""
    current = current_event.get()
    return None if current is None or current.is_over else current
