"""The event being handled, as far as a publish from inside its handler needs to know it."""

from __future__ import annotations

import functools
import os
import signal
import sys
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
        """Whether its handler has sent its own process a signal that ends it."""
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


ENDS_PROCESS = frozenset(getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
"""Signals at which a process ends in order."""

_UNAUDITED = frozenset({"raise_signal", "interrupt_main"})
"""What sends a signal to its own process without Python's telling its audit hooks."""


@functools.cache
def watch_own_signals() -> None:
    """From now on note whose handler sends its own process a signal that ends it, in whatever thread.

    If it is not done by the end of the grace time, the end counts as its crash: it would end the next
    process as well. A signal from outside is nobody's doing. Python does not tell who sent one, but
    its audit hooks (PEP 578) tell of those that it sends; they stay for as long as the process lives.
    """
    sys.addaudithook(_note_signal)


def _note_signal(event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.kill":
        is_own = arguments[0] in (os.getpid(), 0) and arguments[1] in ENDS_PROCESS
    elif event == "os.killpg":
        is_own = arguments[0] in (os.getpgrp(), 0) and arguments[1] in ENDS_PROCESS
    else:
        is_own = event == "signal.pthread_kill" and arguments[1] in ENDS_PROCESS
    if is_own:
        _blame_event_in_hand()


def note_interrupted(frame: FrameType | None) -> None:
    """As `watch_own_signals`, for what is not audited; to be called in the signal handler, with the frame it gets."""
    if frame is not None and not _UNAUDITED.isdisjoint(frame.f_code.co_names):
        _blame_event_in_hand()


def _blame_event_in_hand() -> None:
    current = event_in_hand()
    if current is not None:
        current.ends_process = True
        current.in_hand.blame(current.row)


@contextmanager
def noting_ends(*numbers: int) -> Iterator[None]:
    """`note_interrupted` at each of these signals, before what handles it already; in the main thread."""
    watch_own_signals()
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        note_interrupted(frame)
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
