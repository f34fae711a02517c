"""What the gateway is told: limits, deadlines, and the address that it answers with."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class GatewayConfig:
    """Limits and deadlines (seconds, bytes); the defaults are for people and scripts on any network.

    `allowed_hosts` are further names under which the gateway may be reached, for a proxy before it.
    `max_bodies` and `max_messages` bound what all connections together may have sent in part: bodies
    of requests, messages of watchers. `max_patterns` and `max_text` bound what one watcher asks for, in
    all its subscriptions together, and `max_queue` the unread events for which it may ask. Of large
    unread events its first subscription holds `queue_bytes`, the n-th an n-th part of that;
    `cache_bytes` is what is kept of encoded events. No more than half of
    the files that the process may open become connections. Raises ValueError for a limit that is not
    positive.
    """

    allowed_hosts: tuple[str, ...] = ()
    max_connections: int = 1024
    max_head: int = 16 * 1024
    max_body: int = 1024 * 1024
    max_bodies: int = 64 * 1024 * 1024
    head_deadline: float = 10.0
    body_deadline: float = 30.0
    idle_deadline: float = 30.0
    write_deadline: float = 10.0
    stop_deadline: float = 2.0
    hello_deadline: float = 10.0
    ping_interval: float = 25.0
    pong_deadline: float = 10.0
    max_message: int = 64 * 1024
    max_messages: int = 16 * 1024 * 1024
    max_subscriptions: int = 128
    max_patterns: int = 1024
    max_text: int = 64 * 1024
    max_queue: int = 16_384
    queue_bytes: int = 16 * 1024 * 1024
    batch_events: int = 256
    batch_bytes: int = 64 * 1024
    batch_delay: float = 0.02
    cache_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse limits under which nothing could be served."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not (0 < value < math.inf):
                raise ValueError(f"GatewayConfig.{field.name} must be more than 0, not {value!r}")


@dataclass(frozen=True)
class GatewayAddress:
    """Where the gateway listens. `url` is for a browser on this machine, when it can be reached from here."""

    host: str
    port: int
    url: str

    def __str__(self) -> str:
        return self.url
