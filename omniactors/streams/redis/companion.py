"""The companion: a small process beside a consumer's that holds its lease, and gives its work back when it dies.

`python -I -S companion.py SOCKET TABLE PARENT`: a socket to the parent, the file of what it has in
hand (`streams.inhand`), and its process id. The sign of life must not need the parent's interpreter,
which a handler may keep for itself. The socket's end, or the parent's, tells of its death at once, in
whatever way it died. Nothing but the standard library is loaded: it starts in 30 ms. It obeys no
signals; it ends with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import TypedDict

if __name__ == "__main__":
    # Where our package is; without the rest of what a start looks for, and without pathlib, which costs 10 ms.
    sys.path.append(os.path.abspath(f"{__file__}/../../../.."))  # noqa: PTH100

from omniactors.streams.inhand import TABLE_SIZE, read_begun, read_ticks

STALL = 60.0
"""Seconds without a turn of the parent's loop after which it counts as stuck, unless it computes."""

BUSY_STALL = 3600.0
"""The same while the process takes processor time: a handler may compute in C for long, not for ever."""

BUSY_SHARE = 0.1
"""Of one processor, since the loop's last turn: what waits or sleeps takes next to none."""

FAREWELL = 60.0
"""Seconds for giving back the work of a parent that has died, while the server cannot be reached."""

CHUNK = 100
"""Groups in one script call."""


class Plan(TypedDict):
    """What the parent says first, as JSON: where the server is, what is written there, and the scripts for it.

    A unix socket's `path`, else `host` and `port`; `tls` are the options for it, or None for none. The `lease` is
    in seconds, as is the time until its `first` renewal.
    """

    host: str
    port: int
    path: str | None
    db: int
    credentials: list[str]
    tls: dict[str, str] | None
    consumers: str
    leases: str
    groups: str
    control: str
    consumer: str
    lease: float
    first: float
    most_unknown: int
    renew: str
    leave: str
    exit: str


class Refused(Exception):
    """The server answered with an error."""


class Server:
    """A connection to Redis, with one call at a time; after an OSError or Refused it is to be made anew."""

    def __init__(self, plan: Plan, timeout: float) -> None:
        if plan["path"] is not None:
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(timeout)
            link.connect(plan["path"])
        else:
            link = socket.create_connection((plan["host"], plan["port"]), timeout)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if plan["tls"] is not None:
            from omniactors.streams.redis.tls import tls_context  # noqa: PLC0415 -- ssl is as large as all the rest

            link = tls_context(plan["tls"]).wrap_socket(link, server_hostname=plan["host"])
        self._link = link
        self._replies = link.makefile("rb")
        if plan["credentials"]:
            self.call("AUTH", *plan["credentials"])
        if plan["db"]:
            self.call("SELECT", str(plan["db"]))

    def call(self, *words: str | bytes) -> object:
        """The reply to one command."""
        encoded = [word if isinstance(word, bytes) else word.encode("utf-8", "surrogateescape") for word in words]
        self._link.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in encoded))
        return self._reply()

    def script(self, text: str, control: str, arguments: list[object]) -> object:
        """Carry out a script as `scripts.script` makes them."""
        return self.call("EVAL", text, "1", control, pack(arguments))

    def close(self) -> None:
        """End the connection."""
        self._replies.close()
        self._link.close()

    def _reply(self) -> object:
        line = self._replies.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise Refused(rest.decode("utf-8", "replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._replies.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self._reply() for _ in range(int(rest))]
        raise ConnectionError("the server ended the connection")


def pack(value: object) -> bytes:
    """Lists, text, whole numbers and truth values as MessagePack."""
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xd3" + value.to_bytes(8, "big", signed=True)
    if isinstance(value, str | bytes):
        text = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
        return b"\xdb" + len(text).to_bytes(4, "big") + text
    if isinstance(value, list):
        return b"\xdd" + len(value).to_bytes(4, "big") + b"".join(map(pack, value))
    raise TypeError(type(value))


class Parent:
    """The process whose lease this is, as seen from outside."""

    def __init__(self, channel: socket.socket, table: int, pid: int) -> None:
        self.channel = channel
        self._table = table
        self._pid = pid
        self._text = b""
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        with contextlib.suppress(OSError, AttributeError):  # a system that has none of this kind
            self._poll.register(os.pidfd_open(pid), select.POLLIN)
        self.is_gone = os.getppid() != pid
        self._ticks = -1
        self._ticked_at = 0.0
        self._seconds = 0.0
        """Processor time at its loop's last turn."""

    def messages(self, wait: float) -> list[str]:
        """What it says within so many seconds; sets `is_gone` when it has died."""
        for descriptor, _ in self._poll.poll(0 if self.is_gone else max(wait, 0.0) * 1000):
            part = self._receive() if descriptor == self.channel.fileno() else b""
            self.is_gone = self.is_gone or not part
            self._text += part
        # A child that it forked may keep the socket open, and some systems tell of no other's end.
        self.is_gone = self.is_gone or os.getppid() != self._pid
        *lines, self._text = self._text.split(b"\n")
        return [line.decode() for line in lines]

    def _receive(self) -> bytes:
        try:
            return self.channel.recv(1 << 20)
        except ConnectionResetError:
            # It died before it had read what we said, which is told once; what it said is still there.
            return self.channel.recv(1 << 20)

    def tell(self, line: str) -> None:
        """Say something to it, if it listens."""
        with contextlib.suppress(OSError):  # it is gone, or does not listen
            self.channel.send(line.encode() + b"\n", socket.MSG_DONTWAIT)

    def begun(self) -> object:
        """What it had in hand, as leave.lua takes it; False when that is not known."""
        begun = read_begun(os.pread(self._table, TABLE_SIZE, 0))
        return False if begun is None else [f"{group} {entry_id}" for group, entry_id in begun]

    def is_well(self, now: float) -> bool:
        """Whether its lease is to be renewed: it is not stopped, and its loop turns, or computes."""
        state, seconds = process_state(self._pid)
        ticks = read_ticks(os.pread(self._table, 64, 0))
        if ticks != self._ticks:
            self._ticks, self._ticked_at, self._seconds = ticks, now, seconds
        if state in ("T", "t"):
            return False
        still = now - self._ticked_at
        is_busy = seconds - self._seconds >= still * BUSY_SHARE
        return still <= STALL or (is_busy and still <= BUSY_STALL)


def process_state(pid: int) -> tuple[str, float]:
    """A process' state, as `ps` shows it, and the processor seconds that it took; ("", 0) where nobody tells."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 -- as above
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return "", 0.0
    return fields[0].decode(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Companion:
    """Renews the lease of the consumer that the parent names; `plan` is what it said first."""

    def __init__(self, plan: Plan, parent: Parent) -> None:
        self._plan = plan
        self._parent = parent
        self._consumer: str = plan["consumer"]
        self._lease: float = plan["lease"]
        self._server: Server | None = None

    def run(self, messages: list[str]) -> None:
        """Until the parent is done, or has died; `messages` are its first."""
        self._parent.tell("holds")
        due = time.monotonic() + self._plan["first"]
        while True:
            for message in messages:
                if message == "done":
                    return
                self._consumer = message
            if self._parent.is_gone:
                self._give_back()
                return
            now = time.monotonic()
            if now >= due:
                due = now + (self._lease / 3 if self._renew(now) else min(self._lease / 10, 1.0))
            messages = self._parent.messages(due - time.monotonic())

    def _connected(self) -> Server:
        if self._server is None:
            self._server = Server(self._plan, self._lease / 3)
        return self._server

    def _drop(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None

    def _renew(self, now: float) -> bool:
        """False when it is to be tried again soon."""
        if not self._parent.is_well(now):
            self._parent.tell("stuck")
            return True
        words = (self._plan["consumers"], self._plan["leases"], self._consumer, str(round(self._lease * 1000)))
        try:
            is_ours = self._connected().call("EVAL", self._plan["renew"], "2", *words)
        except (OSError, ValueError, Refused) as error:
            self._drop()
            self._parent.tell(f"failed {error}")
            return False
        self._parent.tell(f"renewed {self._consumer}" if is_ours else f"lost {self._consumer}")
        return True

    def _give_back(self) -> None:
        """Give the work of the dead parent back; once it has begun, others go on with it when this ends."""
        begun, end = self._parent.begun(), time.monotonic() + FAREWELL
        while time.monotonic() < end:
            try:
                self._leave(self._connected(), begun)
            except (OSError, ValueError, Refused):
                self._drop()
                time.sleep(min(self._lease / 10, 1.0))
            else:
                return

    def _leave(self, server: Server, begun: object) -> None:
        control, plan = self._plan["control"], self._plan
        server.call("DEL", plan["leases"] + self._consumer)
        groups = server.call("SMEMBERS", plan["groups"])
        left = list(groups) if isinstance(groups, list) else []
        while left:
            done = server.script(plan["leave"], control, [self._consumer, begun, plan["most_unknown"], left[:CHUNK]])
            if not isinstance(done, int) or done < 0:
                return
            left = left[done:]
        server.script(plan["exit"], control, [self._consumer, 1])


def main() -> None:
    """Hold the lease as the parent says in its first line."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    channel, table, pid = sys.argv[1:]
    parent = Parent(socket.socket(fileno=int(channel)), int(table), int(pid))
    lines = parent.messages(3600.0)
    while not lines and not parent.is_gone:
        lines = parent.messages(3600.0)
    if lines:
        Companion(json.loads(lines[0]), parent).run(lines[1:])


if __name__ == "__main__":
    main()
