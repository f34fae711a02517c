"""Commands that one connection shared by many tasks cannot carry, each with the sentence that says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis import exceptions

if TYPE_CHECKING:
    from omniactors.streams.redis.connection import Word

OWN_CONNECTION = "use a connection of its own: TrioRedis.connect()"

_ENTERS_A_MODE = f"turns the connection into one that receives messages; {OWN_CONNECTION}"
_TRANSACTION = (
    "would take in the commands of other tasks that share the connection; "
    f"put the steps into one script (EVAL), or {OWN_CONNECTION}"
)
_CHANGES_ALL = "would change the connection for all tasks that share it; give the URL, or " + OWN_CONNECTION
_NO_REPLY = f"upsets the order of replies; {OWN_CONNECTION}"
_BLOCKS = f"would make all tasks that share the connection wait; {OWN_CONNECTION}"
_ENDS = f"gets no reply; {OWN_CONNECTION}, or stop the server by its own means"

_NEVER = {
    **dict.fromkeys(("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE"), _ENTERS_A_MODE),
    **dict.fromkeys(("SUNSUBSCRIBE", "MONITOR", "SYNC", "PSYNC"), _ENTERS_A_MODE),
    **dict.fromkeys(("MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH"), _TRANSACTION),
    **dict.fromkeys(("SELECT", "AUTH", "HELLO", "RESET", "READONLY", "READWRITE", "ASKING"), _CHANGES_ALL),
    "QUIT": _NO_REPLY,
    "SHUTDOWN": _ENDS,
}

_CLIENT_NEVER = {"REPLY": _NO_REPLY, "TRACKING": _ENTERS_A_MODE}

_LAST_WORD_IS_SECONDS = frozenset({"BLPOP", "BRPOP", "BRPOPLPUSH", "BLMOVE", "BZPOPMIN", "BZPOPMAX"})
_FIRST_WORD_IS_SECONDS = frozenset({"BLMPOP", "BZMPOP"})
_LAST_WORD_IS_MILLISECONDS = frozenset({"WAIT", "WAITAOF"})
_MAY_BLOCK = frozenset({"XREAD", "XREADGROUP"})

_ALWAYS_BLOCK = _LAST_WORD_IS_SECONDS | _FIRST_WORD_IS_SECONDS | _LAST_WORD_IS_MILLISECONDS
_DEPENDS = _ALWAYS_BLOCK | _MAY_BLOCK | {"CLIENT"}

_WORDS_OF_OPTION = {"GROUP": 3, "COUNT": 2}


class Refused(exceptions.RedisError):
    """A command that a shared connection does not carry; nothing was sent."""


def is_plain(name: str) -> bool:
    """Whether a command of this name (upper case) may always be sent, whatever its words."""
    return name not in _NEVER and name not in _DEPENDS


def refuse(words: tuple[Word, ...]) -> None:
    """Raise Refused for a command that no connection which is shared over time can carry."""
    name = word_of(words[0])
    why = _NEVER.get(name)
    if why is None and name == "CLIENT" and len(words) > 1:
        why = _CLIENT_NEVER.get(word_of(words[1]))
    if why is not None:
        raise Refused(f"{name} {why}")


def refuse_blocking(words: tuple[Word, ...]) -> None:
    """Raise Refused for a command that may keep the server from answering others on the same connection."""
    name = word_of(words[0])
    if name in _ALWAYS_BLOCK or (name in _MAY_BLOCK and _block_option(words) is not None):
        raise Refused(f"{name} {_BLOCKS}")


def blocking_time(words: tuple[Word, ...]) -> float | None:
    """The seconds that the server may wait before it answers, 0 for ever; None when it does not say."""
    name = word_of(words[0])
    try:
        if name in _LAST_WORD_IS_SECONDS:
            return float(words[-1])
        if name in _FIRST_WORD_IS_SECONDS:
            return float(words[1])
        if name in _LAST_WORD_IS_MILLISECONDS:
            return float(words[-1]) / 1000
        found = _block_option(words) if name in _MAY_BLOCK else None
        return None if found is None else float(found) / 1000
    except (ValueError, TypeError, IndexError):
        return None  # the server says at once what is wrong with it


def _block_option(words: tuple[Word, ...]) -> Word | None:
    """The value of BLOCK, None without it. What follows STREAMS, and a group's name, may look like an option."""
    place = 1
    while place < len(words) - 1:
        option = word_of(words[place])
        if option == "BLOCK":
            return words[place + 1]
        if option == "STREAMS":
            return None
        place += _WORDS_OF_OPTION.get(option, 1)
    return None


def word_of(word: object) -> str:
    """A word of a command in upper case, whatever its type."""
    if isinstance(word, bytes | bytearray | memoryview):
        return bytes(word).decode(errors="replace").upper()
    return str(word).upper()
