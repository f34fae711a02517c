"""The redis-server of the tests themselves: it starts, ends and dies as it is told, and says why it does not start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from pathlib import Path


def test_it_keeps_its_port_and_what_was_persisted(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "new", appendonly="always", password="a b/c", unix_socket="s") as server:
        port, pid = server.port, server.pid
        server.command("SET", "a", 1)
        server.kill()
        with pytest.raises(RuntimeError, match="not running"):
            _ = server.pid
        server.start()
        server.restart()
        assert server.command("GET", "a") == b"1"
        assert (server.port, server.url) == (port, f"redis://:a%20b%2Fc@127.0.0.1:{port}/0")
        assert server.pid != pid
        with redis.Redis.from_url(server.unix_url) as client:
            assert client.get("a") == b"1"
        with pytest.raises(RuntimeError, match="runs already"):
            server.start()
    server.stop()


def test_a_paused_one_can_be_stopped(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        server.pause()
        server.resume()
        assert server.command("PING") is True
        server.pause()


def test_one_that_dies_says_why(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, options={"nonsense": "yes"})
    with pytest.raises(RuntimeError, match="nonsense"):
        server.start()
    with pytest.raises(RuntimeError, match="not running"):
        server.pause()
