"""For which groups to fetch, and for which topics to wait."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from omniactors import Mailbox
from omniactors.actors.lanes import Parker
from omniactors.agents.demand import MOST_AGENTS, Demand
from omniactors.agents.lane import QUANTUM, Delivery
from omniactors.agents.options import AgentOptions
from omniactors.agents.subscription import Services, Subscription
from omniactors.streams.backend import Want
from omniactors.streams.envelope import EventEnvelope, PayloadBase
from omniactors.streams.settlement import EntryKey

if TYPE_CHECKING:
    from collections.abc import Sequence


def agent(demand: Demand, name: str, *topics: str, **options: Any) -> Subscription:
    """An agent that holds at most four events, on the topics named, or one called as itself."""
    described = AgentOptions(topics=topics or (name,), mailbox=Mailbox(4), concurrency=2, **options)
    subscription = Subscription(
        described, name=name, content_type=Any, services=cast("Services", None), on_room=demand.room
    )
    demand.add(subscription)
    return subscription


def fill(subscription: Subscription, count: int) -> None:
    for number in range(count):
        event: EventEnvelope[Any] = EventEnvelope(topic="t", payload=PayloadBase(content=number))
        subscription.lane.put(Delivery(EntryKey("t", subscription.name, str(number)), event))


def fetch(demand: Demand, *, position: int = 1, brings: dict[tuple[str, str], int] | None = None) -> list[Want]:
    """One fetch as the router does it; what it brings is put into the lanes."""
    wants = demand.take() or []
    for want in wants:
        count = (brings or {}).get((want.topic, want.agent), 0)
        subscription = demand.subscription(want.topic, want.agent)
        assert subscription is not None
        fill(subscription, count)
        if count < want.credit:
            demand.drained(want, position)
    demand.fetched(wants)
    return wants


def asked(wants: Sequence[Want]) -> list[tuple[str, str, int]]:
    return [(want.topic, want.agent, want.credit) for want in wants]


def test_a_new_agent_is_fetched_for_and_then_its_topic_is_waited_for() -> None:
    demand = Demand()
    agent(demand, "a", limit=3)
    assert demand.watched == {}
    assert fetch(demand, position=7) == [Want("a", "a", 2, 3, is_ordered=False)]
    assert demand.watched == {"a": 7}
    assert demand.take() is None


def test_a_change_asks_for_the_groups_of_its_topic_alone() -> None:
    demand = Demand()
    for name in ("a", "b"):
        agent(demand, name)
    agent(demand, "c", "a", "x")
    fetch(demand)
    demand.changed(["a"])
    assert demand.watched == {"b": 1, "x": 1}
    assert asked(fetch(demand, position=2)) == [("a", "a", 4), ("a", "c", 4)]
    assert demand.watched == {"b": 1, "x": 1, "a": 2}


def test_a_topic_whose_groups_all_have_a_backlog_is_not_watched() -> None:
    demand = Demand()
    busy = agent(demand, "a")
    fetch(demand, brings={("a", "a"): 4})
    assert demand.watched == {}
    assert demand.take() is None
    demand.changed(["a"])
    assert demand.take() is None, "there is no room"
    busy.lane.settled(4, 0.0)
    assert asked(fetch(demand)) == [("a", "a", 4)]
    assert demand.watched == {"a": 1}


def test_a_drained_group_has_its_topic_watched_from_the_position_at_which_it_was_drained() -> None:
    demand = Demand()
    agent(demand, "idle", "t")
    busy = agent(demand, "busy", "t")
    fetch(demand, position=5, brings={("t", "busy"): 4})
    assert demand.watched == {"t": 5}
    busy.lane.settled(4, 0.0)
    fetch(demand, position=9)
    assert demand.watched == {"t": 5}, "what came between 5 and 9 is news to the idle one"


def test_what_changed_during_a_fetch_is_not_drained_by_it() -> None:
    demand = Demand()
    agent(demand, "a")
    (want,) = demand.take() or []
    demand.changed(["a"])
    assert not demand.drained(want, 1)
    demand.fetched([want])
    assert asked(fetch(demand)) == [("a", "a", 4)]


def test_room_that_comes_during_the_fetch_that_drains_a_group_is_no_reason_to_fetch_again() -> None:
    demand = Demand()
    subscription = agent(demand, "a")
    (want,) = demand.take() or []
    demand.room(subscription)
    assert demand.has_work
    assert demand.drained(want, 1)
    demand.fetched([want])
    assert not demand.has_work


def test_the_router_is_heard_of_when_it_finds_nothing_to_fetch_after_all() -> None:
    demand = Demand()
    subscription = agent(demand, "a")
    fetch(demand, brings={("a", "a"): 4})
    heard: list[bool] = []
    demand.on_idle = lambda: heard.append(demand.has_work)
    subscription.lane.settled(4, 0.0)
    assert demand.has_work
    subscription.lane.is_closed = True
    assert demand.take() is None
    demand.add_idle(Parker())
    assert heard == [False]


def test_topics_of_one_agent_share_its_room_and_take_turns() -> None:
    demand = Demand()
    both = agent(demand, "a", "x", "y")
    assert asked(fetch(demand, brings={("x", "a"): 2, ("y", "a"): 2})) == [("x", "a", 2), ("y", "a", 2)]
    both.lane.settled(1, 0.0)
    assert asked(fetch(demand, brings={("y", "a"): 1})) == [("y", "a", 1)]
    both.lane.settled(1, 0.0)
    assert asked(fetch(demand, brings={("x", "a"): 1})) == [("x", "a", 1)]
    both.lane.settled(3, 0.0)
    assert asked(fetch(demand)) == [("y", "a", 2), ("x", "a", 1)]


def test_agents_take_turns_when_there_are_more_than_one_fetch_takes() -> None:
    demand = Demand()
    for number in range(MOST_AGENTS + 10):
        agent(demand, f"a{number}")
    first, second = fetch(demand), fetch(demand)
    assert [len(first), len(second)] == [MOST_AGENTS, 10]
    assert demand.take() is None


def test_a_suspended_agent_is_asked_about_after_each_change_without_credit() -> None:
    demand = Demand()
    paused = agent(demand, "a")
    fetch(demand)
    paused.lane.is_suspended = True
    assert demand.take() is None
    demand.changed(["a"])
    (want,) = demand.take() or []
    assert want.credit == 0
    demand.drained(want, 3)
    demand.fetched([want])
    assert demand.watched == {"a": 3}
    assert demand.take() is None


def test_who_stands_beside_a_delayed_entry_is_soon_left_alone() -> None:
    demand = Demand()
    for number in range(16):
        agent(demand, f"a{number}")
    line = [(want.topic, want.agent) for want in fetch(demand)]
    sizes = []
    while len(line) > 1:
        # Each fetch tells a time for all its groups together, and the delayed entry is a3's.
        demand.due(line)
        fetches = []
        while demand.has_work:
            fetches.append([(want.topic, want.agent) for want in fetch(demand)])
        (line,) = [groups for groups in fetches if ("a3", "a3") in groups]
        sizes.append(len(line))
    assert sizes == [8, 4, 2, 1]


def test_an_agent_that_is_removed_is_forgotten() -> None:
    demand = Demand()
    gone, stays = agent(demand, "a", "t"), agent(demand, "b", "t", "u")
    fetch(demand)
    demand.remove(gone)
    demand.remove(gone)
    assert demand.subscription("t", "a") is None
    demand.changed(["t"])
    assert asked(demand.take() or []) == [("t", "b", 4)]
    demand.remove(stays)
    assert demand.watched == {}
    demand.room(gone)
    assert demand.take() is None


def calls_of_a_change(agents: int) -> int:
    """How many calls of Python functions it takes to hear of a change, fetch for it, and wait again."""
    demand = Demand()
    for number in range(agents):
        agent(demand, f"a{number}")
    while demand.has_work:
        fetch(demand)
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        demand.changed(["a7"])
        wants = fetch(demand)
    finally:
        sys.setprofile(None)
    assert asked(wants) == [("a7", "a7", 4)]
    return calls


def test_a_change_costs_the_same_however_many_other_agents_there_are() -> None:
    assert calls_of_a_change(10) == calls_of_a_change(1000)


def test_an_agent_whose_handler_is_quick_gets_a_quantum_at_a_time() -> None:
    demand = Demand()
    described = AgentOptions(topics=("a",), mailbox=Mailbox(100))
    subscription = Subscription(
        described, name="a", content_type=Any, services=cast("Services", None), on_room=demand.room
    )
    demand.add(subscription)
    lane = subscription.lane
    assert lane.limit == 2

    def handle(seconds: float | None, times: int = 50) -> None:
        for _ in range(times):
            fill(subscription, 1)
            delivery = lane.take()
            assert delivery is not None
            lane.handled(delivery, seconds)
            lane.settled(1, 0.0)

    handle(0.0001, times=1)
    assert lane.limit == 4, "four times what was handled so far"
    handle(0.0001)
    assert lane.limit == QUANTUM
    handle(0.02)
    assert lane.limit == 5
    handle(10.0)
    assert lane.limit == 2
    handle(0.0)
    assert lane.limit == QUANTUM
    fetch(demand, brings={})
    assert lane.limit == 2, "what comes after a pause may be of another kind"
    handle(0.0)
    handle(None)
    assert lane.limit == QUANTUM, "a failure says nothing"


def test_of_large_events_a_lane_holds_as_many_as_fit_into_memory() -> None:
    demand = Demand()
    options = AgentOptions(topics=("large",), mailbox=Mailbox(512), concurrency=8)
    lane = Subscription(
        options, name="large", content_type=Any, services=cast("Services", None), on_room=demand.room
    ).lane
    event: EventEnvelope[Any] = EventEnvelope(topic="large", payload=PayloadBase(content="x"))
    assert lane.limit == 16
    lane.put(Delivery(EntryKey("large", "large", "1"), event, size=16 << 20))
    assert (lane.limit, lane.credit) == (8 + 4, 11)
    lane.put(Delivery(EntryKey("large", "large", "2"), event, size=1 << 30))
    assert lane.limit == 8
    for second in range(400):
        lane.settled(0, float(second))
    assert lane.limit == 16
