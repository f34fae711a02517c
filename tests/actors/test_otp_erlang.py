"""A real supervisor of Erlang/OTP, the model and our supervisor go the same way through the same scripts."""

from __future__ import annotations

import os
import random
import shutil

import pytest

from tests.actors.model_driver import compare
from tests.actors.model_erlang import compare_with_model, open_erlang, random_script

ESCRIPT = shutil.which("escript")
SCRIPTS = int(os.environ.get("MODEL_EXAMPLES", "200"))


@pytest.mark.skipif(ESCRIPT is None, reason="Erlang's `escript` is not on PATH (Debian: erlang-base)")
def test_erlang_goes_the_same_way() -> None:
    """Orders of starts and stops, states, counts, answers and exit reasons; the scripts' numbers are their seeds."""
    assert ESCRIPT is not None
    with open_erlang(ESCRIPT) as erlang:
        for seed in range(SCRIPTS):
            setup, script = random_script(random.Random(seed))
            try:
                compare_with_model(erlang, setup, script)
                compare(setup, script)
            except AssertionError as error:
                error.add_note(f"seed {seed}: {setup}, {script}")
                raise
