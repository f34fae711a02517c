"""Where a Redis is and who we are to it: one URL, read by redis-py, with our own schemes and refusals on top."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import redis

from omniactors.streams.redis.tls import OPTIONS as TLS_OPTIONS
from omniactors.streams.redis.tls import tls_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

_ALIASES = {"valkey": "redis", "valkeys": "rediss"}

_READ_HERE = frozenset(
    {"host", "port", "path", "db", "username", "password", "client_name", "encoding", "encoding_errors"}
    | {"decode_responses", "protocol", "socket_timeout", "socket_connect_timeout"}
)

_OF_NO_MEANING_HERE = frozenset(
    {"health_check_interval", "himport_registry", "legacy_responses", "max_connections", "retry_on_error"}
    | {"retry_on_timeout", "socket_keepalive", "timeout"}
)
"""Options of redis-py's pools and retries; a URL that carries them for other programs is taken as it is."""


_LAST_PORT = 65535


@dataclass(frozen=True)
class Address:
    """What a Redis URL says. `path` is a unix socket, else `host` and `port` hold; `tls` is None without TLS."""

    host: str
    port: int
    path: str | None
    db: int
    username: str | None
    password: str | None = field(repr=False)
    tls: ssl.SSLContext | None = field(repr=False)
    decode_responses: bool
    client_name: str | None
    connect_timeout: float | None
    response_timeout: float | None

    @property
    def credentials(self) -> tuple[str, ...]:
        """The words of AUTH: (), (password,) or (user, password)."""
        if self.username:
            return (self.username, self.password or "")
        return (self.password,) if self.password else ()

    @property
    def location(self) -> str:
        """The address without anything secret, for messages."""
        if self.path is not None:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"


def codec(url: str) -> redis.Redis:
    """The redis-py client that reads the URL and encodes and decodes; it never connects.

    Raises ValueError, without the URL in it, since that may hold a password.
    """
    scheme, separator, rest = url.partition("://")
    plain = _ALIASES.get(scheme, scheme)
    if not separator or plain not in {"redis", "rediss", "unix"}:
        shown = scheme if separator and scheme.isalnum() else "nothing before ://"
        raise ValueError(f"a Redis URL begins with redis://, rediss://, unix://, valkey:// or valkeys://, not {shown}")
    try:
        return redis.Redis.from_url(f"{plain}://{rest}", protocol=2)
    except (ValueError, TypeError):
        # The sentences of urllib and redis-py may quote what follows the "@" that nobody escaped.
        raise ValueError(
            f"the {scheme}:// URL cannot be read: is each special character of its password escaped, "
            "and is the port, and each option, of its kind?"
        ) from None


def read_address(client: redis.Redis) -> Address:
    """The address that `codec` has read; raises ValueError for an option that has no meaning here."""
    options: Mapping[str, object] = client.connection_pool.connection_kwargs
    is_tls = client.connection_pool.connection_class.__name__ == "SSLConnection"
    if str(options.get("protocol", 2)) != "2":
        raise ValueError(f"protocol={options['protocol']} in the Redis URL is not supported: RESP2 is spoken")
    known = _READ_HERE | _OF_NO_MEANING_HERE | (TLS_OPTIONS if is_tls else set())
    unknown = sorted(options.keys() - known)
    if unknown:
        raise ValueError(f"the Redis URL has options that are not known: {', '.join(unknown)}")
    port = _number(options.get("port")) or 6379
    if not 0 < port <= _LAST_PORT:
        raise ValueError(f"the port of a Redis URL lies between 1 and 65535: {port}")
    return Address(
        host=str(options.get("host") or "localhost"),
        port=port,
        path=_text(options.get("path")),
        db=_number(options.get("db")) or 0,
        username=_text(options.get("username")),
        password=_text(options.get("password")),
        tls=tls_context({name: options[name] for name in TLS_OPTIONS & options.keys()}) if is_tls else None,
        decode_responses=str(options.get("decode_responses", "")).lower() in {"true", "1", "yes", "y", "t"},
        client_name=_text(options.get("client_name")),
        connect_timeout=_seconds(options, "socket_connect_timeout"),
        response_timeout=_seconds(options, "socket_timeout"),
    )


def read_tls_options(client: redis.Redis) -> dict[str, str]:
    """The options of TLS that `codec` has read, as `tls_context` takes them."""
    options: Mapping[str, object] = client.connection_pool.connection_kwargs
    return {name: str(options[name]) for name in TLS_OPTIONS & options.keys() if options[name] is not None}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: object) -> int | None:
    return None if value is None else int(str(value))


def _seconds(options: Mapping[str, object], name: str) -> float | None:
    value = options.get(name)
    if value is None:
        return None
    seconds = float(str(value))
    if not seconds > 0:
        raise ValueError(f"{name} in the Redis URL must be a number of seconds above 0, not {value}")
    return seconds
