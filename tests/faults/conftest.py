"""A redis-server that a test may kill, and a scene on it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.faults.scene import LEASE, LONG_LEASE, SLOW, open_scene
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.scene import Scene


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tests out, unless they are asked for."""
    left_out = [] if SLOW else [item for item in items if item.get_closest_marker("slow")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of this test alone; what it acknowledged survives its kill."""
    with RedisServer(tmp_path / "redis", appendonly="always") as server:
        yield server


@pytest.fixture
def scene(tmp_path: Path, server: RedisServer) -> Iterator[Scene]:
    """Programs on that server, whose leases do not end while they live."""
    with open_scene(tmp_path / "scene", server.url, lease=LONG_LEASE) as scene:
        yield scene


@pytest.fixture
def brief(tmp_path: Path, server: RedisServer) -> Iterator[Scene]:
    """As `scene`, with leases as short as can be: work is taken over soon."""
    with open_scene(tmp_path / "scene", server.url, lease=LEASE) as scene:
        yield scene


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """The same for a test in every run."""
    return random.Random(request.node.nodeid)
