"""What is retained: the ring by count and size, the runs by least recent use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from omniactors.events.event import Event
from omniactors.events.history import MAX_CLOSED_RUNS, MAX_ID, Histories, Ring, approximate_size


def event(offset: int, *, run_id: str = "A", text: str = "") -> Event:
    return Event(run_id=run_id, event_type="a", offset=offset, data={"text": text})


def keep(where: Ring | Histories, *events: Event) -> None:
    for one in events:
        where.append(one, approximate_size(one))


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 32), st.integers(1, 40))
def test_a_page_is_what_a_list_would_give(size: int, count: int, after: int, limit: int) -> None:
    ring = Ring(size, 10**9)
    for offset in range(1, count + 1):
        keep(ring, event(offset))
    kept = list(range(1, count + 1))[-size:]
    assert len(ring) == len(kept)
    assert [found.offset for found in ring.page(after, limit)] == [n for n in kept if n > after][:limit]


def test_large_events_push_out_more_of_the_old_ones_but_the_newest_stays() -> None:
    ring = Ring(100, 10_200)
    for offset in range(1, 6):
        keep(ring, event(offset))
    keep(ring, event(6, text="x" * 9_000))
    assert [found.offset for found in ring.page(0, 10)] == [5, 6]
    keep(ring, event(7, text="x" * 50_000))
    assert [found.offset for found in ring.page(0, 10)] == [7]


def test_a_run_keeps_its_newest_events() -> None:
    histories = Histories(per_run=3, max_runs=10, max_bytes=10**9)
    for offset in range(1, 6):
        keep(histories, event(offset))
    assert [found.offset for found in histories.of("A")] == [3, 4, 5]
    assert histories.of("unknown") == ()


def test_the_least_recently_used_run_goes_first() -> None:
    histories = Histories(per_run=3, max_runs=2, max_bytes=10**9)
    keep(histories, event(1, run_id="A"))
    keep(histories, event(2, run_id="B"))
    histories.use("A")
    keep(histories, event(3, run_id="C"))
    assert [len(histories.of(run)) for run in "ABC"] == [1, 0, 1]
    keep(histories, event(4, run_id="A"))
    keep(histories, event(5, run_id="D"))
    assert [len(histories.of(run)) for run in "ACD"] == [2, 0, 1]


def test_closed_marks_outlive_the_history_but_are_bounded() -> None:
    histories = Histories(per_run=1, max_runs=1, max_bytes=10**9)
    for number in range(MAX_CLOSED_RUNS + 1):
        histories.close(str(number))
    assert not histories.is_closed("0")
    assert histories.is_closed("1")
    assert histories.is_closed(str(MAX_CLOSED_RUNS))


def test_publishing_opens_a_closed_run_again() -> None:
    histories = Histories(per_run=5, max_runs=5, max_bytes=10**9)
    keep(histories, event(1))
    histories.close("A")
    assert histories.is_closed("A")
    keep(histories, event(2))
    assert not histories.is_closed("A")


def test_large_events_of_all_runs_share_a_bound_in_bytes() -> None:
    histories = Histories(per_run=100, max_runs=100, max_bytes=1_000_000)
    for offset in range(1, 1001):
        keep(histories, event(offset, run_id=str(offset % 50), text="x" * (20_000 if offset % 2 else 1)))
    kept = [found for run in range(50) for found in histories.of(str(run))]
    assert sum(map(approximate_size, kept)) < 1_300_000
    assert max(found.offset for found in kept) == 1000
    assert histories.count() <= 50


def test_what_is_nested_counts_too() -> None:
    rows = [{"name": "x" * 1000, "tags": ["y" * 500]} for _ in range(100)]
    assert approximate_size(Event(event_type="a", data={"rows": rows})) > 150_000
    assert approximate_size(Event(event_type="a", data={"n": 1 << 800_000})) > 100_000
    assert approximate_size(Event(event_type="a", data={"many": [0] * 200_000})) > 1 << 30
    assert approximate_size(Event(event_type="a", run_id="x" * 9000)) > 9000


def test_long_ids_of_ended_runs_take_no_room() -> None:
    histories = Histories(per_run=1, max_runs=1, max_bytes=10**9)
    long = "x" * (MAX_ID + 1)
    histories.close(long)
    assert histories.is_closed(long)
    assert not histories.is_closed(long + "y")
    assert long not in histories._closed  # noqa: SLF001 -- what is kept cannot be seen from outside


@given(st.integers(1, 50))
def test_a_page_of_large_events_is_shorter(size: int) -> None:
    ring = Ring(100, 10**9)
    keep(ring, *(event(offset, text="x" * size * 1000) for offset in range(1, 51)))
    page = ring.page(0, 50, max_bytes=100_000)
    assert len(page) == 1 or sum(map(approximate_size, page)) <= 100_000
    assert [found.offset for found in page] == list(range(1, len(page) + 1))
