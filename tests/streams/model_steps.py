"""The steps of a script that is played on the model and on a store: plain values, so that they shrink and print.

Where a step names something by a number (an entry in hand, a dead letter), that is taken modulo how
many there are; a step that has nothing to work on does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TOPICS = ("a", "b")
AGENTS = ("plain", "other", "keyed")
ORDERED = "keyed"
"""The agent whose events have ordering keys."""

TICK = 60.0
"""Seconds. Delays end between two ticks and the clock steps by whole ones, so that no store is asked on the edge."""

SOON, LATER, MUCH_LATER = 30.0, 90.0, 150.0


@dataclass(frozen=True)
class Pub:
    """A publication; `name` None is an id of its own, `at` a number of ticks since the beginning (and a half)."""

    topic: str
    name: str | None = None
    dedupe: bool = True
    delay: float = 0.0
    at: int | None = None


@dataclass(frozen=True)
class Publish:
    """One call."""

    pubs: tuple[Pub, ...]


@dataclass(frozen=True)
class Create:
    """Groups, as (topic, agent)."""

    groups: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Ask:
    """A want."""

    topic: str
    agent: str
    credit: int
    limit: int | None = None


@dataclass(frozen=True)
class Fetch:
    """Consumer number `slot` fetches, and claims at once as `Claim` does; it begins to serve when it does not."""

    slot: int
    asks: tuple[Ask, ...]
    claims: int = 0


@dataclass(frozen=True)
class Claim:
    """Claim the first `count` of what the consumer fetched from ordered groups and has not claimed."""

    slot: int
    count: int


@dataclass(frozen=True)
class End:
    """How a try ends. `result` is a status or None; `ttl` and `delay` are seconds."""

    kind: Literal["done", "retry", "dead"] = "done"
    result: Literal["success", "failed"] | None = None
    ttl: float = 86_400.0
    delay: float = 0.0
    pubs: tuple[Pub, ...] = ()


@dataclass(frozen=True)
class Settle:
    """Settle some of what the consumer has in hand, in one call."""

    slot: int
    picks: tuple[tuple[int, End], ...]


@dataclass(frozen=True)
class Intrude:
    """Settle or release, as this consumer, what was in anybody's hands once; `pick` counts back.

    With `is_forged` it is what this one has in hand itself, but named as if it were another one's.
    """

    slot: int
    pick: int
    end: End | None
    is_forged: bool = False


@dataclass(frozen=True)
class Release:
    """Give back some of what the consumer has in hand; all of it when there are no picks."""

    slot: int
    picks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Together:
    """The consumer publishes, settles, releases and fetches at one time."""

    slot: int
    pubs: tuple[Pub, ...]
    picks: tuple[tuple[int, End], ...]
    releases: tuple[int, ...]
    ask: Ask


@dataclass(frozen=True)
class Withdraw:
    """The consumer takes no more of its ordered groups."""

    slot: int


@dataclass(frozen=True)
class Stop:
    """The consumer ends in order."""

    slot: int


@dataclass(frozen=True)
class Crash:
    """The consumer does nothing any more, and holds on to all it has."""

    slot: int


@dataclass(frozen=True)
class Expire:
    """The consumer is taken for dead, and its work is taken over."""

    slot: int


@dataclass(frozen=True)
class Step:
    """The clock goes on by so many ticks."""

    ticks: int


@dataclass(frozen=True)
class Dead:
    """Which dead letters; `ids` names them by number, `minutes` those that failed in the first so many ticks."""

    topic: str
    agent: str | None = None
    reason: Literal["timeout", "rejected"] | None = None
    ids: tuple[int, ...] | None = None
    since: int | None = None
    until: int | None = None


@dataclass(frozen=True)
class List:
    """The newest of these dead letters."""

    dead: Dead
    limit: int


@dataclass(frozen=True)
class Replay:
    """Give the oldest of these dead letters back."""

    dead: Dead
    limit: int


@dataclass(frozen=True)
class Purge:
    """Delete the oldest of these dead letters."""

    dead: Dead
    limit: int


@dataclass(frozen=True)
class Pause:
    """Nobody takes anything for this agent."""

    agent: str


@dataclass(frozen=True)
class Resume:
    """The end of a pause."""

    agent: str


@dataclass(frozen=True)
class Restart:
    """All consumers end in order, or die, and the store begins again."""

    how: Literal["stop", "crash"]


AnyStep = (
    Publish
    | Create
    | Fetch
    | Claim
    | Settle
    | Intrude
    | Release
    | Together
    | Withdraw
    | Stop
    | Crash
    | Expire
    | Step
    | List
    | Replay
    | Purge
    | Pause
    | Resume
    | Restart
)
