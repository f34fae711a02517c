"""The lease: a companion process says every few seconds that this consumer lives, and gives its work back when not.

A busy interpreter must not look like a dead process, so this one does not renew the lease itself. Where
no companion can be started a thread does it, which a handler that keeps the interpreter's lock stops.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

import trio
from redis.backoff import NoBackoff
from redis.retry import Retry

from omniactors.backoff import Backoff
from omniactors.streams.crashes import SUSPECT_CRASHES
from omniactors.streams.redis import companion
from omniactors.streams.redis.address import codec, read_address, read_tls_options
from omniactors.streams.redis.scripts import script

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from omniactors.streams.inhand import InHand
    from omniactors.streams.redis.companion import Plan
    from omniactors.streams.redis.keys import Keys

logger = logging.getLogger("omniactors.streams")

AGAIN: Final = Backoff(initial=0.05, maximum=5.0)
"""Between two companions."""

FAILED_STARTS: Final = 3
"""So many companions in a row that never renewed the lease, and a thread takes their place."""

PATIENCE: Final = 1.0
"""Seconds that a companion has to end when it is told to."""

RENEW: Final = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
-- After a first write a script may go on writing when memory is full.
redis.call('DEL', KEYS[2] .. ARGV[1])
redis.call('SET', KEYS[2] .. ARGV[1], '1', 'PX', ARGV[2])
return 1
"""


class Lease:
    """The lease of one consumer at a time, renewed three times as often as its `seconds` ask for.

    `on_lost(consumer)` is called in the run that keeps it.
    """

    def __init__(self, url: str, seconds: float, keys: Keys, in_hand: InHand) -> None:
        self.seconds = seconds
        self.consumer = ""
        self._url = url
        self._keys = keys
        self._in_hand = in_hand
        self._companion: Companion | None = None
        self._is_over = False
        self._renewed = self._steady_since = 0.0

    @property
    def is_steady(self) -> bool:
        """Whether our own lease was renewed without a gap lately, and for long enough.

        After an outage of the server all leases have ended, and those of the living are renewed one
        after another: who judges at once takes over from the living.
        """
        now = time.monotonic()
        return now - self._renewed < self.seconds * 2 / 3 and now - self._steady_since > self.seconds * 2 / 3

    def enter(self, consumer: str) -> None:
        """Keep it for this consumer from now on."""
        self.consumer = consumer
        self._is_over = False
        self._renewed = self._steady_since = time.monotonic()
        if self._companion is not None:
            self._companion.say(consumer)

    async def keep(
        self, on_lost: Callable[[str], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep it until `end`; cancelled before that, a companion that runs goes on with it.

        Started when a companion is: from then on whatever happens to this process does not matter.
        """
        failures, interpreter, is_started = 0, find_interpreter(), False
        while interpreter is not None and failures < FAILED_STARTS:
            failures += 1
            process = Companion(interpreter, self._plan(is_first=not is_started), self._in_hand)
            try:
                await process.open()
            except OSError as error:
                logger.warning("a companion process could not be started: %s", error)
            else:
                if not is_started:
                    task_status.started()
                is_started = True
                if await self._follow(process, on_lost):
                    failures = 0
            if self._is_over:
                return
            logger.warning("no companion process holds the lease of %s; another is started", self.consumer)
            await trio.sleep(AGAIN.delay(max(failures, 1), 0.0))
        logger.warning(
            "no companion process runs, so a thread renews the lease: a handler that keeps the interpreter's lock for "
            "longer than %g s loses it",
            self.seconds,
        )
        if not is_started:
            task_status.started()
        await self._keep_by_thread(on_lost)

    async def end(self, *, is_left: bool) -> None:
        """End it with its consumer; one that could not leave has its work given back by the companion."""
        self._is_over = True
        running, self._companion = self._companion, None
        if running is not None:
            await running.end("done" if is_left else "")

    async def _follow(self, started: Companion, on_lost: Callable[[str], None]) -> bool:
        """Listen to a companion until it ends, or has nothing more to say; whether it ever had."""
        self._companion = started
        is_over, said = True, ""
        try:
            # It speaks three times a lease; the next one is to come before that ends.
            while (line := await started.listen(max(self.seconds * 2 / 3, PATIENCE))) is not None:
                self._note(line, said, on_lost)
                said = line
        except trio.Cancelled:
            is_over = False
            raise
        finally:
            if is_over:
                self._companion = None
                await started.kill()
        return said != ""

    def _note(self, line: str, before: str, on_lost: Callable[[str], None]) -> None:
        word, _, rest = line.partition(" ")
        match word:
            case "renewed" if rest == self.consumer:
                self._note_renewal()
            case "lost" if rest == self.consumer:
                on_lost(rest)
            case "failed" if not before.startswith(word):
                logger.warning("the lease cannot be renewed: %s", rest)
            case "stuck" if before != line:
                logger.warning("the process was stopped or its event loop stuck, so its lease was not renewed")

    def _note_renewal(self) -> None:
        now = time.monotonic()
        if now - self._renewed > self.seconds * 2 / 3:
            self._steady_since = now
        self._renewed = now

    def _plan(self, *, is_first: bool) -> Plan:
        client = codec(self._url)
        address = read_address(client)
        return {
            "host": address.host,
            "port": address.port,
            "path": address.path,
            "db": address.db,
            "credentials": list(address.credentials),
            "tls": None if address.tls is None else read_tls_options(client),
            "consumers": self._keys.consumers,
            "leases": self._keys.lease(""),
            "groups": self._keys.groups,
            "control": self._keys.control,
            "consumer": self.consumer,
            "lease": self.seconds,
            # One that has just been entered is new; what another companion held may have ended.
            "first": self.seconds / 3 if is_first else 0.0,
            "most_unknown": SUSPECT_CRASHES,
            "renew": RENEW,
            "leave": script("leave").text,
            "exit": script("exit").text,
        }

    async def _keep_by_thread(self, on_lost: Callable[[str], None]) -> None:
        token = trio.lowlevel.current_trio_token()

        def note(consumer: str, *, is_ours: bool) -> None:
            if consumer == self.consumer:
                self._note_renewal() if is_ours else on_lost(consumer)

        def tell(consumer: str, *, is_ours: bool) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(lambda: note(consumer, is_ours=is_ours))

        with LeaseThread(self, lambda: connect(self._url, self.seconds / 3), self._keys, tell) as thread:
            while True:
                thread.tick()
                await trio.sleep(1.0)


class Companion:
    """A companion process as its parent sees it."""

    def __init__(self, interpreter: str, plan: Plan, in_hand: InHand) -> None:
        self._interpreter = interpreter
        self._plan = plan
        self._in_hand = in_hand
        self._stream: trio.SocketStream | None = None
        self._process: trio.Process | None = None
        self._text = b""

    async def open(self) -> None:
        """Start it, in a session of its own: what is sent to our process group is not for it. Raises OSError."""
        _left_alone[:] = [process for process in _left_alone if process.poll() is None]
        ours, theirs = socket.socketpair()
        with theirs, open_table() as table:
            descriptors = (theirs.fileno(), table.fileno())
            try:
                self._in_hand.attach(table.fileno())
                with trio.CancelScope(shield=True):
                    self._process = await trio.lowlevel.open_process(
                        [self._interpreter, "-I", "-S", companion.__file__, *map(str, (*descriptors, os.getpid()))],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        pass_fds=descriptors,
                        start_new_session=True,
                        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    )
            except BaseException:
                ours.close()
                raise
        _opened.add(self)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        # Through the socket: a password in it is on no command line.
        ours.setblocking(False)  # noqa: FBT003 -- the socket module's own
        self.say(json.dumps(self._plan))

    def say(self, line: str) -> None:
        """Send it a line; one that is gone is noticed by `listen`."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                os.write(self._stream.socket.fileno(), line.encode("utf-8", "surrogateescape") + b"\n")

    async def listen(self, patience: float) -> str | None:
        """Its next line; None when it has ended, or said nothing for so many seconds."""
        while b"\n" not in self._text:
            part = b""
            if self._stream is not None:
                with (
                    trio.move_on_after(patience),
                    contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
                ):
                    part = await self._stream.receive_some()
            if not part:
                return None
            self._text += part
        line, _, self._text = self._text.partition(b"\n")
        return line.decode("utf-8", "replace")

    async def end(self, last: str) -> None:
        """Have it end, after a last word; without one it does what it does when its parent dies."""
        if last:
            self.say(last)
        self.close()
        if last:
            with trio.move_on_after(PATIENCE):
                await self._ended()
            await self.kill()
        elif self._process is not None:
            _left_alone.append(self._process)

    async def kill(self) -> None:
        """End it, and see that nothing is left of it."""
        self.close()
        with trio.CancelScope(shield=True):
            if self._process is not None:
                self._process.kill()
                await self._ended()

    def close(self) -> None:
        """Close our end of the socket."""
        if self._stream is not None:
            self._stream.socket.close()

    def forget(self) -> None:
        """Close what a child that forked has of it, which would hide our death. The run is none of the child's."""
        if self._stream is not None and self._stream.socket.fileno() >= 0:
            os.close(self._stream.socket.detach())

    async def _ended(self) -> None:
        if self._process is not None:
            await self._process.wait()


def open_table() -> IO[bytes]:
    """A file without a name for the table of what is in hand; raises OSError."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("omniactors-in-hand"), "r+b", buffering=0)  # noqa: PTH123 -- of a descriptor
    return tempfile.TemporaryFile(buffering=0)


_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What an interpreter may need to start; not the rest, which may hold secrets."""

_left_alone: list[trio.Process] = []
"""Companions that still give work back while we do something else; asked about by the next one."""

_opened: weakref.WeakSet[Companion] = weakref.WeakSet()


def _close_inherited() -> None:
    for inherited in list(_opened):
        with contextlib.suppress(OSError):
            inherited.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def find_interpreter() -> str | None:
    """The Python to start a companion with, None where there is none: some programs embed it, as uWSGI does."""
    if sys.platform == "win32" or not Path(companion.__file__).is_file():
        return None
    own = sys.executable
    if own and Path(own).name.startswith(("python", "pypy")):
        return own
    return shutil.which(f"python{sys.version_info.major}.{sys.version_info.minor}", path=f"{sys.exec_prefix}/bin")


class LeaseThread:
    """Renews the lease while the block lasts, where there is no companion; `tell` is called in the thread."""

    def __init__(self, lease: Lease, connect: Callable[[], redis.Redis], keys: Keys, tell: Callable[..., None]) -> None:
        self._lease = lease
        self._connect = connect
        self._keys = keys
        self._tell = tell
        self._ticked = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="omniactors-lease", daemon=True)

    def tick(self) -> None:
        """The event loop is alive."""
        self._ticked = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Not joined: it may sit in a dead connection, for a third of a lease at most.
        self._stop.set()

    def _run(self) -> None:
        client: redis.Redis | None = None
        failures, seconds = 0, self._lease.seconds
        while not self._stop.wait(seconds / 3 if not failures else min(seconds / 10, 1.0)):
            if time.monotonic() - self._ticked > companion.STALL:
                logger.warning("the event loop has been stuck for %.0f s: its lease ends", companion.STALL)
                continue
            consumer = self._lease.consumer
            try:
                if client is None:
                    client = self._connect()
                words = (self._keys.consumers, self._keys.lease(""), consumer, round(seconds * 1000))
                is_ours = client.eval(RENEW, 2, *words)
            except Exception as error:  # noqa: BLE001 -- whatever it is, the next try may succeed, and nobody else tries
                failures += 1
                if failures == 1:
                    logger.warning("the lease cannot be renewed: %s", str(error) or type(error).__name__)
                continue
            failures = 0
            if not self._stop.is_set():
                self._tell(consumer, is_ours=bool(is_ours))
        if client is not None:
            client.close()


def connect(url: str, timeout: float) -> redis.Redis:
    """A client for the thread: no retries, since the next renewal is one, and no waiting beyond `timeout` seconds."""
    client = codec(url)
    options = client.connection_pool.connection_kwargs
    options["retry"] = Retry(NoBackoff(), 0)
    for name in ("socket_timeout", "socket_connect_timeout"):
        options[name] = min(float(options.get(name) or timeout), timeout)
    return client
