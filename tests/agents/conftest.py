"""A system on each store: in memory (SQLite), and on a Redis server."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from omniactors import OmniActors, Settings
from omniactors.settings import RedisUrl, SqliteUrl
from tests.redis_server import fresh_prefix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.redis_server import RedisServer


@pytest.fixture(params=["sqlite", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """The settings of a store that several systems may share."""
    if request.param == "sqlite":
        return Settings(backend=SqliteUrl(tmp_path / "omni.db"), grace=5.0)
    server: RedisServer = request.getfixturevalue("redis_server")
    return Settings(backend=RedisUrl(server.url, server.url), prefix=fresh_prefix(), grace=5.0)


@pytest.fixture
def new_system(settings: Settings) -> Callable[..., OmniActors]:
    """Makes systems on one store, as so many processes would have them."""

    def make(**changes: Any) -> OmniActors:
        return OmniActors(settings=replace(settings, **changes))

    return make


@pytest.fixture
def omni(new_system: Callable[..., OmniActors]) -> OmniActors:
    return new_system()
