"""What is retained: the ring by count and size, the runs by least recent use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from omniactors.events.event import Event
from omniactors.events.history import MAX_CLOSED_RUNS, Histories, Ring


def event(offset: int, *, run_id: str = "A", text: str = "") -> Event:
    return Event(run_id=run_id, event_type="a", offset=offset, data={"text": text})


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 32), st.integers(1, 40))
def test_a_page_is_what_a_list_would_give(size: int, count: int, after: int, limit: int) -> None:
    ring = Ring(size, 10**9)
    for offset in range(1, count + 1):
        ring.append(event(offset))
    kept = list(range(1, count + 1))[-size:]
    assert len(ring) == len(kept)
    assert [found.offset for found in ring.page(after, limit)] == [n for n in kept if n > after][:limit]


def test_large_events_push_out_more_of_the_old_ones_but_the_newest_stays() -> None:
    ring = Ring(100, 10_000)
    for offset in range(1, 6):
        ring.append(event(offset))
    ring.append(event(6, text="x" * 9_000))
    assert [found.offset for found in ring.page(0, 10)] == [5, 6]
    ring.append(event(7, text="x" * 50_000))
    assert [found.offset for found in ring.page(0, 10)] == [7]


def test_a_run_keeps_its_newest_events() -> None:
    histories = Histories(per_run=3, max_runs=10)
    for offset in range(1, 6):
        histories.append(event(offset))
    assert [found.offset for found in histories.of("A")] == [3, 4, 5]
    assert histories.of("unknown") == ()


def test_the_least_recently_used_run_goes_first() -> None:
    histories = Histories(per_run=3, max_runs=2)
    histories.append(event(1, run_id="A"))
    histories.append(event(2, run_id="B"))
    histories.use("A")
    histories.append(event(3, run_id="C"))
    assert [len(histories.of(run)) for run in "ABC"] == [1, 0, 1]
    histories.append(event(4, run_id="A"))
    histories.append(event(5, run_id="D"))
    assert [len(histories.of(run)) for run in "ACD"] == [2, 0, 1]


def test_closed_marks_outlive_the_history_but_are_bounded() -> None:
    histories = Histories(per_run=1, max_runs=1)
    for number in range(MAX_CLOSED_RUNS + 1):
        histories.close(str(number))
    assert not histories.is_closed("0")
    assert histories.is_closed("1")
    assert histories.is_closed(str(MAX_CLOSED_RUNS))


def test_publishing_opens_a_closed_run_again() -> None:
    histories = Histories(per_run=5, max_runs=5)
    histories.append(event(1))
    histories.close("A")
    assert (histories.is_closed("A"), histories.count()[0]) == (True, 0)
    histories.append(event(2))
    assert (histories.is_closed("A"), histories.count()[0]) == (False, 1)
