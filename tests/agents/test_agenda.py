"""When delayed entries are due, as the router remembers it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from omniactors.agents.agenda import SLACK, Agenda

A, B, C = ("t", "a"), ("t", "b"), ("u", "a")


def test_an_empty_agenda_has_nothing_due() -> None:
    agenda = Agenda()
    assert agenda.next_due() == math.inf
    assert agenda.take_due(1e9) == []


def test_the_earliest_line_is_due_first_and_once() -> None:
    agenda = Agenda()
    agenda.note([A, B], 20.0)
    agenda.note([C], 10.0)
    assert agenda.next_due() == 10.0
    assert agenda.take_due(9.9) == []
    assert agenda.take_due(10.0) == [C]
    assert sorted(agenda.take_due(99.0)) == [A, B]
    assert agenda.next_due() == math.inf


def test_what_a_later_fetch_told_of_a_group_counts() -> None:
    agenda = Agenda()
    agenda.note([A, B], 10.0)
    agenda.note([A], 30.0)
    assert agenda.take_due(10.0) == [B]
    agenda.note([A], None)
    assert agenda.next_due() == math.inf


def test_it_stays_small_however_often_it_is_noted() -> None:
    agenda = Agenda()
    for round_ in range(10_000):
        agenda.note([A, B], 1000.0 + round_)
    assert agenda.size <= 2 + SLACK


groups = st.sampled_from([A, B, C])


@given(st.lists(st.tuples(st.sets(groups, min_size=1), st.none() | st.integers(0, 20)), max_size=30))
def test_it_agrees_with_a_dictionary(notes: list[tuple[set[tuple[str, str]], int | None]]) -> None:
    agenda = Agenda()
    plain: dict[tuple[str, str], int] = {}
    for asked, due in notes:
        agenda.note(list(asked), due)
        for group in asked:
            plain.pop(group, None)
            if due is not None:
                plain[group] = due
    assert agenda.next_due() == min(plain.values(), default=math.inf)
    for now in range(21):
        assert sorted(agenda.take_due(now)) == sorted(group for group, due in plain.items() if due == now)
