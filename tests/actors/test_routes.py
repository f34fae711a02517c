"""Routes: which member a message goes to, without any actor."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniactors.actors.routes import ConsistentHash, LeastLoaded, Random, RoundRobin, jump, key_hash


@dataclass
class Member:
    """A member as routes see it."""

    number: int
    load: int = 0
    is_full: bool = False


def team(size: int) -> list[Member]:
    return [Member(number) for number in range(1, size + 1)]


def test_round_robin_takes_turns_and_passes_over_the_full() -> None:
    members, route = team(3), RoundRobin()
    assert [route.choose(None, members).number for _ in range(4)] == [1, 2, 3, 1]
    members[1].is_full = True
    assert [route.choose(None, members).number for _ in range(3)] == [3, 1, 3]
    for member in members:
        member.is_full = True
    assert [route.choose(None, members).number for _ in range(4)] == [1, 2, 3, 1]
    assert [route.choose(None, members[:1]).number for _ in range(2)] == [1, 1]


def test_least_loaded_takes_the_one_with_least_and_turns_among_equals() -> None:
    members, route = team(3), LeastLoaded()
    assert [route.choose(None, members).number for _ in range(4)] == [1, 2, 3, 1]
    members[0].load, members[1].load, members[2].load = 5, 3, 4
    assert [route.choose(None, members).number for _ in range(3)] == [2, 2, 2]


def test_random_passes_over_the_full() -> None:
    members, route = team(4), Random(random.Random(1).randrange)
    seen = Counter(route.choose(None, members).number for _ in range(4000))
    assert all(800 < count < 1200 for count in seen.values())
    members[0].is_full = members[2].is_full = True
    assert {route.choose(None, members).number for _ in range(100)} == {2, 4}
    members[1].is_full = members[3].is_full = True
    assert {route.choose(None, members).number for _ in range(100)} == {1, 2, 3, 4}


# -- consistent hash ------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_keys_are_spread_evenly(size: int, salt: int) -> None:
    """Each member has its n-th part of the keys, within what chance allows: 6 standard deviations."""
    count = 200 * size
    seen = Counter(jump(key_hash(f"{salt}/{number}"), size) for number in range(count))
    assert set(seen) <= set(range(size))
    bound = 6 * 200**0.5
    assert all(abs(seen[bucket] - 200) <= bound for bucket in range(size))


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_few_keys_move_when_the_size_changes(size: int, more: int, salt: int) -> None:
    """From n to n + k members: k in n + k keys, all of them to new members; and the same ones back."""
    route = ConsistentHash(lambda message: message)
    keys = [f"{salt}/{number}" for number in range(2000)]
    before = [route.choose(key, team(size)).number for key in keys]
    after = [route.choose(key, team(size + more)).number for key in keys]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert all(new > size for new in moved)
    share = more / (size + more)
    assert len(moved) <= len(keys) * share + 6 * (len(keys) * share * (1 - share)) ** 0.5
    assert moved


@given(st.integers(2, 12), st.data())
@settings(deadline=None, max_examples=40)
def test_only_the_keys_of_a_missing_member_go_elsewhere(size: int, data: st.DataObject) -> None:
    missing = data.draw(st.integers(1, size))
    route = ConsistentHash(lambda message: message)
    rest = [member for member in team(size) if member.number != missing]
    for number in range(200):
        before = route.choose(number, team(size)).number
        after = route.choose(number, rest).number
        assert after != missing
        # When the last one is missing the team counts as smaller by one, which moves no other key either.
        assert before in {after, missing}


def test_a_team_with_few_left_of_many_still_answers() -> None:
    route = ConsistentHash(lambda message: message)
    assert {route.choose(key, [Member(1), Member(900)]).number for key in range(200)} == {1, 900}


@given(st.one_of(st.text(), st.binary(), st.integers(), st.tuples(st.integers(), st.text())))
def test_a_hash_has_64_bits_and_is_the_same_every_time(key: object) -> None:
    assert key_hash(key) == key_hash(key)
    assert 0 <= key_hash(key) < 2**64


def test_equal_keys_have_equal_hashes_and_text_the_same_one_in_every_process() -> None:
    assert key_hash(1) == key_hash(1.0) == key_hash(True)
    assert key_hash("user-1") == 0x9AAC5A8621EAE188
    assert key_hash(b"user-1") == 0xC462276BEF79850F
    assert key_hash(7) == 0x63CBE1E459320DD7
    with pytest.raises(TypeError):
        key_hash([])  # type: ignore[arg-type]


def test_keys_that_are_equal_in_their_own_way_have_equal_hashes() -> None:
    class Folded(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and self.casefold() == other.casefold()

        def __hash__(self) -> int:
            return hash(self.casefold())

    class Color(StrEnum):
        RED = "red"

    assert Folded("User") == Folded("uSER")
    assert key_hash(Folded("User")) == key_hash(Folded("uSER"))
    assert key_hash(Color.RED) == key_hash("red")
    assert key_hash(memoryview(b"ab")) == key_hash(b"ab")
    assert key_hash(Decimal(1)) == key_hash(Fraction(1)) == key_hash(1)
    assert key_hash((1, "a")) == key_hash((True, "a"))


def test_the_key_is_an_attribute_or_a_function() -> None:
    members = team(10)
    by_name, by_function = ConsistentHash("number"), ConsistentHash(lambda member: member.number)
    for member in team(50):
        assert by_name.choose(member, members) is by_function.choose(member, members)
    with pytest.raises(AttributeError, match="number"):
        by_name.choose("text", members)
