"""Doctoring: what durability and speed on this server depend on, and what to change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from omniactors.errors import BackendError
from omniactors.streams.backend import Finding
from omniactors.streams.redis.keys import group_parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from omniactors.streams.redis.calls import Calls
    from omniactors.streams.redis.keys import Keys

SKEW: Final = 1.0
"""Seconds between the server's clock and ours that matter to nobody."""

OMNIDAEMON_LENGTH: Final = 10_000
"""OmniDaemon's publishers cut each stream to about so many entries, read or not."""

_FAST: Final = 5.0
"""Milliseconds of a round trip that is no cause for concern."""


async def diagnose(calls: Calls, keys: Keys) -> list[Finding]:
    """The findings; the first one is about reaching the server."""
    where = calls.redis.location
    try:
        took = [await _round_trip(calls) for _ in range(5)]
        info = _parse(await calls.command("INFO"))
        server_time = await calls.command("TIME")
    except BackendError as error:
        return [Finding(check="connection", status="error", message=str(error), advice="check the URL and the server")]
    reached = Finding(check="connection", status="ok", message=f"{where} answers")
    findings = [reached, _speed(min(took)), *_server(info), *_memory(info), *_persistence(info), *_role(info)]
    findings.append(_clock(int(server_time[0]) + int(server_time[1]) / 1e6 - time.time()))
    findings.extend(await _streams(calls, keys))
    return findings


async def _round_trip(calls: Calls) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    await calls.command("PING", patience=0)
    return (time.perf_counter() - began) * 1000


def _parse(text: bytes) -> Mapping[str, str]:
    lines = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines() if not line.startswith("#"))
    return {name: value for name, _, value in lines}


def _speed(took: float) -> Finding:
    message = f"a round trip takes {took:.1f} ms"
    if took <= _FAST:
        return Finding(check="round trip", status="ok", message=message)
    advice = "run the agents near the server: every publish waits for a round trip"
    return Finding(check="round trip", status="warning", message=message, advice=advice)


def _server(info: Mapping[str, str]) -> Iterator[Finding]:
    version, valkey = info.get("redis_version", "?"), info.get("valkey_version")
    name = f"Valkey {valkey}" if valkey else f"Redis {version}"
    yield Finding(check="version", status="ok", message=f"{name} (Redis 6.2 or newer, or Valkey, is needed)")
    if info.get("cluster_enabled") == "1":
        yield Finding(
            check="cluster",
            status="warning",
            message="the server is part of a cluster",
            advice="set OMNIACTORS_PREFIX to a hash tag, as in {work}:, and connect to the node that serves its slot",
        )


def _memory(info: Mapping[str, str]) -> Iterator[Finding]:
    policy, limit = info.get("maxmemory_policy", "noeviction"), int(info.get("maxmemory", "0"))
    used = int(info.get("used_memory", "0"))
    if limit and policy.startswith("allkeys"):
        yield Finding(
            check="eviction",
            status="error",
            message=f"maxmemory-policy is {policy}: Redis throws away streams when memory is full",
            advice="CONFIG SET maxmemory-policy noeviction",
        )
    elif limit and policy != "noeviction":
        yield Finding(
            check="eviction",
            status="warning",
            message=f"maxmemory-policy is {policy}: results and remembered ids may vanish early when memory is full",
            advice="CONFIG SET maxmemory-policy noeviction",
        )
    elif policy != "noeviction":
        yield Finding(
            check="eviction",
            status="warning",
            message=f"maxmemory-policy is {policy}; it does nothing yet, since maxmemory is not set",
            advice="CONFIG SET maxmemory-policy noeviction",
        )
    else:
        yield Finding(check="eviction", status="ok", message="maxmemory-policy is noeviction")
    if not limit:
        yield Finding(
            check="memory",
            status="warning",
            message=f"{used >> 20} MiB are used and maxmemory is not set: a backlog may take all of the machine's",
            advice="set maxmemory below what the machine has; publishers then get an error, and agents go on",
        )
    else:
        is_tight = used > 0.8 * limit
        yield Finding(
            check="memory",
            status="warning" if is_tight else "ok",
            message=f"{used >> 20} of {limit >> 20} MiB are used",
            advice="raise maxmemory, or have agents catch up" if is_tight else "",
        )


def _persistence(info: Mapping[str, str]) -> Iterator[Finding]:
    if info.get("aof_enabled") != "1":
        yield Finding(
            check="persistence",
            status="error",
            message="the append-only file is off: what was published since the last snapshot dies with the server",
            advice="CONFIG SET appendonly yes, and the same in redis.conf",
        )
    elif info.get("aof_last_write_status", "ok") != "ok":
        yield Finding(
            check="persistence",
            status="error",
            message="the append-only file cannot be written",
            advice="look for room on the server's disk",
        )
    else:
        yield Finding(
            check="persistence",
            status="ok",
            message="the append-only file is on (with appendfsync everysec a power cut loses up to a second)",
        )
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield Finding(
            check="snapshot",
            status="warning",
            message="the last snapshot failed; Redis may refuse writes (MISCONF)",
            advice="look for room on the server's disk, and at vm.overcommit_memory",
        )


def _role(info: Mapping[str, str]) -> Iterator[Finding]:
    if info.get("role") == "slave":
        yield Finding(
            check="role",
            status="error",
            message="the server is a read-only replica",
            advice=f"connect to its primary, {info.get('master_host', '?')}:{info.get('master_port', '?')}",
        )
    elif int(info.get("connected_slaves", "0")):
        yield Finding(
            check="role",
            status="ok",
            message="the server is a primary; its replicas follow behind, so a failover may lose its last moments",
        )
    else:
        yield Finding(check="role", status="ok", message="the server is a primary without replicas")


def _clock(skew: float) -> Finding:
    if abs(skew) <= SKEW:
        return Finding(check="clock", status="ok", message=f"the clocks differ by {abs(skew) * 1000:.0f} ms")
    direction = "ahead of" if skew > 0 else "behind"
    return Finding(
        check="clock",
        status="warning",
        message=f"the server's clock is {abs(skew):.1f} s {direction} ours",
        advice="synchronise both (NTP): delays go by the server's clock, created_at and processed_at by ours",
    )


async def _streams(calls: Calls, keys: Keys) -> list[Finding]:
    """Signs of publishers that trim."""
    findings = []
    groups = [member.decode() for member in await calls.command("SMEMBERS", keys.groups)]
    for topic in sorted({group_parts(group)[0] for group in groups}):
        length, _, _ = await calls.script("inspect", [topic])
        if OMNIDAEMON_LENGTH * 0.99 <= length <= OMNIDAEMON_LENGTH * 1.02:
            findings.append(_trimming(topic, length))
    return findings


def _trimming(topic: str, length: int) -> Finding:
    return Finding(
        check="trimming",
        status="warning",
        message=f"the stream of {topic!r} has {length:,} entries, where OmniDaemon's publishers begin to trim",
        advice="move its publishers over, or have its agents catch up: what they trim is lost unread",
    )
