"""Fault plans: which fault happens when. The n-th time, or by seeded chance; what happened is logged."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omniactors import Actor

Point = Literal["start", "message", "after_message", "stop"]


class InjectedFault(Exception):
    """The crash of a `Crash()` that names no error of its own."""


@dataclass(frozen=True)
class Crash:
    """Raise `error`, an exception or an exception class; None for `InjectedFault`."""

    error: BaseException | type[BaseException] | None = None


@dataclass(frozen=True)
class Delay:
    """Wait `seconds` first, in trio's time."""

    seconds: float


class Hang:
    """Wait until `release()`. `entered` is set when somebody hangs here."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self._gate = trio.Event()

    def release(self) -> None:
        """Let go who hangs here, and hold nobody from now on."""
        self._gate.set()

    async def hold(self) -> None:
        """Hang."""
        self.entered.set()
        await self._gate.wait()

    def __repr__(self) -> str:
        return "Hang()"


@dataclass(frozen=True)
class SwallowCancel:
    """Wait to be cancelled, swallow that, go on for `linger` seconds that nothing can shorten, then as ever."""

    linger: float = 0.0


Action = Crash | Delay | Hang | SwallowCancel


class Rule(Protocol):
    """When to act. A plan counts the occasions of each of its rules, from 1."""

    def applies(self, point: Point, message: object) -> bool:
        """Whether this is an occasion of the rule."""
        ...

    def pick(self, nth: int) -> Action | None:
        """What to do at the n-th occasion."""
        ...


@dataclass(frozen=True)
class Fault:
    """One fault at one point: the `nth` time it is reached, or each time when that is None.

    For messages only those that are an `of` count.
    """

    action: Action
    point: Point
    nth: int | None = 1
    of: type = object

    def applies(self, point: Point, message: object) -> bool:
        """Whether this is an occasion of the rule."""
        return point == self.point and isinstance(message, self.of)

    def pick(self, nth: int) -> Action | None:
        """What to do at the n-th occasion."""
        return self.action if self.nth in (None, nth) else None


@dataclass(frozen=True)
class Chance:
    """A fault by chance. The n-th occasion has the same fate in every run, whatever happens between."""

    seed: str
    actions: Sequence[Action]
    point: Point
    rate: float

    def applies(self, point: Point, _message: object) -> bool:
        """Whether this is an occasion of the rule."""
        return point == self.point

    def pick(self, nth: int) -> Action | None:
        """What to do at the n-th occasion."""
        dice = random.Random(f"{self.seed}:{self.point}:{nth}")  # noqa: S311 -- seeded on purpose
        return dice.choice(self.actions) if dice.random() < self.rate else None


def at_start(action: Action, *, nth: int | None = 1) -> Fault:
    """Before `on_start` of the n-th incarnation, inside its `lifespan`."""
    return Fault(action, "start", nth)


def at_message(action: Action, *, nth: int | None = 1, of: type = object) -> Fault:
    """Before the handler of the n-th message (of that type); a message that crashes here is lost."""
    return Fault(action, "message", nth, of)


def after_message(action: Action, *, nth: int | None = 1, of: type = object) -> Fault:
    """After the handler of the n-th message (of that type), before an asker has its reply."""
    return Fault(action, "after_message", nth, of)


def at_stop(action: Action, *, nth: int | None = 1) -> Fault:
    """Before `on_stop`, the n-th time."""
    return Fault(action, "stop", nth)


@dataclass(frozen=True)
class Injection:
    """What was done, to whom: `nth` counts the occasions of the rule, `message` is None at starts and stops."""

    path: str
    incarnation: int
    point: Point
    nth: int
    action: Action
    message: object = None


class FaultPlan:
    """The faults of one actor, to be given to `faulty`.

    The counts go on over restarts: the second start is the second incarnation. They cover all actors
    that share the plan, as those of a pool do, so give each actor that is counted by itself a plan of
    its own. Faults that meet at one point happen in the order of the plan.
    """

    def __init__(self, *rules: Rule) -> None:
        self._rules = rules
        self._counts = [0] * len(rules)
        self._used: set[int] = set()
        self.log: list[Injection] = []
        """What was injected so far, in order."""

    @classmethod
    def random(
        cls, seed: int | str, *actions: Action, rate: float = 0.1, points: Sequence[Point] = ("message",)
    ) -> FaultPlan:
        """A plan for storms: each time one of the `points` is reached, with probability `rate`, one of the actions.

        The same seed gives the same plan. Raises ValueError without actions.
        """
        if not actions:
            raise ValueError("a random plan needs at least one action")
        return cls(*(Chance(str(seed), actions, point, rate) for point in points))

    @property
    def unused(self) -> list[Fault]:
        """The faults that never happened: a test that expects them tests nothing."""
        return [rule for index, rule in enumerate(self._rules) if isinstance(rule, Fault) and index not in self._used]

    async def strike(self, point: Point, actor: Actor[Any], message: object = None) -> None:
        """Do what the plan says for this moment of this actor; called by `faulty` actors."""
        # Every rule counts the occasion, whatever an earlier one does with it.
        for index, nth, action in self._due(point, message):
            self._used.add(index)
            self.log.append(Injection(actor.ref.path, actor.ref.incarnation, point, nth, action, message))
            await _act(action, f"{point} {nth} of {actor.ref.path}")

    def _due(self, point: Point, message: object) -> list[tuple[int, int, Action]]:
        """What is to be done now: the rule's index, the number of its occasion, the action."""
        due = []
        for index, rule in enumerate(self._rules):
            if rule.applies(point, message):
                self._counts[index] += 1
                action = rule.pick(self._counts[index])
                if action is not None:
                    due.append((index, self._counts[index], action))
        return due


async def _act(action: Action, occasion: str) -> None:
    match action:
        case Crash(error):
            raise InjectedFault(f"injected at {occasion}") if error is None else error
        case Delay(seconds):
            await trio.sleep(seconds)
        case Hang():
            await action.hold()
        case SwallowCancel(linger):
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                # To swallow it is the fault.
                with trio.CancelScope(shield=True):
                    await trio.sleep(linger)
