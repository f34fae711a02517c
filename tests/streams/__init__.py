"""Tests of the streams; the contract's asserts are told in full, as a test module's are."""

import pytest

for part in ("", "_admin", "_delivery", "_kit", "_outcomes", "_order", "_replay", "_shared"):
    pytest.register_assert_rewrite(f"tests.streams.contract{part}")
