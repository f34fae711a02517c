"""The model: what a durable store holds, and what each operation of the protocol does to it.

Pure: plain data, no I/O, and the time comes in as `now`, in Unix seconds. It follows the words of
`omniactors/streams/backend.py` and nothing else, and it may be slow.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from omniactors.streams.crashes import crashes_after
from tests.streams.model_state import (
    RELEASED,
    Counts,
    Fate,
    Full,
    Group,
    Hold,
    Item,
    Letter,
    Numbers,
    Place,
    Scheduled,
    Stored,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from omniactors.streams.backend import DeadFilter, Want
    from omniactors.streams.settlement import Publication, ResultRecord, Settlement


@dataclass(eq=False)
class Model:
    """The store. Consumers are known by their ids, which the backend made. `items` holds all there ever were."""

    dedupe_window: float
    stream_limit: int | None = None
    items: dict[int, Item] = field(default_factory=dict)
    streams: defaultdict[str, list[Item]] = field(default_factory=lambda: defaultdict(list))
    scheduled: list[Scheduled] = field(default_factory=list)
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    letters: list[Letter] = field(default_factory=list)
    results: defaultdict[str, dict[str, Stored]] = field(default_factory=lambda: defaultdict(dict))
    counts: defaultdict[tuple[str, str], Counts] = field(default_factory=lambda: defaultdict(Counts))
    paused: set[str] = field(default_factory=set)
    consumers: set[str] = field(default_factory=set)
    promotions: int = 0
    _remembered: dict[tuple[str, str], tuple[float, Fate]] = field(default_factory=dict)
    _last_serial: int = 0

    def become(self, other: Model) -> None:
        """Be in the state of another one, which is not used any more."""
        vars(self).update(vars(other))

    # -- publishing -----------------------------------------------------------------------------

    def publish(self, publications: Sequence[Publication], now: float) -> list[Fate]:
        """Append all of them, or raise Full and append none."""
        news: dict[str, int] = {}
        for topic, _ in {
            (publication.topic, publication.task_id if publication.dedupe else number)
            for number, publication in enumerate(publications)
            if self._first(publication, now) is None
        }:
            news[topic] = news.get(topic, 0) + 1
        self._check_room(news)
        return [self._append(publication, now) for publication in publications]

    def _check_room(self, news: dict[str, int]) -> None:
        for topic, number in news.items():
            if self.stream_limit is not None and self.size(topic) + number > self.stream_limit:
                raise Full(topic)

    def size(self, topic: str) -> int:
        """Entries of a topic, those included that are not visible yet."""
        return len(self.streams[topic]) + sum(one.publication.topic == topic for one in self.scheduled)

    def _first(self, publication: Publication, now: float) -> Fate | None:
        """The publication of which this one is a repeat."""
        expires, fate = self._remembered.get((publication.topic, publication.task_id), (0.0, None))
        return fate if publication.dedupe and now < expires else None

    def _append(self, publication: Publication, now: float) -> Fate:
        first = self._first(publication, now)
        if first is not None:
            return Fate(first.item, is_duplicate=True)
        due = now + publication.delay if publication.at is None else publication.at
        if due > now:
            self.scheduled.append(Scheduled(due, self._serial(), publication))
            fate = Fate(None)
        else:
            fate = Fate(self._show(publication))
        if publication.dedupe:
            self._remembered[publication.topic, publication.task_id] = (now + self.dedupe_window, fate)
        return fate

    def _serial(self) -> int:
        self._last_serial += 1
        return self._last_serial

    def _show(self, publication: Publication) -> Item:
        return self._add(Item(self._serial(), publication.topic, publication.task_id, publication.body))

    def _add(self, item: Item) -> Item:
        self.items[item.serial] = item
        self.streams[item.topic].append(item)
        return item

    def promote(self, topics: Iterable[str], now: float) -> None:
        """Make visible what is due."""
        for one in sorted(self.scheduled, key=lambda one: (one.due, one.number)):
            if one.due <= now and one.publication.topic in topics:
                self.scheduled.remove(one)
                self._show(one.publication)
                self.promotions += 1

    # -- consuming ------------------------------------------------------------------------------

    def group(self, topic: str, agent: str) -> Group:
        """The group, made when it is missing."""
        return self.groups.setdefault((topic, agent), Group(topic, agent))

    def fetch(self, consumer: str, wants: Sequence[Want], now: float) -> dict[tuple[str, str], list[Place]]:
        """What is taken, by group."""
        self.promote({want.topic for want in wants}, now)
        return {(want.topic, want.agent): self._take(consumer, want, now) for want in wants}

    def _take(self, consumer: str, want: Want, now: float) -> list[Place]:
        group = self.group(want.topic, want.agent)
        handed, fresh = self._choose(group, consumer, want, now)
        if want.agent not in self.paused and want.credit > 0:
            group.withdrawn.discard(consumer)
        for place in handed:
            place.is_handed = False
        for place in fresh:
            place.owner, place.awaits_claim = consumer, want.is_ordered
            group.places[place.item.serial] = place
            group.cursor = max(group.cursor, place.item.serial)
        return handed + fresh

    def _choose(self, group: Group, consumer: str, want: Want, now: float) -> tuple[list[Place], list[Place]]:
        """What there is for a consumer: handed over to it, and for anybody."""
        if want.agent in self.paused or want.credit <= 0:
            return [], []
        handed = [place for place in group.owned(consumer) if place.is_handed][: want.credit]
        if want.is_ordered and group.gate() not in {None, consumer}:
            return handed, []
        room = want.credit - len(handed)
        if want.limit is not None:
            room = min(room, want.limit - len(group.owned()))
        fresh = [*(place for place in group.free() if place.due <= now), *self._new(group)]
        return handed, fresh[: max(room, 0)]

    def has_for(self, consumer: str, want: Want, now: float) -> bool:
        """Whether a fetch would take something."""
        return any(self._choose(self.group(want.topic, want.agent), consumer, want, now))

    def _new(self, group: Group) -> list[Place]:
        items = [item for item in self.streams[group.topic] if item.serial > group.cursor]
        return [Place(item) for item in items if item.only in {None, group.agent}]

    def next_due(self, wants: Sequence[Want], now: float) -> float | None:
        """Seconds until something of these groups or topics becomes due by itself."""
        groups = [self.group(want.topic, want.agent) for want in wants]
        topics = {want.topic for want in wants}
        dues = [place.due for group in groups for place in group.free()]
        dues += [one.due for one in self.scheduled if one.publication.topic in topics]
        return min((due - now for due in dues if due > now), default=None)

    def claim(self, consumer: str, claims: Sequence[tuple[Hold, str]]) -> list[bool]:
        """Claim what was fetched of one group; False for what was handed to another, or went back."""
        if not claims:
            return []
        group = self.group(claims[0][0].topic, claims[0][0].agent)
        back = min((place.item.serial for place in group.free() if place.due == RELEASED), default=None)
        return [self._claim_one(group, self._place(consumer, hold), key, back) for hold, key in claims]

    @staticmethod
    def _claim_one(group: Group, place: Place | None, key: str, back: int | None) -> bool:
        """Claim one entry; `back` is the first one that has come back to the group."""
        if place is None:
            return False
        if place.key is not None:
            return True
        consumer, holder = place.owner, group.at_work_on(key) or place.owner
        if (back is not None and back < place.item.serial) or holder in group.withdrawn:
            place.free()
            return False
        place.key, place.owner, place.awaits_claim = key, holder, False
        place.is_handed = holder != consumer
        return not place.is_handed

    def withdraw(self, consumer: str, groups: Iterable[tuple[str, str]]) -> None:
        """The consumer takes no more of these groups until it fetches again."""
        for topic, agent in groups:
            group = self.group(topic, agent)
            group.withdrawn.add(consumer)
            for place in group.owned(consumer):
                if place.is_handed:
                    place.free()

    def _place(self, consumer: str, hold: Hold) -> Place | None:
        """What this names, if it is in the hands of exactly this consumer."""
        group = self.groups.get((hold.topic, hold.agent))
        place = group.places.get(hold.serial) if group is not None else None
        return place if place is not None and place.owner == consumer == hold.consumer else None

    def in_hand(self, consumer: str, hold: Hold) -> bool:
        """Whether an entry is this consumer's, and was fetched by it."""
        place = self._place(consumer, hold)
        return place is not None and not place.is_handed

    def is_handed(self, hold: Hold) -> bool:
        """Whether an entry was handed over to this consumer, which has not fetched it yet."""
        place = self._place(hold.consumer, hold)
        return place is not None and place.is_handed

    def release(self, consumer: str, holds: Sequence[Hold]) -> None:
        """Give entries back."""
        for hold in holds:
            place = self._place(consumer, hold)
            if place is not None:
                place.free()

    def stop(self, consumer: str) -> None:
        """The consumer ends in order."""
        self._end(consumer)

    def bury(self, consumer: str) -> None:
        """The consumer has died, nobody knows what had begun, and its work is taken over."""
        held = [place for group in self.groups.values() for place in group.owned(consumer) if not place.is_handed]
        for place in held:
            place.crashes = crashes_after(place.crashes, has_begun=None, is_alone=len(held) == 1)
        self._end(consumer)

    def _end(self, consumer: str) -> None:
        self.consumers.discard(consumer)
        for group in self.groups.values():
            for place in group.owned(consumer):
                place.free()
            group.withdrawn.discard(consumer)

    # -- settling -------------------------------------------------------------------------------

    def settle(self, consumer: str, endings: Sequence[tuple[Hold, Settlement]], now: float) -> list[bool]:
        """Carry out each settlement whole or not at all."""
        return [self._settle_one(consumer, hold, settlement, now) for hold, settlement in endings]

    def _settle_one(self, consumer: str, hold: Hold, settlement: Settlement, now: float) -> bool:
        place = self._place(consumer, hold)
        if place is None:
            return False
        counts = self.counts[hold.topic, hold.agent]
        counts.seconds += settlement.seconds
        if settlement.retry is not None:
            counts.retried += 1
            place.attempts, place.crashes = settlement.retry.attempts, 0
            place.free(now + settlement.retry.after)
            return True
        del self.group(hold.topic, hold.agent).places[hold.serial]
        if settlement.dead is None:
            counts.completed += 1
        else:
            counts.dead += 1
            self.letters.append(
                Letter(self._serial(), hold.topic, hold.agent, place.item, settlement.dead, failed_at=now)
            )
        if settlement.result is not None:
            self._store(settlement.result, settlement.result_ttl, now)
        for publication in settlement.publications:
            self._append(msgspec.structs.replace(publication, dedupe=False), now)
        self._remove_if_done(place.item)
        return True

    def _store(self, record: ResultRecord, ttl: float, now: float) -> None:
        known = self.results[record.task_id].get(record.agent)
        if known is None or known.expires <= now or record.status == "success" or known.record.status == "failed":
            self.results[record.task_id][record.agent] = Stored(record, now, now + ttl)

    def _remove_if_done(self, item: Item) -> None:
        groups = [
            group for group in self.groups.values() if group.topic == item.topic and item.only in {None, group.agent}
        ]
        if not any(item.serial in group.places or item.serial > group.cursor for group in groups):
            self.streams[item.topic].remove(item)

    # -- looking --------------------------------------------------------------------------------

    def unexpired(self, task_id: str, now: float) -> list[Stored]:
        """The results of a task, oldest first."""
        stored = [one for one in self.results[task_id].values() if now < one.expires]
        return sorted(stored, key=lambda one: one.stored_at)

    def meant(self, topic: str, where: DeadFilter) -> list[Letter]:
        """The dead letters that a filter admits, oldest first."""
        return [letter for letter in self.letters if letter.is_meant(topic, where)]

    def purge(self, topic: str, where: DeadFilter, limit: int) -> list[Letter]:
        """Delete the oldest of these dead letters."""
        purged = self.meant(topic, where)[:limit]
        self.letters = [letter for letter in self.letters if letter not in purged]
        return purged

    def replay(self, topic: str, where: DeadFilter, limit: int) -> int:
        """Give the oldest of these dead letters back to their groups, as new; raises Full."""
        chosen = self.meant(topic, where)[:limit]
        if chosen:
            self._check_room({topic: len(chosen)})
        for letter in self.purge(topic, where, limit):
            item = letter.item
            self._add(Item(self._serial(), topic, item.task_id, item.body, only=letter.agent))
        return len(chosen)

    def topics(self) -> list[str]:
        """The topics of which something is known."""
        names = {topic for topic, items in self.streams.items() if items}
        names |= {one.publication.topic for one in self.scheduled}
        return sorted(names | {topic for topic, _ in self.groups})

    def scheduled_for(self, topic: str) -> int:
        """Publications of a topic that are not visible yet."""
        return sum(one.publication.topic == topic for one in self.scheduled)

    def numbers(self, topic: str, now: float) -> list[Numbers]:
        """The groups of a topic, by agent."""
        found = []
        for group in sorted(self.groups.values(), key=lambda group: group.agent):
            if group.topic == topic:
                free = group.free()
                due = sum(place.due <= now for place in free)
                dead = sum(letter.topic == topic and letter.agent == group.agent for letter in self.letters)
                waiting = due + len(self._new(group))
                found.append(Numbers(group.agent, waiting, len(group.owned()), len(free) - due, dead))
        return found
