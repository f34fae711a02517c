"""How a new connection introduces itself: AUTH, CLIENT ID, SELECT, CLIENT SETNAME, in one round trip.

What the server answers to AUTH is never repeated: some servers quote the words that they do not know.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from redis import exceptions

from omniactors.streams.redis.errors import ConnectFailed, ConnectionLost, ServerUnusable

if TYPE_CHECKING:
    from omniactors.streams.redis.address import Address
    from omniactors.streams.redis.connection import RedisConnection


async def introduce(
    connection: RedisConnection, address: Address, credentials: tuple[str, ...], name: str | None
) -> None:
    """Carry out the handshake and set `connection.client_id`; the caller bounds the time.

    `credentials` are (), (password,) or (user, password). Raises ServerUnusable when the server is not
    a Redis or does not want us, and ConnectFailed when it has no room now.
    """
    steps = _steps(address, credentials, name)
    try:
        for step in steps:
            await connection.send(*step)
        for step in steps:
            await _take(connection, step, address.location)
    except ConnectFailed:
        raise
    except ConnectionLost as exc:
        if isinstance(exc.__cause__, exceptions.InvalidResponse):
            hint = "" if address.tls else ", or it wants TLS (rediss://)"
            raise ServerUnusable(f"what answers at {address.location} is not a Redis server{hint}") from exc
        raise ConnectFailed(f"{address.location} ended the connection during the handshake") from exc


def _steps(address: Address, credentials: tuple[str, ...], name: str | None) -> list[tuple[str | int, ...]]:
    steps: list[tuple[str | int, ...]] = []
    if credentials:
        steps.append(("AUTH", *credentials))
    steps.append(("CLIENT", "ID"))
    if address.db:
        steps.append(("SELECT", address.db))
    if name:
        steps.append(("CLIENT", "SETNAME", name))
    return steps


async def _take(connection: RedisConnection, step: tuple[str | int, ...], where: str) -> None:
    try:
        reply = await connection.receive(math.inf)
    except ConnectionLost:
        raise
    except exceptions.RedisError as exc:
        refusal = _refusal(step, exc, where)
        if refusal is not None:
            raise refusal from None
    else:
        if step == ("CLIENT", "ID") and isinstance(reply, int):
            connection.client_id = reply


def _refusal(step: tuple[str | int, ...], exc: exceptions.RedisError, where: str) -> ConnectFailed | None:
    """What an error in the handshake means; None when one can do without that step."""
    passing = _passing_refusal(exc, where)
    if passing is not None:
        return passing
    if str(exc).startswith("DENIED"):
        return ServerUnusable(f"{where} runs in protected mode and takes no connections from other hosts")
    if step[0] == "AUTH":
        return ServerUnusable(_auth_refused(exc, where))
    if isinstance(exc, exceptions.AuthenticationError):
        return ServerUnusable(f"{where} wants a password, and none was given")
    if step[0] == "SELECT":
        return ServerUnusable(f"{where} does not let us select its database: {exc}")
    return None


def _passing_refusal(exc: exceptions.RedisError, where: str) -> ConnectFailed | None:
    if isinstance(exc, exceptions.BusyLoadingError | exceptions.MasterDownError):
        return ConnectFailed(f"{where} is not ready yet")
    if "max number of clients" in str(exc):
        return ConnectFailed(f"{where} has no room for another connection (maxclients)")
    return None


def _auth_refused(exc: exceptions.RedisError, where: str) -> str:
    if isinstance(exc, exceptions.AuthenticationError):
        return f"{where} does not accept the user name and password"
    if "without any password configured" in str(exc) or "no password is set" in str(exc):
        return f"{where} has no password, but one was given"
    return f"{where} does not accept the AUTH command"
