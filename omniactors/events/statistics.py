"""What a bus tells of itself: plain counts, ready for JSON."""

from __future__ import annotations

from typing import TypedDict


class SubscriberStats(TypedDict):
    """One subscription. `lag` is how many offsets of the bus it is behind."""

    run_id: str | None
    types: list[str] | None
    delivered: int
    dropped: int
    queued: int
    capacity: int
    overflow: str
    lag: int


class BusStats(TypedDict):
    """A bus at one moment.

    `active_runs` are the runs that somebody subscribes to now, and `queue_depths` the unread events
    of each such subscription, by run. `history_runs` are the runs of which events are kept.
    `global_subscribers` are those made by `subscribe_global`; `subscribers` are all, one by one.
    `dropped_events_total` counts what any subscription lost and what was lost on the way from other
    threads (`lost_from_threads`). `head` is the newest offset, `first` the oldest one kept.
    """

    active_runs: int
    history_runs: int
    global_subscribers: int
    published_total: int
    dropped_events_total: int
    lost_from_threads: int
    queue_depths: dict[str, list[int]]
    subscribers: list[SubscriberStats]
    head: int
    first: int
    epoch: str
