"""The checker finds what it is for: each wrong history is told, and the right ones pass."""

from __future__ import annotations

import pytest

from tests.faults.checker import Fault, Kind, Record, check, disorder


def history(*facts: tuple[Kind, str, str]) -> list[Record]:
    """Records of (kind, process, id), one second apart."""
    return [Record(float(at), process, kind, id) for at, (kind, process, id) in enumerate(facts)]


GOOD: list[tuple[Kind, str, str]] = [
    ("invoke", "p", "a"),
    ("ok", "p", "a"),
    ("start", "w1", "a"),
    ("done", "w1", "a"),
    ("commit", "w1", "a"),
    ("result", "test", "a"),
]


def test_a_history_in_which_nothing_happened_passes() -> None:
    report = check(history(*GOOD))
    report.verify()
    assert report.acknowledged == {"a"}
    assert not report.lost | report.duplicated


def test_what_was_acknowledged_and_has_no_end_is_lost_even_if_a_handler_saw_it() -> None:
    report = check(history(*GOOD[:4]))
    assert report.lost == {"a"}
    with pytest.raises(AssertionError, match="acknowledged and lost: a"):
        report.verify()


def test_one_lost_task_among_many_is_found() -> None:
    good = [(kind, process, f"{id}{number}") for number in range(100) for kind, process, id in GOOD]
    report = check(history(*(fact for fact in good if fact != ("result", "test", "a57"))))
    with pytest.raises(AssertionError, match="acknowledged and lost: a57"):
        report.verify()


def test_a_flush_explains_what_was_acknowledged_before_it_and_nothing_later() -> None:
    early, late = history(*GOOD[:2]), history(("invoke", "p", "b"), ("ok", "p", "b"))
    late = [Record(record.at + 10, record.process, record.kind, record.id) for record in late]
    report = check(early + late, [Fault("flush", 5.0, 5.1)])
    assert report.forgotten == {"a"}
    assert report.lost == {"b"}


def test_a_killed_publisher_leaves_an_unknown_outcome() -> None:
    report = check(history(("invoke", "p", "a"), ("invoke", "p", "b"), ("start", "w", "b"), ("result", "t", "b")))
    assert report.unknown == {"a", "b"}
    assert report.recovered == {"b"}
    report.verify()


def test_an_unknown_outcome_that_is_repeated_and_acknowledged_is_known() -> None:
    report = check(history(("invoke", "p", "a"), ("unknown", "p", "a"), *GOOD))
    assert report.unknown == frozenset()
    report.verify()


def test_a_publish_that_surely_failed_must_not_be_handled() -> None:
    report = check(history(("invoke", "p", "a"), ("fail", "p", "a"), ("start", "w", "a")))
    assert report.unexpected == {"a"}
    with pytest.raises(AssertionError, match="never published: a"):
        report.verify()


def test_a_task_out_of_nowhere_is_unexpected() -> None:
    assert check(history(("start", "w", "ghost"))).unexpected == {"ghost"}


AGAIN: list[tuple[Kind, str, str]] = [*GOOD[:3], ("start", "w2", "a"), ("result", "test", "a")]


def test_a_repetition_without_a_fault_is_told() -> None:
    with pytest.raises(AssertionError, match="repeated without cause"):
        check(history(*AGAIN)).verify()


@pytest.mark.parametrize(
    ("fault", "is_explained"),
    [
        (Fault("kill", 2.5, 2.5, "w1"), True),
        (Fault("kill", 2.5, 2.5, "w2"), False),
        (Fault("kill", 1.5, 1.5, "w1"), False),
        (Fault("kill", 3.5, 3.5, "w1"), False),
        (Fault("suspend", 1.0, 9.0, "w1"), True),
        (Fault("store down", 2.5, 2.6), True),
    ],
)
def test_a_fault_explains_a_repetition_when_it_befell_the_first_owner_in_between(
    fault: Fault, *, is_explained: bool
) -> None:
    assert (not check(history(*AGAIN), [fault]).unexplained) is is_explained


def test_a_lease_that_ended_explains_a_repetition_of_what_its_process_had() -> None:
    check(history(*AGAIN, ("lapse", "w1", ""))).verify()
    with pytest.raises(AssertionError, match="repeated without cause"):
        check(history(*AGAIN, ("lapse", "w3", ""))).verify()


def test_what_was_settled_is_never_repeated_whatever_was_killed() -> None:
    facts: list[tuple[Kind, str, str]] = [*GOOD[:5], ("start", "w2", "a"), GOOD[5]]
    report = check(history(*facts), [Fault("kill", 3.0, 9.0, None), Fault("suspend", 1.0, 9.0, "w1")])
    assert [repetition.is_settled for repetition in report.unexplained] == [True]


def test_who_slept_may_begin_what_others_have_settled() -> None:
    facts: list[tuple[Kind, str, str]] = [*GOOD[:5], ("start", "w2", "a"), ("late", "w2", "a"), GOOD[5]]
    check(history(*facts), [Fault("suspend", 1.0, 5.5, "w2")]).verify()
    with pytest.raises(AssertionError, match="repeated without cause"):
        check(history(*facts), [Fault("suspend", 1.0, 4.5, "w2")]).verify()


def test_what_a_destroyed_group_had_in_hand_may_be_begun_again_but_is_committed_once() -> None:
    facts: list[tuple[Kind, str, str]] = [*GOOD[:5], ("start", "w", "a"), ("late", "w", "a"), GOOD[5]]
    check(history(*facts), [Fault("regroup", 2.5, 2.6)]).verify()
    with pytest.raises(AssertionError, match="committed twice"):
        check(history(*facts, ("commit", "w", "a")), [Fault("regroup", 2.5, 2.6)]).verify()


def test_only_a_flush_explains_a_second_commit() -> None:
    twice: list[tuple[Kind, str, str]] = [*GOOD[:5], ("commit", "w2", "a"), GOOD[5]]
    assert check(history(*twice), [Fault("kill", 0.0, 9.0, None)]).committed_twice == {"a"}
    assert check(history(*twice), [Fault("flush", 4.5, 4.6)]).committed_twice == frozenset()


def test_a_dead_letter_is_no_loss_but_must_be_explained() -> None:
    report = check(history(*GOOD[:3], ("dead", "w1", "a")))
    assert report.lost == frozenset()
    with pytest.raises(AssertionError, match="dead without a fault"):
        report.verify()


def test_order_per_key() -> None:
    right = history(("start", "w", "a"), ("done", "w", "a"), ("start", "w", "b"), ("done", "w", "b"))
    assert disorder(right, {"k": ["a", "b"]}) == []
    assert disorder(right, {"k": ["b", "a"]}) == ["k: a was begun before b"]
    overlapping = history(("start", "w", "a"), ("start", "w", "b"), ("done", "w", "a"), ("done", "w", "b"))
    assert disorder(overlapping, {"k": ["a", "b"]}) == ["k: b was begun while a was at work"]
    assert disorder(overlapping, {"k": ["a"], "other": ["b"]}) == []
