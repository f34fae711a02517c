"""The contract of backends, over Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from omniactors.streams.redis.backend import RedisBackend
from tests.redis_server import RedisServer, fresh_prefix
from tests.streams.contract import BackendContract, SharedContract, backend, other

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["backend", "other"]


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), appendonly="everysec") as server:
        yield server


class RedisStore:
    def __init__(self, url: str) -> None:
        self._url = url
        self._prefix = fresh_prefix()

    def open(self, *, stream_limit: int | None = None) -> RedisBackend:
        return RedisBackend(self._url, prefix=self._prefix, lease=2.0, stream_limit=stream_limit)


class TestRedis(BackendContract, SharedContract):
    @pytest.fixture
    def store(self, redis_server: RedisServer) -> RedisStore:
        return RedisStore(redis_server.url)
