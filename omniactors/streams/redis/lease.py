"""The lease: a thread with a connection of its own says every few seconds that this consumer lives.

A busy event loop must not look like a dead process, so the loop does not renew the lease itself. It
must not look alive for ever either: a loop that has not ticked for STALL seconds is given up.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from redis.backoff import NoBackoff
from redis.retry import Retry

from omniactors.streams.redis.address import codec

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

logger = logging.getLogger("omniactors.streams")

STALL: Final = 60.0
"""Seconds without a tick after which the event loop counts as stuck and its work as free."""

_RENEW: Final = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
-- After a first write a script may go on writing when memory is full.
redis.call('DEL', KEYS[2] .. ARGV[1])
redis.call('SET', KEYS[2] .. ARGV[1], '1', 'PX', ARGV[2])
return 1
"""


class LeaseThread:
    """Renews the lease of `consumer` while the block lasts; `on_lost(consumer)` is called in the thread.

    `connect` makes a synchronous client. `lease` is in seconds; it is renewed three times as often.
    """

    def __init__(
        self,
        connect: Callable[[float], redis.Redis],
        *,
        consumers: str,
        prefix: str,
        consumer: str,
        lease: float,
        on_lost: Callable[[str], None],
    ) -> None:
        self._connect = connect
        self._consumers = consumers
        self._prefix = prefix
        self.consumer = consumer
        self._lease = lease
        self._on_lost = on_lost
        self._ticked = self._renewed = time.monotonic()
        self._steady_since = -math.inf
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease of {consumer}", daemon=True)

    def tick(self) -> None:
        """The event loop is alive."""
        self._ticked = time.monotonic()

    @property
    def is_steady(self) -> bool:
        """Whether our own lease was renewed without a gap lately.

        After an outage of the server all leases have ended, and those of the living are renewed one
        after another: who judges at once takes over from the living.
        """
        now = time.monotonic()
        return now - self._renewed < self._lease * 2 / 3 and now - self._steady_since > self._lease * 2 / 3

    def _note_renewal(self) -> None:
        now = time.monotonic()
        if now - self._renewed > self._lease * 2 / 3:
            self._steady_since = now
        self._renewed = now

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Not joined: it may sit in a dead connection, for a third of a lease at most.
        self._stop.set()

    def _run(self) -> None:
        client: redis.Redis | None = None
        failures = 0
        while not self._stop.wait(self._lease / 3 if not failures else min(self._lease / 10, 1.0)):
            if time.monotonic() - self._ticked > STALL:
                logger.warning("the event loop has been stuck for %.0f s: its lease ends", STALL)
                continue
            consumer = self.consumer
            try:
                if client is None:
                    client = self._connect(self._lease / 3)
                is_ours = client.eval(_RENEW, 2, self._consumers, self._prefix, consumer, round(self._lease * 1000))
            except Exception as error:  # noqa: BLE001 -- whatever it is, the next try may succeed, and nobody else tries
                failures += 1
                if failures == 1:
                    logger.warning("the lease cannot be renewed: %s", str(error) or type(error).__name__)
                continue
            failures = 0
            self._note_renewal()
            if not is_ours and not self._stop.is_set():
                self._on_lost(consumer)
        if client is not None:
            client.close()


def connect_thread(url: str, timeout: float) -> redis.Redis:
    """A client for the thread: no retries, since the next renewal is one, and no waiting beyond `timeout` seconds."""
    client = codec(url)
    options = client.connection_pool.connection_kwargs
    options["retry"] = Retry(NoBackoff(), 0)
    for name in ("socket_timeout", "socket_connect_timeout"):
        options[name] = min(float(options.get(name) or timeout), timeout)
    return client
