"""The model of `supervisor.erl` and our supervisor agree on any script of requests, ends and clock steps.

`MODEL_EXAMPLES=20000 pytest tests/actors/test_otp_model.py` looks further than the suite does.
"""

from __future__ import annotations

import os
from itertools import chain

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.actors.model import Advance, Delete, End, Plan, Restart, Setup, Start, Step, Stop
from tests.actors.model_driver import compare

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "250"))

IDS = st.sampled_from(["c", "a", "d", "b"])
PLANS = st.lists(st.sampled_from(["ok", "fail", "fail", "ignore"]), max_size=3).map(tuple)
RESTART_TYPES = st.sampled_from(["permanent", "permanent", "transient", "temporary"])
SECONDS = st.sampled_from([0.5, 1.0, 2.0, 4.0, 5.0, 6.0])

SETUPS = st.builds(
    Setup,
    strategy=st.sampled_from(["one_for_one", "one_for_all", "rest_for_one", "dynamic"]),
    restarts=st.integers(0, 4),
    backoff=st.sampled_from([0.0, 1.0, 7.0]),
)
STARTS = st.builds(Start, IDS, RESTART_TYPES, PLANS)
ENDS = st.builds(End, IDS, st.sampled_from(["normal", "shutdown", "crash", "crash"]))
STEPS: st.SearchStrategy[Step] = st.one_of(
    STARTS,
    STARTS,
    ENDS,
    ENDS,
    st.builds(Stop, IDS),
    st.builds(Restart, IDS),
    st.builds(Delete, IDS),
    st.builds(Plan, IDS, PLANS),
    st.builds(Advance, SECONDS),
)
TROUBLES: st.SearchStrategy[list[Step]] = st.one_of(
    STEPS.map(lambda step: [step]),
    # A group restart that fails midway, and somebody who comes in between.
    st.builds(
        lambda failing, plan, ending, step: [Plan(failing, plan), ending, Advance(1.0), step, Advance(6.0)],
        IDS,
        PLANS,
        st.builds(End, IDS, st.just("crash")),
        STEPS,
    ),
)
SIGNIFICANT_STARTS = st.builds(Start, IDS, st.sampled_from(["transient", "temporary"]), PLANS, st.booleans())


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(SETUPS, st.lists(STARTS, max_size=4), st.lists(TROUBLES, max_size=15))
def test_any_script_goes_as_in_the_model(setup: Setup, starts: list[Step], steps: list[list[Step]]) -> None:
    """Children, states, counts, order of starts and stops, notices, answers and giving up are the same."""
    compare(setup, starts + list(chain.from_iterable(steps)))


@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.builds(
        Setup,
        strategy=st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]),
        restarts=st.integers(1, 4),
        backoff=st.sampled_from([0.0, 1.0]),
        auto_shutdown=st.sampled_from(["any_significant", "all_significant"]),
    ),
    st.lists(SIGNIFICANT_STARTS, max_size=4),
    st.lists(STEPS, max_size=20),
)
def test_significant_children_end_it_as_in_the_model(setup: Setup, starts: list[Step], steps: list[Step]) -> None:
    """The same with automatic shutdown."""
    compare(setup, starts + steps)
