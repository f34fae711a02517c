"""One connection to Redis for one user: a command out, a reply in, nothing shared.

`call` is for a command with one reply; `send` and `receive` apart are for blocking reads and
subscriptions. A cancelled `call` or `send` closes the connection, since an answer is owed that nobody
would take; a cancelled `receive` loses nothing and may be repeated.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import hiredis
import trio
from redis import exceptions

from omniactors.streams.redis.errors import ConnectionLost, server_error
from omniactors.streams.redis.lookout import Lookout
from omniactors.streams.redis.wire import reason_of

if TYPE_CHECKING:
    from typing import Self

    from omniactors.streams.redis.wire import Wire

Word: TypeAlias = bytes | bytearray | memoryview | str | int | float
"""A word of a command."""

Reply: TypeAlias = Any
"""bytes, int, None, or a list of these; which one follows from the command, which no type can say."""


def pack(words: tuple[Word, ...]) -> bytes:
    """A command as RESP; raises redis.exceptions.DataError for a word of another type, bool and None among them."""
    try:
        packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # typed as a tuple of one
    except TypeError:
        kinds = ", ".join(sorted({type(word).__name__ for word in words}))
        raise exceptions.DataError(f"a Redis command is made of str, bytes, int and float, not of {kinds}") from None
    return packed


def new_reader() -> hiredis.Reader:
    """A parser of replies; errors become redis-py's exceptions, as values."""
    return hiredis.Reader(protocolError=exceptions.InvalidResponse, replyError=server_error)


class RedisConnection:
    """A connection of one's own, made by `TrioRedis.connect()`; close it with `aclose` or `async with`.

    `client_id` is the server's id for it (for CLIENT UNBLOCK), None when the server does not tell.
    There is no reconnecting: once lost, make another. One task may send while another receives; two that
    do the same are refused with trio.BusyResourceError.
    """

    client_id: int | None = None

    def __init__(self, wire: Wire, location: str, *, response_timeout: float) -> None:
        self._wire = wire
        self._reader = new_reader()
        self._location = location
        self._response_timeout = response_timeout
        self._lookout = Lookout()
        self._sending = _OneTask("another task is sending on this connection")
        self._receiving = _OneTask("another task is receiving from this connection")

    def __repr__(self) -> str:
        state = f"client {self.client_id}" if self.is_usable else "closed"
        return f"<RedisConnection {self._location} [{state}]>"

    @property
    def is_usable(self) -> bool:
        """Whether a command may still be sent; False once it was closed or found lost."""
        return not self._wire.is_closed

    async def call(self, *words: Word, timeout: float | None = None) -> Reply:  # noqa: ASYNC109 -- see the docstring
        """Send a command and give back its raw reply; a server's error is raised as one of redis.exceptions.

        `timeout` bounds no work: it is the silence, in seconds, after which the connection is taken for dead
        (None: the client's `response_timeout`; math.inf: never). Raises ConnectionLost.
        Cancelled before the reply has come, it closes the connection.
        """
        data = pack(words)
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._sending, self._receiving:
            try:
                await self._send(data)
                await self._look_out()
                reply = await self._next_reply(timeout)
            except BaseException:
                self._wire.close()
                raise
        return _raised(reply)

    async def send(self, *words: Word) -> None:
        """Send a command without waiting for its reply; raises ConnectionLost. Cancelled midway, it closes."""
        data = pack(words)
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._sending:
            try:
                await self._send(data)
            except BaseException:
                self._wire.close()
                raise

    async def receive(self, timeout: float | None = None) -> Reply:  # noqa: ASYNC109 -- as in `call`
        """The next reply, or message of a subscription; a server's error is raised.

        Raises ConnectionLost, and closes, when nothing came for `timeout` seconds (None and math.inf as in
        `call`). Cancel-safe: what has arrived stays for the next call.
        """
        await trio.lowlevel.checkpoint()
        with self._receiving:
            reply = await self._next_reply(timeout)
        return _raised(reply)

    def has_ended(self) -> bool:
        """Whether an idle connection was closed here or, meanwhile, by the server; it is closed then."""
        if self._wire.is_closed:
            return True
        try:
            data = self._wire.read()
        except OSError:
            data = b""
        # Whatever came between two commands belongs to nobody.
        is_silent = data is None and not self._reader.has_data()
        if not is_silent:
            self._wire.close()
        return not is_silent

    async def aclose(self) -> None:
        """Close at once; who waits in it gets ConnectionLost."""
        self._wire.close()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._wire.close()

    def detach(self) -> tuple[Wire, hiredis.Reader]:
        """Give socket and parser away; this object must not be used any more."""
        return self._wire, self._reader

    def abandon(self) -> None:
        """Close a connection that belongs to an event loop that is gone, or to the process before a fork."""
        self._wire.abandon()

    async def _send(self, data: bytes) -> None:
        if self._wire.is_closed:
            raise self._lost("it is closed", sent=False)
        try:
            self._wire.write(data)
            if not self._wire.is_flushed:
                with trio.fail_after(self._response_timeout):
                    await self._wire.flush()
        except (OSError, trio.ClosedResourceError) as exc:
            if not self._has_last_words():
                raise self._lost(reason_of(exc), sent=self._wire.unsent < len(data)) from exc
        except trio.TooSlowError:
            raise self._lost("the server takes no more bytes", sent=self._wire.unsent < len(data)) from None

    def _has_last_words(self) -> bool:
        """Whether the server said something before it closed, as that a command is too big for it."""
        with suppress(OSError):
            while not self._wire.is_closed and (data := self._wire.read()):
                self._reader.feed(data)
        self._wire.close()
        return bool(self._reader.has_data())

    async def _look_out(self) -> None:
        """Read what arrives within the next moment without falling asleep."""
        turns = self._lookout.turns()
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
            if self._wire.is_closed:
                return
            try:
                data = self._wire.read()
            except OSError as exc:
                self._wire.close()
                raise self._lost(reason_of(exc), sent=True) from exc
            if data is not None:
                self._lookout.note(has_come=True)
                self._reader.feed(data)
                return
        if turns:
            self._lookout.note(has_come=False)

    async def _next_reply(self, timeout: float | None) -> Reply:  # noqa: ASYNC109 -- as in `call`
        """The next reply, errors as values."""
        reply = self._parsed()
        if reply is not False:
            return reply
        limit = self._response_timeout if timeout is None else timeout
        with trio.move_on_after(limit):
            while reply is False:
                self._reader.feed(await self._arrival())
                reply = self._parsed()
            return reply
        self._wire.close()
        raise ConnectionLost(f"{self._location} did not answer within {limit:g} s", sent=True)

    async def _arrival(self) -> bytes:
        data: bytes | None = None
        if self._wire.is_closed:
            raise self._lost("it is closed", sent=True)
        try:
            while data is None:
                await self._wire.readable()
                data = self._wire.read()
        except (OSError, trio.ClosedResourceError) as exc:
            self._wire.close()
            raise self._lost(reason_of(exc), sent=True) from exc
        if not data:
            self._wire.close()
            raise self._lost("the server closed it", sent=True)
        return data

    def _parsed(self) -> Reply:
        """A whole reply, or False."""
        try:
            return self._reader.gets()
        except exceptions.InvalidResponse as exc:
            self._wire.close()
            raise self._lost("what came is not RESP", sent=True) from exc

    def _lost(self, why: str, *, sent: bool) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self._location} is lost: {why}", sent)


class _OneTask:
    """A place for one task at a time."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._is_taken = False

    def __enter__(self) -> None:
        if self._is_taken:
            raise trio.BusyResourceError(self._message)
        self._is_taken = True

    def __exit__(self, *exc_info: object) -> None:
        self._is_taken = False


def _raised(reply: Reply) -> Reply:
    if isinstance(reply, exceptions.RedisError):
        raise reply
    return reply
