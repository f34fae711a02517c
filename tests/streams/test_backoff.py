"""The backoff rule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniactors.backoff import Backoff

shares = st.floats(0, 1)
attempts = st.integers(1, 10**6)


def backoffs() -> st.SearchStrategy[Backoff]:
    seconds = st.floats(0, 1e6)
    return st.builds(Backoff, initial=seconds, factor=st.floats(1, 100), maximum=seconds, jitter=shares)


def test_delays_double_up_to_the_maximum() -> None:
    backoff = Backoff(initial=1, factor=2, maximum=5, jitter=0)
    assert [backoff.delay(attempt, 0.7) for attempt in (1, 2, 3, 4, 5)] == [1, 2, 4, 5, 5]


def test_the_jitter_takes_away_a_share() -> None:
    backoff = Backoff(initial=8, jitter=0.5)
    assert backoff.delay(1, 0) == 8
    assert backoff.delay(1, 0.5) == 6
    assert Backoff(initial=8, jitter=1).delay(1, 0.75) == 2


def test_a_number_beyond_all_floats_is_the_maximum() -> None:
    assert Backoff(initial=1, factor=10, maximum=60, jitter=0).delay(10**6, 0) == 60


@given(backoffs(), attempts, st.floats(0, 1, exclude_max=True))
def test_a_delay_lies_between_its_certain_share_and_the_maximum(backoff: Backoff, attempt: int, chance: float) -> None:
    delay = backoff.delay(attempt, chance)
    longest = backoff.delay(attempt, 0)
    assert 0 <= delay <= longest <= backoff.maximum
    assert delay >= longest * (1 - backoff.jitter) * (1 - 1e-9)


@given(backoffs(), attempts, shares)
def test_delays_never_shrink_with_the_attempts(backoff: Backoff, attempt: int, chance: float) -> None:
    assert backoff.delay(attempt, chance) <= backoff.delay(attempt + 1, chance)


@pytest.mark.parametrize("name", ["initial", "maximum", "factor", "jitter", "reset_after"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_value_without_meaning_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Backoff(**{name: value})


def test_bounds_of_factor_and_jitter() -> None:
    with pytest.raises(ValueError, match="factor"):
        Backoff(factor=0.9)
    with pytest.raises(ValueError, match="jitter"):
        Backoff(jitter=1.1)
