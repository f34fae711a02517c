"""Restarts under load: every message is handled once, or whoever sent it is told, or its loss is reported (A9, A13).

A run is a seed. Producers tell and ask numbered messages while actors crash, are stopped, started
again and restarted as a group; then the books are balanced.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter as Tally
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from omniactors import (
    Actor,
    ActorRef,
    ActorStopped,
    AskFailed,
    Backoff,
    ChildExited,
    ChildSpec,
    ChildStartFailed,
    ChildStopped,
    Intensity,
    Mailbox,
    MailboxFull,
    MessagesLost,
    SupervisionError,
    on,
    open_supervisor,
    pool,
)

if TYPE_CHECKING:
    from omniactors import Supervisor

SEEDS = 60
PRODUCERS = 5
MESSAGES = 40
"""From each producer."""
OFTEN = Intensity(1_000_000, 1)


@dataclass(frozen=True)
class Job:
    """One numbered message."""

    number: int


class Books:
    """What became of every message, by those who sent them and by those who handled them."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.numbers = 0
        self.begun: Tally[int] = Tally()
        self.finished: Tally[int] = Tally()
        self.crashed: set[int] = set()
        self.cancelled: set[int] = set()
        self.told: set[int] = set()
        """Told without an error."""
        self.untold: set[int] = set()
        """Told with an error, or cancelled."""
        self.asked: set[int] = set()
        self.replied: set[int] = set()
        self.failed: set[int] = set()
        self.full: set[int] = set()
        """Asked in vain, since there was no room."""
        self.stopped: set[int] = set()
        self.lost = 0
        self.dropped = 0
        self.exits = 0

    def next_job(self) -> Job:
        """A message with a number of its own."""
        self.numbers += 1
        return Job(self.numbers)

    def emit(self, notice: object) -> None:
        """Note crashes and losses."""
        if isinstance(notice, MessagesLost):
            self.lost += notice.count
        # One that crashes on a message that waited for it, before its supervisor has noted that it is
        # ready and while that is given up, is reported as a start that failed.
        elif isinstance(notice, ChildExited | ChildStopped | ChildStartFailed) and notice.reason.kind == "crash":
            self.exits += 1

    def balance(self) -> None:
        """Every message is on one side of the books, and no message is on both."""
        self._check_handled_once()
        self._check_asks()
        self._check_tells()

    def _check_handled_once(self) -> None:
        assert set(self.begun.values()) <= {1}, "a message was handled twice"
        assert set(self.finished) | self.crashed | self.cancelled == set(self.begun)
        assert len(self.finished) + len(self.crashed) + len(self.cancelled) == len(self.begun)
        assert self.exits == len(self.crashed), "each crash is reported, with the one message it took along"

    def _check_asks(self) -> None:
        assert self.replied <= set(self.finished)
        assert self.failed <= self.crashed
        assert not self.stopped & set(self.finished), "the sender was told that it was not handled"
        assert not self.stopped & self.crashed
        assert not self.full & set(self.begun)

    def _check_tells(self) -> None:
        assert not self.untold & set(self.begun)
        missing = self.told - set(self.begun)
        dropped_asks = len(self.full) if self.dropped else 0
        assert len(missing) == self.lost + self.dropped - dropped_asks, "a message is gone, and nobody was told"


class Worker(Actor[Job]):
    """Takes its time, crashes, is replaced."""

    def __init__(self, books: Books, trouble: float) -> None:
        self._books = books
        self._trouble = trouble

    async def on_start(self) -> None:
        if self._books.dice.random() < self._trouble / 2:
            await trio.sleep(self._books.dice.random())

    @on
    async def job(self, message: Job) -> int:
        books = self._books
        books.begun[message.number] += 1
        try:
            if books.dice.random() < 0.5:
                await trio.sleep(books.dice.random() / 10)
        except trio.Cancelled:
            books.cancelled.add(message.number)
            raise
        if books.dice.random() < self._trouble:
            books.crashed.add(message.number)
            raise ValueError(message.number)
        books.finished[message.number] += 1
        return message.number


async def produce(books: Books, refs: list[ActorRef[Any]]) -> None:
    """Send messages, and note how each ended for the sender."""
    dice = books.dice
    for _ in range(MESSAGES):
        send = ask if dice.random() < 0.4 else tell
        with trio.move_on_after(dice.choice([0.05, math.inf, math.inf])):
            await send(books, dice.choice(refs), books.next_job())
        await trio.sleep(dice.choice([0, 0, 0.05]))


async def ask(books: Books, ref: ActorRef[Any], job: Job) -> None:
    books.asked.add(job.number)
    try:
        assert await ref.ask(job) == job.number
    except AskFailed:
        books.failed.add(job.number)
    except MailboxFull:
        books.full.add(job.number)
    except ActorStopped as error:
        check_undelivered(error, job)
        books.stopped.add(job.number)
    else:
        books.replied.add(job.number)


def check_undelivered(error: ActorStopped, job: Job) -> None:
    assert error.message is job


async def tell(books: Books, ref: ActorRef[Any], job: Job) -> None:
    books.untold.add(job.number)
    try:
        if books.dice.random() < 0.5:
            await ref.tell(job)
        else:
            ref.tell_nowait(job)
    except MailboxFull:
        return
    except ActorStopped as error:
        check_undelivered(error, job)
        return
    books.untold.discard(job.number)
    books.told.add(job.number)


async def meddle(books: Books, sup: Supervisor) -> None:
    """Stop children and start them again."""
    while True:
        await trio.sleep(books.dice.random())
        ref = books.dice.choice(sup.which_children())
        with contextlib.suppress(SupervisionError):
            await (ref.stop() if books.dice.random() < 0.7 else ref.stop_now())
            await trio.sleep(books.dice.random() / 5)
            await sup.restart_child(ref.id)


async def storm(books: Books) -> None:
    """One run: some actors and a pool, producers, and an operator."""
    pick = books.dice.choice
    overflow: Any = pick(["wait", "wait", "reject", "drop_newest", "drop_oldest"])
    trouble = pick([0.02, 0.2])
    backoff = pick([None, Backoff(initial=0.1, maximum=0.5)])
    specs = [
        ChildSpec(
            Worker,
            books,
            trouble,
            mailbox=Mailbox(pick([1, 3, 100]), overflow),
            on_crash=pick([None, "dead_letter"]),
            shutdown=pick([0, 0.1, math.inf]),
        )
        for _ in range(3)
    ]
    crew = ChildSpec(pool(Worker, books, trouble, size=2, intensity=OFTEN), mailbox=Mailbox(pick([1, 100]), overflow))
    strategy: Any = pick(["one_for_one", "one_for_all", "rest_for_one"])
    refs: list[ActorRef[Any]] = []
    async with (
        open_supervisor(*specs, crew, strategy=strategy, intensity=OFTEN, backoff=backoff, emit=books.emit) as sup,
        trio.open_nursery() as meddling,
    ):
        refs = [ref for ref in sup.which_children() if isinstance(ref, ActorRef)]
        meddling.start_soon(meddle, books, sup)
        async with trio.open_nursery() as nursery:
            for _ in range(PRODUCERS):
                nursery.start_soon(produce, books, refs)
            if pick([True, False]):
                await trio.sleep(1)
                sup.request_stop()
        meddling.cancel_scope.cancel()
    books.dropped = sum(ref.statistics().dropped for ref in refs)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_message_is_handled_once_or_reported(seed: int) -> None:
    books = Books(seed)
    trio.run(storm, books, clock=MockClock(autojump_threshold=0))
    books.balance()
