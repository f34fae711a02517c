"""What goes wrong with a connection to Redis, and which class an error reply of the server is.

All are redis-py's own exceptions or derived from them, so that code written for redis-py keeps working.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis import exceptions

if TYPE_CHECKING:
    from collections.abc import Mapping


class ConnectionLost(exceptions.ConnectionError):
    """The connection ended before the reply came.

    `sent` is False when no byte of the command left, so that it was certainly not carried out; it is
    True when it may have been.
    """

    def __init__(self, message: str, sent: bool) -> None:  # noqa: FBT001 -- a fact that is kept, and args that pickle
        super().__init__(message, sent)
        self.message = message
        self.sent = sent

    def __str__(self) -> str:
        outcome = "it may have been carried out" if self.sent else "nothing was sent"
        return f"{self.message} ({outcome})"


class ConnectFailed(ConnectionLost):
    """No connection could be made this time; another try may succeed. Nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)
        self.args = (message,)

    def __str__(self) -> str:
        return self.message


class ServerUnusable(ConnectFailed):
    """No connection can be made before somebody changes something: the password, the address, the server."""


def same_failure(failure: ConnectFailed) -> ConnectFailed:
    """A copy to be raised by another task: an exception that two tasks raise mixes up their tracebacks."""
    copy = type(failure)(failure.message)
    copy.__cause__ = failure.__cause__
    return copy


_CLASSES: Mapping[str, type[exceptions.RedisError]] = {
    "ASK": exceptions.AskError,
    "CLUSTERDOWN": exceptions.ClusterDownError,
    "CROSSSLOT": exceptions.ClusterCrossSlotError,
    "EXECABORT": exceptions.ExecAbortError,
    "LOADING": exceptions.BusyLoadingError,
    "MASTERDOWN": exceptions.MasterDownError,
    "MOVED": exceptions.MovedError,
    "NOAUTH": exceptions.AuthenticationError,
    "NOPERM": exceptions.NoPermissionError,
    "NOSCRIPT": exceptions.NoScriptError,
    "OOM": exceptions.OutOfMemoryError,
    "READONLY": exceptions.ReadOnlyError,
    "TRYAGAIN": exceptions.TryAgainError,
    "WRONGPASS": exceptions.AuthenticationError,
}
"""By the first word of the reply, as in redis-py; the word itself is not repeated in the message."""


def server_error(reply: str) -> exceptions.RedisError:
    """The exception for an error reply, without its leading minus; ResponseError unless its first word is known.

    That word, the code, is its `status_code`.
    """
    word, _, rest = reply.partition(" ")
    error = _of_class(word, rest, reply)
    error.status_code = word
    return error


def _of_class(word: str, rest: str, reply: str) -> exceptions.RedisError:
    if word == "ERR":
        if rest == "max number of clients reached":
            return exceptions.ConnectionError(rest)
        return exceptions.ResponseError(rest)
    found = _CLASSES.get(word)
    if found is None:
        return exceptions.ResponseError(reply)
    try:
        return found(rest)
    except (ValueError, IndexError):  # MOVED and ASK take their text apart
        return exceptions.ResponseError(reply)
