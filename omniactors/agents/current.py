"""The event being handled, as far as a publish from inside its handler needs to know it."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from contextvars import ContextVar
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

from omniactors.streams.settlement import derived_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from omniactors.streams.envelope import EventEnvelope
    from omniactors.streams.inhand import InHand
    from omniactors.streams.settlement import Publication


class Derived(NamedTuple):
    """An id made from the event in hand and from what is published: `number` says which of those alike in this try."""

    task_id: str
    number: int
    free: list[int]

    def take_back(self) -> None:
        """It was not published, as far as is known: the next one alike is this one."""
        heappush(self.free, self.number)


class CurrentEvent:
    """One try of one event, and what its handler has published so far."""

    __slots__ = (
        "_alike",
        "agent",
        "ends_process",
        "event",
        "in_hand",
        "is_over",
        "publications",
        "row",
        "store",
        "topics",
    )

    def __init__(self, event: EventEnvelope[Any], agent: str, in_hand: InHand, row: int, *, store: str) -> None:
        self.event = event
        self.store = store
        self.agent = agent
        self.in_hand = in_hand
        self.row = row
        self.publications: list[Publication] | None = None
        """What the handler has published as part of its settlement; made with the first."""
        self.topics: set[str] | None = None
        """Where it has published at once, and with success; made with the first."""
        self.is_over = False
        """Whether its outcome is decided: what is published later does not belong to it."""
        self.ends_process = False
        """Whether its handler was running when a signal came that ends the process: it has sent that itself, mostly."""
        self._alike: dict[str, list[int]] | None = None
        """Of each thing published at once, the numbers that are free: a heap whose greatest begins the rest."""

    def add(self, publication: Publication) -> None:
        """Publish this with the settlement."""
        if self.publications is None:
            self.publications = []
        self.publications.append(publication)

    def published(self, topic: str, store: str) -> None:
        """The handler has published to this topic of that store, at once; what is elsewhere is no reply."""
        if store != self.store:
            return
        if self.topics is None:
            self.topics = set()
        self.topics.add(topic)

    def derive(self, what: str) -> Derived:
        """An id for a publish at once, the same at every try of this event that publishes the same.

        `what` says all that makes two publishes the same.
        """
        if self._alike is None:
            self._alike = {}
        free = self._alike.setdefault(what, [1])
        number = heappop(free)
        if not free:
            free.append(number + 1)
        cause = f"{self.event.topic}\0{self.event.id}"
        return Derived(derived_id(cause, self.agent, f"{what}-{number}"), number, free)


current_event: ContextVar[CurrentEvent | None] = ContextVar("omniactors_current_event", default=None)


def event_in_hand() -> CurrentEvent | None:
    """The event whose handler runs now, or None outside a handler and after its end."""
    current = current_event.get()
    return None if current is None or current.is_over else current


def note_end_of_process() -> None:
    """Note whose handler a signal that ends the process has interrupted; to be called in the signal handler.

    A signal from outside finds the loop asleep, or a handler that computes and then is done within the
    grace time. A handler that signals its own process is found here, and if it is not done by then, the
    end counts as its crash: it would end the next process as well.
    """
    current = event_in_hand()
    if current is not None:
        current.ends_process = True
        current.in_hand.blame(current.row)


@contextmanager
def noting_ends(*numbers: int) -> Iterator[None]:
    """`note_end_of_process` at each of these signals, before what handles it already; in the main thread."""
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        note_end_of_process()
        handler = before[number]
        if callable(handler):
            handler(number, frame)

    for number in numbers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
