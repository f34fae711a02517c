"""Scripts for the model and a store: any list of steps, and how it is played.

With `HYPOTHESIS_PROFILE=deep` in the environment the tests look much further than usual.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.streams import model_steps as steps
from tests.streams.model import Model
from tests.streams.model_player import Player
from tests.streams.model_table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.streams.model_subject import Subject

T = TypeVar("T")

IS_DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"

DEEPER = 40
"""How many times as many examples there are then."""

DEDUPE_WINDOW = 150.0
"""Seconds."""

SCRIPT_LIMIT = 120.0
"""Seconds of real time for one script."""


@dataclass(frozen=True)
class Focus:
    """What a script is about. Steps of all kinds on everything at once hardly ever meet.

    `common` are the kinds of steps that come often, among them the ways in which a try ends.
    """

    topics: tuple[str, ...] = ("a",)
    agents: tuple[str, ...] = ("plain",)
    consumers: int = 2
    limits: tuple[int | None, ...] = (None,)
    common: tuple[str, ...] = ()

    def weight(self, kind: str) -> int:
        """How often this comes."""
        return WEIGHTS.get(kind, 1) + (8 if kind in self.common else 0)


WEIGHTS = {"Publish": 8, "Fetch": 16, "Settle": 14, "Claim": 2, "Step": 3, "Release": 3, "Together": 6, "Replay": 2}
"""How often kinds of steps come, beside all others."""

LENGTHS = (1, 3, 8, 15, 20, 20, 25, 25, 30, 30, 35, 35, *((40, 50, 60, 80) if IS_DEEP else ()))
"""Of scripts, in steps."""

FOCI = (
    Focus(),
    Focus(topics=steps.TOPICS, agents=steps.AGENTS, consumers=3, limits=(None, None, 1, 3)),
    Focus(agents=("keyed",), common=("Claim", "Fetch")),
    Focus(agents=("keyed",), limits=(None, None, None, 3), common=("Fetch", "Withdraw", "Release")),
    Focus(agents=("keyed", "plain"), common=("Claim", "Expire", "Stop", "Crash")),
    Focus(agents=("plain", "other"), common=("dead", "Replay", "List", "Purge")),
    Focus(agents=("plain", "keyed"), common=("dead", "Replay", "Claim")),
    Focus(topics=steps.TOPICS, agents=("plain", "other"), common=("delayed", "Step", "retry")),
    Focus(agents=("plain", "other"), common=("named", "Step", "Intrude")),
    Focus(agents=("plain", "other"), limits=(1, 2, 3, None), common=("Pause", "Resume", "Release")),
)

DELAYS = st.sampled_from([0.0, 0.0, steps.SOON, steps.LATER, steps.MUCH_LATER])
PICKS = st.integers(0, 9)
NAMES = st.sampled_from(["x", "y"])
LIMITS = st.sampled_from([None, None, None, 6, 10])
"""Of the streams' lengths."""


def pubs(focus: Focus) -> st.SearchStrategy[steps.Pub]:
    """Publications."""
    topics = st.sampled_from(focus.topics)
    choices = [
        (12, st.builds(steps.Pub, topics)),
        (2 * focus.weight("named"), st.builds(steps.Pub, topics, NAMES, st.booleans(), DELAYS)),
        (focus.weight("delayed"), st.builds(steps.Pub, topics, delay=DELAYS)),
        (focus.weight("delayed"), st.builds(steps.Pub, topics, at=st.integers(-1, 4))),
    ]
    return weighted(choices)


def ends(focus: Focus) -> st.SearchStrategy[steps.End]:
    """Ways in which a try ends."""
    results = st.sampled_from([None, "success", "failed"])
    ttls = st.sampled_from([86_400.0, steps.SOON, steps.MUCH_LATER])
    return weighted(
        [
            (6, st.builds(steps.End)),
            (4, st.builds(steps.End, st.just("done"), results, ttls, pubs=tuples(pubs(focus), 0, 2))),
            (1 + focus.weight("retry"), st.builds(steps.End, st.just("retry"), delay=DELAYS)),
            (1 + focus.weight("dead"), st.builds(steps.End, st.just("dead"), results, pubs=tuples(pubs(focus), 0, 1))),
        ]
    )


def letters(focus: Focus) -> st.SearchStrategy[tuple[steps.Dead, int]]:
    """Filters of dead letters, each with a limit.

    The order of what several agents buried in one call is open, so a limit goes with one agent.
    """
    topics = st.sampled_from(focus.topics)
    one = st.builds(
        steps.Dead,
        topics,
        st.sampled_from(focus.agents),
        st.sampled_from([None, None, "timeout", "rejected"]),
        since=st.sampled_from([None, None, 0, 1]),
        until=st.sampled_from([None, None, 0, 2]),
    )
    every = st.builds(steps.Dead, topics, ids=st.sampled_from([None, (0,), (1, 2), ()]))
    return st.one_of(st.tuples(every, st.just(1000)), st.tuples(one, st.integers(0, 3)))


def script_about(focus: Focus) -> st.SearchStrategy[list[steps.AnyStep]]:
    """Scripts with this focus."""
    topics, agents, slots = (
        st.sampled_from(focus.topics),
        st.sampled_from(focus.agents),
        st.integers(0, focus.consumers - 1),
    )
    asks = st.builds(steps.Ask, topics, agents, st.sampled_from([2, 1, 2, 1, 2, 5, 0]), st.sampled_from(focus.limits))
    picks = st.tuples(PICKS, ends(focus))
    kinds: dict[str, st.SearchStrategy[steps.AnyStep]] = {
        "Publish": st.builds(steps.Publish, tuples(pubs(focus), 1, 6)),
        "Fetch": st.builds(steps.Fetch, slots, tuples(asks, 1, len(focus.agents)), st.sampled_from([100, 100, 0, 1])),
        "Settle": st.builds(steps.Settle, slots, tuples(picks, 1, 4)),
        "Claim": st.builds(steps.Claim, slots, st.sampled_from([100, 1, 2])),
        "Step": st.builds(steps.Step, st.integers(1, 3)),
        "Release": st.builds(steps.Release, slots, tuples(PICKS, 0, 3)),
        "Create": st.builds(steps.Create, tuples(st.tuples(topics, agents), 0, 2)),
        "Intrude": st.builds(steps.Intrude, slots, PICKS, st.none() | ends(focus), st.booleans()),
        "Together": st.builds(
            steps.Together, slots, tuples(pubs(focus), 0, 2), tuples(picks, 0, 3), tuples(PICKS, 0, 2), asks
        ),
        "Withdraw": st.builds(steps.Withdraw, slots),
        "Stop": st.builds(steps.Stop, slots),
        "Crash": st.builds(steps.Crash, slots),
        "Expire": st.builds(steps.Expire, slots),
        "List": letters(focus).map(lambda one: steps.List(*one)),
        "Replay": letters(focus).map(lambda one: steps.Replay(*one)),
        "Purge": letters(focus).map(lambda one: steps.Purge(*one)),
        "Pause": st.builds(steps.Pause, agents),
        "Resume": st.builds(steps.Resume, agents),
        "Restart": st.builds(steps.Restart, st.sampled_from(["stop", "crash"])),
    }
    step = weighted([(focus.weight(name), kind) for name, kind in kinds.items()])
    # A list alone would have five steps on average, and little happens in five.
    steps_ = st.sampled_from(LENGTHS).flatmap(lambda length: st.lists(step, min_size=length, max_size=length))
    supply = st.integers(0, 6).map(
        lambda number: [steps.Publish(tuple(steps.Pub(topic) for topic in focus.topics for _ in range(number)))]
    )
    groups: list[steps.AnyStep] = [
        steps.Create(tuple((topic, agent) for topic in focus.topics for agent in focus.agents))
    ]
    return st.tuples(st.sampled_from([[], groups]), supply, steps_).map(lambda parts: list(chain.from_iterable(parts)))


def weighted(choices: Sequence[tuple[int, st.SearchStrategy[T]]]) -> st.SearchStrategy[T]:
    """One of these, each so often."""
    return st.sampled_from([one for weight, one in choices for _ in range(weight)]).flatmap(lambda one: one)


def tuples(strategy: st.SearchStrategy[T], least: int, most: int) -> st.SearchStrategy[tuple[T, ...]]:
    """Tuples of so many."""
    return st.lists(strategy, min_size=least, max_size=most).map(tuple)


SCRIPTS = st.sampled_from(FOCI).flatmap(script_about)

SHORT_RESULT: list[steps.AnyStep] = [
    steps.Create((("a", "plain"), ("a", "keyed"))),
    steps.Publish((steps.Pub("a"),)),
    steps.Fetch(0, (steps.Ask("a", "plain", 1), steps.Ask("a", "keyed", 1)), 1),
    steps.Settle(0, ((1, steps.End("done", "success")),)),
    steps.Settle(0, ((0, steps.End("done", "success", steps.SOON)),)),
    steps.Step(1),
]
"""Once the short life of one agent's result ended those of all others of the task."""

RELEASED_TWICE: list[steps.AnyStep] = [
    *[steps.Publish((steps.Pub("a"),))] * 4,
    steps.Fetch(1, (steps.Ask("a", "keyed", 2),), 0),
    steps.Together(1, (), (), (0, 0), steps.Ask("a", "keyed", 0)),
    steps.Fetch(0, (steps.Ask("a", "keyed", 2),), 100),
]
"""Once an entry that was named twice in a release opened the gate before the one behind it, which was still held."""


def examples(number: int) -> settings:
    """So many scripts in the suite."""
    return settings(
        max_examples=number * DEEPER if IS_DEEP else number,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


def play(subject: Subject, script: Sequence[steps.AnyStep], limit: int | None) -> None:
    """Play a script in a run of its own."""

    async def main() -> None:
        model = Model(dedupe_window=DEDUPE_WINDOW, stream_limit=limit)
        with trio.fail_after(SCRIPT_LIMIT):
            async with trio.open_nursery() as nursery:
                await Player(Table(subject, model), nursery).play(script)

    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
