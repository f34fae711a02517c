"""The table of what is in hand, and what a death means for an event: the rules by which crashes are counted."""

from __future__ import annotations

import os
import tempfile
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniactors.streams.crashes import MAX_CRASHES, SUSPECT_CRASHES, crashes_after
from omniactors.streams.inhand import NO_ROW, TABLE_SIZE, InHand, group_digest, read_begun, read_ticks
from omniactors.streams.settlement import EntryKey

GROUP = group_digest("topic", "agent")


def key(number: int) -> EntryKey:
    return EntryKey("topic", "agent", f"1764500000000-{number}", "consumer")


def names(*numbers: int) -> frozenset[tuple[str, str]]:
    return frozenset((GROUP, key(number).entry_id) for number in numbers)


@pytest.mark.parametrize("is_attached", [False, True])
def test_what_has_begun_and_is_not_done_is_in_the_table(is_attached: bool) -> None:
    in_hand = InHand()
    with tempfile.TemporaryFile() as file:
        if is_attached:
            in_hand.attach(file.fileno())
        rows = [in_hand.begin(key(number)) for number in range(5)]
        in_hand.end(rows[1])
        in_hand.blame(rows[3])
        table = os.pread(file.fileno(), TABLE_SIZE, 0) if is_attached else in_hand.read()
        assert read_begun(table) == names(0, 2, 3, 4)
        assert read_begun(table, only="culprits") == names(3)
        in_hand.detach()
        assert in_hand.begin(key(9)) == rows[1], "a row that is free is used again"
        assert read_begun(in_hand.read()) == names(0, 2, 3, 4, 9)
        in_hand.clear()
        assert read_begun(in_hand.read()) == frozenset()


def test_a_death_while_the_process_is_being_stopped_counts_for_culprits_alone() -> None:
    in_hand = InHand()
    in_hand.begin(key(1))
    in_hand.blame(in_hand.begin(key(2)))
    in_hand.stop()
    assert read_begun(in_hand.read()) == names(2)
    in_hand.clear()
    in_hand.begin(key(3))
    assert read_begun(in_hand.read()) == names(3)


def test_names_of_any_length_and_script_fit() -> None:
    in_hand = InHand()
    keys = [
        EntryKey("t" * 10_000, "a" * 500, f"{2**64 - 1}-{2**64 - 1}"),
        EntryKey("über:日本", "\ud800", "0-1"),
    ]
    for each in keys:
        in_hand.begin(each)
    assert read_begun(in_hand.read()) == frozenset(
        (group_digest(each.topic, each.agent), each.entry_id) for each in keys
    )


def test_a_row_that_was_being_written_is_none() -> None:
    in_hand = InHand()
    row = in_hand.begin(key(1))
    table = bytearray(in_hand.read())
    table[row] = 0
    assert read_begun(bytes(table)) == frozenset()


@pytest.mark.parametrize("table", [b"", b"x" * TABLE_SIZE, InHand().read()[:-1]])
def test_a_table_that_is_none_tells_nothing(table: bytes) -> None:
    assert read_begun(table) is None


def test_more_than_there_is_room_for_is_not_known() -> None:
    in_hand = InHand()
    rows = [in_hand.begin(key(number)) for number in range(4096)]
    assert rows[-1] == NO_ROW
    assert read_begun(in_hand.read()) is None
    for row in rows:
        in_hand.end(row)
    in_hand.blame(NO_ROW)
    in_hand.clear()
    assert read_begun(in_hand.read()) == frozenset()


def test_ticks_are_counted() -> None:
    in_hand = InHand()
    for _ in range(3):
        in_hand.tick()
    assert read_ticks(in_hand.read()) == 3


def test_what_a_forked_child_notes_is_none_of_its_parents() -> None:
    in_hand = InHand()
    with tempfile.TemporaryFile() as file:
        in_hand.attach(file.fileno())
        in_hand.begin(key(1))
        if (child := os.fork()) == 0:
            in_hand.clear()
            in_hand.begin(key(2))
            os._exit(0)
        os.waitpid(child, 0)
        assert read_begun(os.pread(file.fileno(), TABLE_SIZE, 0)) == names(1)


def test_to_note_a_begin_and_an_end_costs_less_than_a_microsecond() -> None:
    in_hand, one = InHand(), key(1)
    best = min(_seconds(in_hand, one) for _ in range(20))
    assert best / 1000 < 5e-6  # on a machine five times slower


def _seconds(in_hand: InHand, one: EntryKey) -> float:
    began = time.perf_counter()
    for _ in range(1000):
        in_hand.end(in_hand.begin(one))
    return time.perf_counter() - began


class TestRule:
    @given(deaths=st.lists(st.sampled_from(["handled", "held", "unknown"]), max_size=50))
    def test_an_event_that_was_never_alone_is_never_put_away(self, deaths: list[str]) -> None:
        crashes = 0
        for death in deaths:
            has_begun = {"handled": True, "held": False, "unknown": None}[death]
            crashes = crashes_after(crashes, has_begun=has_begun, is_alone=False)
        assert crashes <= SUSPECT_CRASHES < MAX_CRASHES

    @pytest.mark.parametrize("has_begun", [True, None])
    def test_an_event_that_ends_every_process_is_put_away(self, has_begun: bool | None) -> None:
        crashes = 0
        for _ in range(MAX_CRASHES):
            crashes = crashes_after(crashes, has_begun=has_begun, is_alone=crashes >= SUSPECT_CRASHES)
        assert crashes == MAX_CRASHES

    def test_what_is_not_known_never_takes_a_count_back(self) -> None:
        assert crashes_after(4, has_begun=None, is_alone=False) == 4
