"""One subscriber's queue against a model: exact bound, exact counts, losses told in their place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniactors.events.event import Event
from omniactors.events.queue import Loss, Overflow, SubscriberQueue


def event(offset: int) -> Event:
    return Event(event_type="a", offset=offset)


def drain(queue: SubscriberQueue) -> list[int | tuple[int | None, int | None, int]]:
    """What a reader sees: offsets, and (lost, first, last) for a loss."""
    seen: list[int | tuple[int | None, int | None, int]] = []
    while (item := queue.take()) is not None:
        seen.append((item.lost, item.first, item.last) if isinstance(item, Loss) else item.offset)
    return seen


def filled(overflow: Overflow, *, capacity: int, events: int) -> SubscriberQueue:
    queue = SubscriberQueue(capacity, overflow)
    for offset in range(1, events + 1):
        queue.offer(event(offset))
    return queue


def test_drop_newest_keeps_the_first_and_tells_the_rest() -> None:
    queue = filled("drop_newest", capacity=3, events=10)
    assert (queue.queued, queue.dropped) == (3, 7)
    assert drain(queue) == [1, 2, 3, (7, 4, 10)]


def test_a_loss_stands_before_the_next_event_that_is_taken() -> None:
    queue = filled("drop_newest", capacity=2, events=4)
    queue.take()
    queue.offer(event(5))
    assert drain(queue) == [2, (2, 3, 4), 5]


def test_drop_oldest_keeps_the_last() -> None:
    queue = filled("drop_oldest", capacity=3, events=10)
    assert (queue.queued, queue.dropped) == (3, 7)
    assert drain(queue) == [(7, 1, 7), 8, 9, 10]


def test_close_ends_with_what_was_there() -> None:
    queue = filled("close", capacity=2, events=9)
    assert queue.end_reason == "overflow"
    assert drain(queue) == [1, 2, (1, 3, 3)]
    assert (queue.matched, queue.dropped) == (3, 1)


def test_replay_is_exempt_from_the_bound_and_comes_first() -> None:
    queue = filled("drop_newest", capacity=1, events=0)
    queue.offer(event(6))
    queue.replay([event(n) for n in range(3, 6)], loss=Loss(2, 1, 2, "evicted"))
    assert queue.queued == 4
    assert drain(queue) == [(2, 1, 2), 3, 4, 5, 6]


def test_the_end_is_behind_everything_and_only_the_first_counts() -> None:
    queue = filled("drop_newest", capacity=1, events=3)
    queue.end("run-closed")
    queue.end("bus-closed")
    queue.offer(event(4))
    assert queue.end_reason == "run-closed"
    assert drain(queue) == [1, (2, 2, 3)]


def test_a_reader_is_woken_once_for_a_burst() -> None:
    woken = []
    queue = SubscriberQueue(10, "drop_newest")
    queue.wake = lambda: woken.append(queue.queued)
    for offset in range(1, 5):
        queue.offer(event(offset))
    assert woken == [1]
    queue.wake = lambda: woken.append(-1)
    queue.end("bus-closed")
    assert woken == [1, -1]


@pytest.mark.parametrize("capacity", [0, -1, True, 1.5, None])
def test_a_capacity_without_room_is_refused(capacity: Any) -> None:
    with pytest.raises(ValueError, match="capacity must be"):
        SubscriberQueue(capacity, "drop_newest")


def test_an_unknown_overflow_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'drop_newest', 'drop_oldest', 'close', not 'wait'"):
        SubscriberQueue(1, "wait")  # type: ignore[arg-type]


STEPS = st.lists(st.sampled_from(["offer", "offer", "offer", "take", "replay", "end"]), max_size=60)


@given(STEPS, st.integers(1, 4), st.sampled_from(["drop_newest", "drop_oldest", "close"]))
def test_matched_is_delivered_dropped_and_queued_and_every_loss_is_told(
    steps: list[str], capacity: int, overflow: Overflow
) -> None:
    queue = SubscriberQueue(capacity, overflow)
    matched, offsets, told, next_offset = 0, [], 0, 1000
    replayed = 0

    def note(item: Event | Loss) -> None:
        nonlocal told
        if isinstance(item, Loss):
            assert item.lost is not None
            assert item.first is not None
            assert item.lost == item.last - item.first + 1
            told += item.lost
            offsets.append(item.last)
        else:
            offsets.append(item.offset)

    for step in steps:
        if step == "offer":
            matched += queue.end_reason is None
            queue.offer(event(next_offset))
            next_offset += 1
        elif step == "replay" and next_offset == 1000 and replayed < 999:
            replayed += 1
            matched += 1
            queue.replay([event(replayed)])
        elif step == "end":
            queue.end("run-closed")
        elif step == "take" and (item := queue.take()) is not None:
            note(item)
        assert queue.matched == matched == queue.delivered + queue.dropped + queue.queued
        assert queue.queued <= capacity + replayed
    while (item := queue.take()) is not None:
        note(item)
    assert offsets == sorted(set(offsets))
    assert told == queue.dropped
    assert queue.queued == 0
    assert queue.matched == queue.delivered + queue.dropped
