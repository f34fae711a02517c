"""Codes: what an error reply of the server means, by its first word and never by the rest of its text.

Some say that the same call may be taken a moment later, some that it never will. ERR, the one that Redis has for
everything else, leaves it open: the call may be at fault, or the server (a permission, a proxy). A script's error is
that of the command which failed in it; Redis 7 adds the script's name to it, Redis 6.2 hides it behind its own words.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from redis import exceptions

from omniactors.streams.redis.errors import ConnectFailed, ConnectionLost, ServerUnusable, server_error

Meaning = Literal["not now", "never", "unclear"]

_NOT_NOW: Final = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "READONLY", "TRYAGAIN", "UNBLOCKED"}
)
"""What the server gets over by itself, or with another one in its place: worth waiting for."""

_NEVER: Final = frozenset({"WRONGTYPE"})
"""What depends on nothing but the call and what a key holds."""

_BEFORE_7: Final = re.compile(
    r"(?:Error running script \(call to \w+\): )?(?:@\w+: ?\d+: )+-?(?P<reply>(?P<code>[A-Z]+)? ?.*)", re.DOTALL
)
_SINCE_7: Final = re.compile(r" script: [0-9a-f]{40}, on @\w+:\d+\.$")

_PROTOCOL: Final = "Protocol error"
"""The words before a connection is closed because a command was too big, or no command: Redis has no code for it."""


def unwrapped(error: Exception) -> Exception:
    """The error of the command inside a script."""
    if not isinstance(error, exceptions.RedisError) or isinstance(error, ConnectionLost):
        return error
    text = str(error)
    inner = _BEFORE_7.fullmatch(text)
    if inner is not None:
        return server_error(inner["reply"] if inner["code"] else f"ERR {inner['reply']}")
    plain = _SINCE_7.sub("", text)
    if plain == text:
        return error
    found = type(error)(plain)
    found.status_code = error.status_code
    return found


def meaning_of(error: Exception) -> Meaning:
    """What an error that was `unwrapped` says about the call; whatever is no reply, or names no call, is unclear."""
    if isinstance(error, ServerUnusable):
        return "unclear"
    if isinstance(error, ConnectionLost):
        return "not now"
    code = getattr(error, "status_code", None)
    if code in _NOT_NOW:
        return "not now"
    if code in _NEVER or (code == "ERR" and str(error).startswith(_PROTOCOL)):
        return "never"
    return "unclear"


def is_general(error: Exception) -> bool:
    """Whether it has no code of its own: then neighbours of the call that are taken tell whose fault it is."""
    return getattr(error, "status_code", None) == "ERR"


def is_loss(error: Exception) -> bool:
    """Whether a connection that was made well ended during the call."""
    return isinstance(error, ConnectionLost) and not isinstance(error, ConnectFailed)


def is_passing(error: Exception) -> bool:
    """Whether the same call may succeed a moment later."""
    return meaning_of(error) == "not now"
