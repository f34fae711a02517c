"""Demand: for which groups to fetch now, and for which topics to wait.

A group is asked for when its lane has room and its stream perhaps something for it. A fetch that
brings less than was asked for has drained the group, and from then on its topic is waited for. A
topic whose groups all have a backlog is not: there is nothing that a change of it could tell. No
step costs more than the groups that it is about, however many others there are.

A suspect, an event that may end its process, is handled alone in it: nothing is fetched from the
moment it came until it is done, and it begins when nothing else is at work. Other suspects that came
with it are given back, so a process has one at a time. When that takes too long others are fetched all
the same: what is at work may wait for them.
"""

from __future__ import annotations

import logging
import math
from itertools import islice
from typing import TYPE_CHECKING

from omniactors.actors.lanes import Lane
from omniactors.streams.backend import Want
from omniactors.streams.crashes import MAX_CRASHES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from omniactors.actors.lanes import Parker
    from omniactors.agents.agenda import Group
    from omniactors.agents.lane import Delivery, EventLane, Suspect
    from omniactors.agents.subscription import Subscription

logger = logging.getLogger("omniactors.agents")

MOST_AGENTS = 128
"""Agents in one fetch: beyond this a bigger one saves nothing, and the first would wait for the last."""


class Feed:
    """One agent as the router feeds it: its subscription, and the topics with perhaps something for it."""

    __slots__ = ("backlog", "subscription")

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.backlog: dict[str, None] = dict.fromkeys(subscription.options.topics)

    @property
    def is_hungry(self) -> bool:
        """Whether there is a reason to fetch; for a paused agent, to learn whether it still is."""
        lane = self.subscription.lane
        return bool(self.backlog) and (lane.is_suspended or lane.credit > 0)

    def wants(self) -> list[Want]:
        """What to ask for: its topics share the credit of its lane, and take turns at being the first."""
        subscription = self.subscription
        left = subscription.lane.credit
        if not left and not subscription.lane.is_suspended:
            return []
        options, name, topics = subscription.options, subscription.name, list(self.backlog)
        shares = len(topics)
        if shares > 1:
            self.backlog[topics[0]] = self.backlog.pop(topics[0])
        wants = []
        for topic in topics:
            credit = math.ceil(left / shares)
            shares -= 1
            left -= credit
            if credit or subscription.lane.is_suspended:
                wants.append(Want(topic, name, credit, options.limit, options.key is not None))
        return wants


class Demand(Lane):
    """All feeds. It is the router's lane: it gives out work whenever there is a reason to fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[str, int] = {}
        """The topics to wait for, each with the position of the first fetch that drained a group of it."""
        self._feeds: dict[Group, Feed] = {}
        self._by_topic: dict[str, dict[Feed, None]] = {}
        self._ready: dict[Feed, None] = {}
        self._touched: set[str] = set()
        """The topics that changed while the last fetch was on its way."""
        self._next_most = MOST_AGENTS
        self._is_open = True
        self._suspected: dict[Subscription, None] = {}
        """Whose suspects wait to be alone, or did."""
        self._is_shut = False
        """Whether nothing is fetched for the sake of a suspect."""
        self._is_others_turn = False
        """Whether others are fetched although suspects are here."""
        self.on_idle: Callable[[], None] = _nothing
        """Called when the router has nothing to fetch, and goes to sleep."""

    @property
    def has_work(self) -> bool:
        """Whether there is something to fetch now."""
        return bool(self._ready) and self._is_open and not self._is_shut

    @property
    def is_shut(self) -> bool:
        """Whether a suspect keeps everybody from being fetched for."""
        return self._is_shut

    def close(self) -> None:
        """Fetch nothing until `open`: a new run begins."""
        self._is_open = self._is_shut = self._is_others_turn = False
        self._suspected.clear()

    def open(self) -> None:
        """The runtime counts as started, and may take events."""
        self._is_open = True
        self._wake()

    def isolate(self, suspected: Subscription) -> list[Subscription]:
        """Fetch nothing until the suspects of this agent's lane are done; whose events are to be given back before.

        Those that come while others have their turn wait for its end.
        """
        self._suspected[suspected] = None
        return [] if self._is_others_turn else self.shut()

    def shut(self) -> list[Subscription]:
        """Fetch nothing while suspects are here; whose events are to be given back."""
        self._is_others_turn = False
        self._is_shut = bool(self._suspected)
        return [feed.subscription for feed in self._feeds.values()] if self._is_shut else []

    def relent(self) -> None:
        """Fetch all the same, until `shut`: the suspect waits for others, or they for it."""
        self._is_others_turn = True
        self._is_shut = False
        self._wake()

    def spare_suspects(self) -> list[tuple[Subscription, list[Delivery]]]:
        """Take out all suspects but the one that is next: other processes may handle them meanwhile.

        Not those of ordered groups, where what comes later might overtake them.
        """
        found = self._next_suspect() if self._is_shut else None
        if found is None:
            return []
        return [(each, each.lane.clear_suspects(found[0])) for each in self._suspected if not each.is_ordered]

    def _next_suspect(self) -> tuple[Suspect, EventLane] | None:
        found = [(suspect, each.lane) for each in self._suspected if (suspect := each.lane.next_suspect()) is not None]
        return min(found, key=_crashes, default=None)

    def _go_on(self) -> None:
        self._is_shut = self._is_others_turn = False
        self._wake()

    def advance(self) -> None:
        """Let the next suspect begin when nothing else is at work, and go on with the others after the last."""
        if not self._suspected:
            return
        lanes = {feed.subscription.lane for feed in self._feeds.values()} | {each.lane for each in self._suspected}
        if any(lane.held > lane.suspects for lane in lanes):
            return
        found = self._next_suspect()
        if found is None:
            self._suspected.clear()
            self._go_on()
            return
        self._is_shut, self._is_others_turn = True, False
        suspect, lane = found
        logger.warning(
            "agent %s: a process ended %s times while task %s was handled; it is handled alone now, and dead after %s",
            suspect.delivery.key.agent,
            suspect.crashes,
            suspect.delivery.event.id,
            MAX_CRASHES,
        )
        lane.begin_suspect(suspect)

    def add(self, subscription: Subscription) -> None:
        """Fetch for this agent too; anew, when it is here already."""
        self.remove(subscription)
        feed = Feed(subscription)
        for group in subscription.groups:
            self._feeds[group] = feed
            self._by_topic.setdefault(group[0], {})[feed] = None
        self._consider(feed)

    def remove(self, subscription: Subscription) -> None:
        """Fetch for this agent no more."""
        feed = self._feed_of(subscription)
        if feed is None:
            return
        self._ready.pop(feed, None)
        for topic, agent in subscription.groups:
            del self._feeds[topic, agent]
            readers = self._by_topic[topic]
            del readers[feed]
            if not readers:
                del self._by_topic[topic]
                self.watched.pop(topic, None)

    def subscription(self, topic: str, agent: str) -> Subscription | None:
        """What is fetched for as the agent of this name on the topic, if anything is."""
        feed = self._feeds.get((topic, agent))
        return None if feed is None else feed.subscription

    def _feed_of(self, subscription: Subscription) -> Feed | None:
        feed = self._feeds.get(subscription.groups[0])
        return feed if feed is not None and feed.subscription is subscription else None

    def changed(self, topics: Iterable[str]) -> None:
        """Something may have been added to these streams, or an agent of them paused or resumed."""
        for topic in topics:
            self._touched.add(topic)
            self.watched.pop(topic, None)
            for feed in self._by_topic.get(topic, ()):
                feed.backlog[topic] = None
                self._consider(feed)

    def changed_everywhere(self) -> None:
        """Nothing is known about any stream any more."""
        self.changed(list(self._by_topic))

    def due(self, groups: Sequence[Group]) -> None:
        """Delayed entries of some of these groups are due.

        Half of them are asked for first: so after a few times the groups that have delayed entries
        are known, and those that merely stood beside them in a fetch are left alone.
        """
        if not self._ready:
            self._next_most = max(1, len(groups) // 2)
        for topic, agent in groups:
            feed = self._feeds.get((topic, agent))
            if feed is not None:
                self._touched.add(topic)
                feed.backlog[topic] = None
                self._consider(feed)

    def room(self, subscription: Subscription) -> None:
        """The lane of this agent has room."""
        self.advance()
        feed = self._feed_of(subscription)
        if feed is not None:
            self._consider(feed)

    def drained(self, want: Want, position: int) -> bool:
        """A fetch with this position brought all there was; True when its topic has to be waited for now.

        Nothing is drained in which something changed while the fetch was on its way.
        """
        feed = self._feeds.get((want.topic, want.agent))
        if feed is None or want.topic in self._touched:
            return False
        feed.backlog.pop(want.topic, None)
        if not feed.backlog:
            self._ready.pop(feed, None)
            feed.subscription.lane.drained()
        # The oldest position counts: an agent that was drained then has not seen what came since.
        self.watched.setdefault(want.topic, position)
        return True

    def fetched(self, wants: Sequence[Want]) -> None:
        """The fetch of these wants is over: whoever has room and backlog left is asked for again."""
        for want in wants:
            feed = self._feeds.get((want.topic, want.agent))
            if feed is not None:
                self._consider(feed)

    def take(self) -> list[Want] | None:
        """What to fetch now, or None; whoever waited longest comes first."""
        if not self.has_work:
            return None
        most, self._next_most = self._next_most, MOST_AGENTS
        feeds = list(islice(self._ready, most))
        wants: list[Want] = []
        for feed in feeds:
            del self._ready[feed]
            wants += feed.wants()
        if wants:
            self._touched.clear()
        return wants or None

    def add_idle(self, parker: Parker) -> None:
        """Wake the router when there is something to fetch."""
        super().add_idle(parker)
        self.on_idle()

    def _consider(self, feed: Feed) -> None:
        if feed.is_hungry:
            self._ready[feed] = None
            self._wake()

    def _wake(self) -> None:
        if self.has_work:
            self.wake_one()


def _crashes(found: tuple[Suspect, EventLane]) -> int:
    return found[0].crashes


def _nothing() -> None:
    """Nobody listens yet."""
