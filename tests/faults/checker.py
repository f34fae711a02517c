"""The checker: what a history of publishes and handlings says about losses and repetitions.

The words are those of Jepsen's total-queue checker: attempted, acknowledged, lost, unexpected,
recovered, duplicated. A history is made of records, each a fact that one process wrote down at the
moment it knew it, and of faults, which the test caused. Times are seconds of the machine's
monotonic clock, which all its processes share.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Kind = Literal["invoke", "ok", "fail", "unknown", "start", "done", "commit", "late", "dead", "lapse", "result"]
"""A publisher's invoke, and how it ended: `ok` acknowledged, `fail` surely not published, `unknown`.
A handler's start and done; what became of its settlement: `commit`, `late` or `dead`. A `lapse`: the
process says that its lease has ended. A `result` that somebody read at the end."""

FaultKind = Literal["kill", "suspend", "store down", "link", "flush", "regroup", "lapse"]

KINDS: tuple[Kind, ...] = get_args(Kind)

LAPSE = 5.0
"""Seconds after the end of its lease within which a process notices it."""

FORGETTING = frozenset({"flush"})
"""Faults after which the store knows nothing of what it had acknowledged."""

STALE = frozenset({"suspend", "lapse", "link", "store down"})
"""Faults behind which a process may still hold, and begin, what others have taken over and done."""

REPEATING = frozenset({"flush", "regroup"})
"""Faults that make the store deliver again what is in somebody's hands, and may be settled in the meantime."""


@dataclass(frozen=True, slots=True)
class Record:
    """What `process` did with the task `id` at the time `at`."""

    at: float
    process: str
    kind: Kind
    id: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What the test did, from `since` to `until`, to one process, or to all of them when it is None."""

    kind: FaultKind
    since: float
    until: float
    process: str | None = None

    def touches(self, process: str, since: float, until: float) -> bool:
        """Whether it befell that process in that time."""
        return self.process in {None, process} and self.since <= until and since <= self.until


@dataclass(frozen=True, slots=True)
class Repetition:
    """A task that was begun again: `earlier` by one process at `since`, then by `later` at `until`.

    `is_settled` says that its end had been written by then. `cause` is the fault that explains it.
    """

    id: str
    earlier: str
    later: str
    since: float
    until: float
    is_settled: bool
    cause: Fault | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a history says. Sets are of task ids.

    `lost` was acknowledged and has no end, `forgotten` is the part of that which a flush explains.
    `unexpected` was handled although nobody published it, or its publish surely failed. `recovered`
    is the part of `unknown` that was handled. `committed_twice` has two ends.
    """

    attempted: frozenset[str]
    acknowledged: frozenset[str]
    unknown: frozenset[str]
    seen: frozenset[str]
    ended: frozenset[str]
    dead: frozenset[str]
    lost: frozenset[str]
    forgotten: frozenset[str]
    unexpected: frozenset[str]
    recovered: frozenset[str]
    committed_twice: frozenset[str]
    repetitions: tuple[Repetition, ...] = field(repr=False)

    @property
    def unexplained(self) -> tuple[Repetition, ...]:
        """Repetitions without a cause."""
        return tuple(repetition for repetition in self.repetitions if repetition.cause is None)

    @property
    def duplicated(self) -> frozenset[str]:
        """The tasks that were begun more than once."""
        return frozenset(repetition.id for repetition in self.repetitions)

    def summary(self) -> str:
        """One line of numbers."""
        causes = Counter(repetition.cause.kind if repetition.cause else "NONE" for repetition in self.repetitions)
        told = ", ".join(f"{count} by {cause}" for cause, count in sorted(causes.items())) or "none"
        return (
            f"attempted {len(self.attempted)}, acknowledged {len(self.acknowledged)}, ended {len(self.ended)}, "
            f"lost {len(self.lost)}, forgotten {len(self.forgotten)}, unknown {len(self.unknown)} "
            f"(recovered {len(self.recovered)}), unexpected {len(self.unexpected)}, dead {len(self.dead)}, "
            f"committed twice {len(self.committed_twice)}, repeated {len(self.repetitions)}: {told}"
        )

    def verify(self) -> None:
        """Raises AssertionError, with the facts, for everything that the promises exclude."""
        assert not self.lost, f"acknowledged and lost: {_few(self.lost)}; {self.summary()}"
        assert not self.unexpected, f"handled and never published: {_few(self.unexpected)}; {self.summary()}"
        assert not self.committed_twice, f"committed twice: {_few(self.committed_twice)}; {self.summary()}"
        assert not self.unexplained, f"repeated without cause: {self.unexplained[:5]}; {self.summary()}"
        assert not self.dead, f"dead without a fault of the handler: {_few(self.dead)}; {self.summary()}"


def check(records: Iterable[Record], faults: Sequence[Fault] = ()) -> Report:
    """What the history says; `records` in any order.

    A task that was never attempted counts as unexpected when a handler began it. A publish that has
    no end, since its process was killed, is unknown.
    """
    records = list(records)
    lapses = [Fault("lapse", it.at - LAPSE, it.at, it.process) for it in records if it.kind == "lapse"]
    faults = [*faults, *lapses]
    by_kind: dict[Kind, dict[str, list[Record]]] = {kind: defaultdict(list) for kind in KINDS}
    for record in sorted(records, key=lambda record: record.at):
        by_kind[record.kind][record.id].append(record)
    ids = {kind: frozenset(found) for kind, found in by_kind.items()}
    ended = ids["result"] | ids["dead"]
    missing = ids["ok"] - ended
    forgotten = frozenset(id for id in missing if _is_forgotten(by_kind["ok"][id][0].at, faults))
    open_calls = frozenset(id for id in ids["invoke"] if _is_open(id, by_kind))
    unknown = (ids["unknown"] | open_calls) - ids["ok"]
    commits = by_kind["commit"]
    return Report(
        attempted=ids["invoke"],
        acknowledged=ids["ok"],
        unknown=unknown,
        seen=ids["start"],
        ended=ended,
        dead=ids["dead"],
        lost=missing - forgotten,
        forgotten=forgotten,
        unexpected=ids["start"] - ids["ok"] - unknown,
        recovered=unknown & ids["start"],
        committed_twice=frozenset(
            id for id, found in commits.items() if len(found) > 1 and not _is_forgotten(found[0].at, faults)
        ),
        repetitions=tuple(_repetitions(by_kind["start"], commits, faults)),
    )


def disorder(records: Iterable[Record], published: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with the order, in sentences; `published` gives the ids of each key in the order of their publish.

    Right is: the first handlings of a key come in the order of publication, and no two tasks of it
    are at work at once.
    """
    starts: dict[str, list[Record]] = defaultdict(list)
    ends: dict[str, list[float]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.at):
        if record.kind == "start":
            starts[record.id].append(record)
        elif record.kind == "done":
            ends[record.id].append(record.at)
    wrong = []
    for key, ids in published.items():
        handled = [id for id in ids if starts[id]]
        for earlier, later in itertools.pairwise(handled):
            first, second = starts[earlier][0].at, starts[later][0].at
            end = next((at for at in ends[earlier] if at >= first), None)
            if second < first:
                wrong.append(f"{key}: {later} was begun before {earlier}")
            elif end is not None and second < end:
                wrong.append(f"{key}: {later} was begun while {earlier} was at work")
    return wrong


def _is_open(id: str, by_kind: Mapping[Kind, Mapping[str, list[Record]]]) -> bool:
    """Whether a publish of the task was begun of which no end is known."""
    ends = sum(len(by_kind[kind].get(id, ())) for kind in ("ok", "fail", "unknown"))
    return len(by_kind["invoke"][id]) > ends


def _is_forgotten(at: float, faults: Sequence[Fault]) -> bool:
    """Whether the store was made to forget after that moment."""
    return any(fault.kind in FORGETTING and at <= fault.until for fault in faults)


def _repetitions(
    starts: Mapping[str, list[Record]], commits: Mapping[str, list[Record]], faults: Sequence[Fault]
) -> Iterable[Repetition]:
    for id, begun in starts.items():
        for earlier, later in itertools.pairwise(begun):
            is_settled = any(commit.at < later.at for commit in commits.get(id, ()))
            cause = next((fault for fault in faults if _explains(fault, earlier, later, is_settled=is_settled)), None)
            yield Repetition(
                id=id,
                earlier=earlier.process,
                later=later.process,
                since=earlier.at,
                until=later.at,
                is_settled=is_settled,
                cause=cause,
            )


def _explains(fault: Fault, earlier: Record, later: Record, *, is_settled: bool) -> bool:
    """Whether the fault is why the task was begun again.

    Either it befell the first owner in between, or the second one has just come out of it.
    """
    if fault.kind in STALE and fault.touches(later.process, later.at, later.at):
        return True
    return (fault.kind in REPEATING or not is_settled) and fault.touches(earlier.process, earlier.at, later.at)


def _few(ids: frozenset[str]) -> str:
    some = sorted(ids)[:5]
    return f"{', '.join(some)}{' ...' if len(ids) > len(some) else ''} ({len(ids)})"
