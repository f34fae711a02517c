"""What every test has: no setting of the developer's own reaches it."""

from __future__ import annotations

import os

import pytest

from tests.redis_server import redis_server  # noqa: F401 -- a fixture, for every test that names it

SETTINGS = ("STORAGE_BACKEND", "REDIS_URL", "JSON_STORAGE_DIR")


@pytest.fixture(autouse=True)
def _no_foreign_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the settings of the shell in which the tests run."""
    for name in os.environ:
        if name.startswith("OMNIACTORS_") or name in SETTINGS:
            monkeypatch.delenv(name)
