"""Batches of mixed work at random: the counters agree with the rows, and nothing is lost or taken twice."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from outcome import Error

from omniactors.errors import StreamFull
from omniactors.streams.backend import EVERY_DEAD_LETTER, Entry, Want
from omniactors.streams.settlement import EntryKey, Publication, Retry, Settlement
from omniactors.streams.sqlite import dead, operations, ordering, scheduling
from omniactors.streams.sqlite.batch import Batch
from omniactors.streams.sqlite.schema import connect
from omniactors.streams.sqlite.work import Claim, Fetch, Publish, Release, Scene, Settle
from tests.streams.contract_kit import dead as as_dead

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator

    from omniactors.streams.sqlite.batch import Merged

TOPICS = ("a", "b")
GROUPS = (("a", "one"), ("a", "two"), ("b", "one"))
CONSUMERS = ("x", "y", "z")
ROUNDS = 250

COUNTERS = """
SELECT topic, 'length' FROM stream WHERE length <> (SELECT count(*) FROM entry WHERE entry.topic = stream.topic)
    + (SELECT count(*) FROM scheduled WHERE scheduled.topic = stream.topic)
UNION ALL SELECT topic, 'no length' FROM entry WHERE topic NOT IN (SELECT topic FROM stream)
UNION ALL SELECT agent, 'owned' FROM grp WHERE owned <> (
    SELECT count(*) FROM pending WHERE pending.grp = grp.id AND consumer IS NOT NULL)
UNION ALL SELECT entry, 'without its entry' FROM pending WHERE entry NOT IN (SELECT id FROM entry)
UNION ALL SELECT entry, 'free with a key' FROM pending
    WHERE consumer IS NULL AND (lane IS NOT NULL OR stage IS NOT NULL)
UNION ALL SELECT lane, 'two owners' FROM pending
    WHERE lane IS NOT NULL GROUP BY grp, lane HAVING count(DISTINCT consumer) > 1
"""


class Mixture:
    """A few consumers that do what comes to their minds, each batch as one of them."""

    def __init__(self, connection: sqlite3.Connection, seed: int) -> None:
        self.connection = connection
        self.chance = random.Random(seed)
        self.now = 1_800_000_000.0
        self.published = 0
        self.held: dict[str, list[Entry]] = {consumer: [] for consumer in CONSUMERS}
        self.accepted: set[tuple[str, int]] = set()
        self.done: list[tuple[str, str, int]] = []

    def scene(self, consumer: str) -> Scene:
        return Scene(now=self.now, consumer=consumer, dedupe_window=5.0, stream_limit=200)

    def publication(self) -> Publication:
        self.published += 1
        body = b"\xff%d" if self.chance.random() < 0.1 else b'"%d"'
        return Publication(
            topic=self.chance.choice(TOPICS),
            task_id=f"t{self.published}",
            body=body % self.published,
            dedupe=self.chance.random() < 0.3,
            delay=self.chance.choice([0, 0, 0, 1, 3]),
        )

    def settlement(self, key: EntryKey) -> Settlement:
        match self.chance.randrange(6):
            case 0:
                return Settlement(key=key, retry=Retry(after=self.chance.choice([0, 2]), attempts=1))
            case 1:
                return Settlement(key=key, dead=as_dead())
            case 2:
                return Settlement(key=key, publications=(self.publication(),))
        return Settlement(key=key)

    def works(self, consumer: str) -> list[Merged]:
        held = self.held[consumer]
        self.chance.shuffle(held)
        some = held[: self.chance.randrange(len(held) + 1)]
        works: list[Merged] = []
        for _ in range(self.chance.randrange(1, 4)):
            keys = [entry.key for entry in self.chance.sample(some, len(some) // 2)]
            kinds: list[Merged] = [
                Publish([self.publication() for _ in range(self.chance.randrange(4))]),
                Settle([self.settlement(key) for key in keys]),
                Release(keys),
                Claim([(key, key.entry_id[-1]) for key in keys]),
            ]
            works.append(self.chance.choice(kinds))
        wants = [
            Want(*group, self.chance.randrange(8), self.chance.choice([None, 3, 6]), self.chance.random() < 0.5)
            for group in GROUPS
        ]
        works.insert(self.chance.randrange(len(works) + 1), Fetch(wants))
        return works

    def run(self, consumer: str, works: list[Merged]) -> None:
        self.connection.execute("BEGIN")
        outcomes = Batch(self.connection, self.scene(consumer), 0).run(works)
        self.connection.execute("COMMIT")
        assert self.connection.execute(COUNTERS).fetchall() == []
        for work, outcome in zip(works, outcomes, strict=True):
            if isinstance(outcome, Error):
                assert isinstance(outcome.error, StreamFull)
                continue
            answer = outcome.unwrap()
            if isinstance(work, Fetch):
                self.held[consumer] += answer.entries
            elif isinstance(work, Publish):
                self.accept(work.publications)
            elif isinstance(work, Settle):
                for settlement, was_ours in zip(work.settlements, answer, strict=True):
                    if was_ours:
                        self.note(settlement)

    def note(self, settlement: Settlement) -> None:
        self.accept(settlement.publications)
        if settlement.retry is None and settlement.dead is None:
            key = settlement.key
            self.done.append((key.topic, key.agent, self.number(key)))

    def accept(self, publications: Iterable[Publication]) -> None:
        self.accepted |= {(publication.topic, int(publication.task_id[1:])) for publication in publications}

    def number(self, key: EntryKey) -> int:
        body = next(entry.body for entries in self.held.values() for entry in entries if entry.key == key)
        return int(body.strip(b'"\xff'))

    def between(self) -> None:
        """What happens rarely, outside batches."""
        self.now += self.chance.random()
        match self.chance.randrange(8):
            case 0:
                gone = self.chance.choice(CONSUMERS)
                operations.remove_consumer(self.connection, gone, None, now=0.0)
                self.held[gone] = []
            case 1:
                ordering.withdraw(self.connection, GROUPS[:1], self.chance.choice(CONSUMERS))
            case 2:
                scheduling.promote(self.connection, TOPICS, self.now)
            case 3:
                topic = self.chance.choice(TOPICS)
                with suppress(StreamFull):
                    dead.replay(self.connection, self.scene("x"), topic, EVERY_DEAD_LETTER, limit=3)

    def finish(self) -> None:
        """Let one consumer do all that is left."""
        self.now += 100
        unbounded = replace(self.scene("x"), stream_limit=None)
        for consumer in CONSUMERS:
            operations.remove_consumer(self.connection, consumer, frozenset(), now=0.0)
            self.held[consumer] = []
        for topic in TOPICS:
            dead.replay(self.connection, unbounded, topic, EVERY_DEAD_LETTER, limit=1000)
        scheduling.promote(self.connection, TOPICS, self.now)
        self.run("x", [Fetch([Want(*group, 10_000) for group in GROUPS])])
        self.run("x", [Settle([Settlement(key=entry.key) for entry in self.held["x"]])])


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = connect(None, synchronous="FULL", wait=1.0)
    operations.create_groups(connection, GROUPS)
    yield connection
    connection.close()


@pytest.mark.parametrize("seed", range(12))
def test_mixed_batches_lose_nothing_and_count_right(connection: sqlite3.Connection, seed: int) -> None:
    mixture = Mixture(connection, seed)
    for _ in range(ROUNDS):
        consumer = mixture.chance.choice(CONSUMERS)
        mixture.run(consumer, mixture.works(consumer))
        mixture.between()
    mixture.finish()
    rows: Any = connection.execute("SELECT (SELECT count(*) FROM entry), (SELECT sum(length) FROM stream)").fetchone()
    assert rows == (0, 0)
    assert len(mixture.done) == len(set(mixture.done)), "an event was settled twice"
    for topic, agent in GROUPS:
        settled = {number for *group, number in mixture.done if group == [topic, agent]}
        accepted = {number for of, number in mixture.accepted if of == topic}
        assert settled == accepted, "an event is lost, or came from nowhere"
    assert len(mixture.accepted) > 150
