"""Tests of the streams; the contract's asserts are told in full, as a test module's are."""

import pytest

pytest.register_assert_rewrite("tests.streams.contract")
