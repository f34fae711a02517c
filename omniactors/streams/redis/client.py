"""TrioRedis: redis-py's commands over trio.

The commands, their arguments and the shapes of their replies are redis-py's, from its public names; the
connection is our own. Calls never retry by themselves: what may have been carried out is the caller's to judge.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import trio
from redis import exceptions
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.commands import AsyncCoreCommands
from trio.lowlevel import wait_task_rescheduled

from omniactors.streams.redis.address import codec, read_address
from omniactors.streams.redis.connection import pack
from omniactors.streams.redis.dialing import Dialer
from omniactors.streams.redis.errors import ConnectFailed, ConnectionLost, same_failure
from omniactors.streams.redis.link import Link
from omniactors.streams.redis.refusals import (
    OWN_CONNECTION,
    Refused,
    blocking_time,
    is_plain,
    refuse,
    refuse_blocking,
    word_of,
)
from omniactors.streams.runs import PerRun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    from redis.credentials import CredentialProvider

    from omniactors.streams.redis.connection import RedisConnection, Reply, Word

KNOWN_NAMES = 1000
"""Spellings of command names that are remembered as harmless."""


class _Attempt:
    """A connection that some calls wait for; `failure` is why there is none."""

    def __init__(self) -> None:
        self.wanted = trio.Event()
        self.ended = trio.Event()
        self.failure: ConnectFailed | None = None


class _Local:
    """What belongs to one trio run: sockets, locks and waiters of another one are of no use."""

    def __init__(self, dialer: Dialer) -> None:
        self.dialer = dialer
        self.lock = trio.Lock()
        self.connection: RedisConnection | None = None
        self.connected_at = 0.0
        self.attempt: _Attempt | None = None
        self.link: Link | None = None
        self.nursery: tuple[AbstractAsyncContextManager[trio.Nursery], trio.CancelScope] | None = None

    def forget_link(self) -> None:
        """Its connection ended."""
        self.link = None


class TrioRedis(AsyncCoreCommands):
    """A Redis (or Valkey) client for trio with redis-py's documented command methods.

    Inside `async with` (or while `run` runs) all tasks share one connection: what is ready together leaves
    together, and a lost connection is made anew by the next call. Outside, calls take turns on one
    connection that no task tends, and blocking commands are allowed. One object serves any number of
    `trio.run`, also side by side in several threads, each with connections of its own, which end with it;
    `aclose` closes those of the run that calls it.

    `url` is redis://, rediss:// (TLS), unix://, valkey:// or valkeys://, with redis-py's options in its
    query. A call that finds no connection takes at most `connect_timeout` seconds, and the waiting time
    between attempts (at most 2 s), to make one. `response_timeout` are the seconds of silence after which a
    connection that owes a reply is taken for dead; inside, it may take half as long again to see it. The
    URL's `socket_connect_timeout` and `socket_timeout` go first.

    Calls raise ConnectionLost, whose `sent` says whether the command may have been carried out, and
    redis.exceptions for what the server refuses. A cancelled call may have been carried out as well.
    """

    if TYPE_CHECKING:
        # redis-py's annotations tell async clients from others by these; at run time nothing reads them.
        _is_async_client: Literal[True]
        _event_dispatcher: Any

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float = 5.0,
        response_timeout: float = 10.0,
        client_name: str | None = None,
        credential_provider: CredentialProvider | None = None,
    ) -> None:
        self._codec = codec(url)
        self._address = read_address(self._codec)
        self._encoder: Any = self._codec.get_encoder()
        self._is_utf8 = (
            self._encoder.encoding.lower() in {"utf-8", "utf8"} and self._encoder.encoding_errors == "strict"
        )
        self._callbacks: Any = self._codec.response_callbacks
        self._connect_timeout = self._address.connect_timeout or connect_timeout
        self._response_timeout = self._address.response_timeout or response_timeout
        self._client_name = client_name or self._address.client_name
        self._credential_provider = credential_provider
        self._known: set[str | bytes] = set()
        self._here = PerRun(self._new_local)

    def __repr__(self) -> str:
        here = self._here.made()
        if here is not None and here.link is not None:
            state = f"shared connection, {here.link.outstanding} replies owed"
        elif here is not None and here.connection is not None:
            state = "one connection"
        else:
            state = "not connected"
        return f"<TrioRedis {self.location} [{state}]>"

    @property
    def location(self) -> str:
        """The address without user, password and options."""
        return self._address.location

    def get_encoder(self) -> object:
        """redis-py's encoder for the URL's `encoding` options; scripts of `register_script` use it."""
        return self._encoder

    # -- commands ------------------------------------------------------------------------------

    async def execute_command(self, *args: Any, **options: Any) -> Reply:
        """redis-py's contract: the command's words, and options for the callback that shapes its reply."""
        name = args[0]
        if isinstance(name, str) and " " in name:
            args = (*name.split(), *args[1:])  # as in "CONFIG GET"
        never_decode = options.pop(NEVER_DECODE, None) is not None
        has_empty = EMPTY_RESPONSE in options
        empty = options.pop(EMPTY_RESPONSE, None)
        options.pop("keys", None)
        try:
            reply = await self.call(*[self._encoded(word) for word in args])
        except exceptions.ResponseError:
            if has_empty:
                return empty
            raise
        if self._address.decode_responses and not never_decode:
            reply = self._decoded(reply)
        callback = self._callbacks.get(name)
        return reply if callback is None else callback(reply, **options)

    # A KeyboardInterrupt between `begin` and the wait would leave a waiter that is somewhere else by then.
    @trio.lowlevel.enable_ki_protection
    async def call(self, *words: Word, timeout: float | None = None) -> Reply:  # noqa: ASYNC109 -- see the docstring
        """Carry out one command and give back its raw reply: bytes, int, None, or a list of these.

        `timeout` bounds no work: it replaces `response_timeout` for this command (math.inf: no limit).
        Raises what the class says.
        """
        here = self._here()
        link = here.link
        if link is None:
            return await self._call_unlinked(here, words, timeout)
        if words[0] not in self._known:
            self._admit(words)
            refuse_blocking(words)
        waiter = link.begin(pack(words), timeout)
        await wait_task_rescheduled(waiter.abandon)
        reply = waiter.reply
        if isinstance(reply, exceptions.RedisError):
            raise reply
        return reply

    def register_script(  # type: ignore[override]  # its own annotations know redis-py's clients only
        self, script: bytes | str | memoryview
    ) -> Callable[..., Awaitable[Reply]]:
        """redis-py's script object: `await script(keys=[...], args=[...])` loads it where it is missing."""
        found: Callable[..., Awaitable[Reply]] = super().register_script(script)  # type: ignore[misc]
        return found

    async def connect(self) -> RedisConnection:
        """A connection of one's own, for blocking reads, subscriptions and transactions; raises ConnectFailed."""
        return await self._here().dialer.open()

    def pipeline(self, *_args: object, **_options: object) -> NoReturn:
        """Refused: commands of tasks that run side by side leave together anyhow."""
        raise Refused(
            "pipeline() is not offered: start the commands side by side in a nursery and they leave together; "
            "for a transaction put the steps into one script (EVAL)"
        )

    def transaction(self, *_args: object, **_options: object) -> NoReturn:
        """Refused: a script does the same in one step."""
        raise Refused(f"transaction() is not offered: put the steps into one script (EVAL), or {OWN_CONNECTION}")

    def pubsub(self, **_options: object) -> NoReturn:
        """Refused: a subscription needs a connection of its own."""
        raise Refused(f"pubsub() is not offered: {OWN_CONNECTION}, then send('SUBSCRIBE', ...) and receive()")

    def monitor(self) -> NoReturn:
        """Refused, as `pubsub`."""
        raise Refused(f"monitor() is not offered: {OWN_CONNECTION}, then send('MONITOR') and receive()")

    # -- life ----------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Tend one connection that all tasks share, until cancelled; started at once, it connects when it is needed."""
        here = self._here()
        if here.attempt is not None:
            raise RuntimeError("this TrioRedis is running already")
        here.attempt = _Attempt()
        try:
            if not here.lock.locked():  # who is in a call closes behind itself
                await self._close_own(here)
            task_status.started()
            while True:
                await self._serve_once(here, here.attempt)
        finally:
            attempt, here.attempt = here.attempt, None
            attempt.ended.set()

    async def aclose(self) -> None:
        """Close what is open; who waits for a reply gets ConnectionLost. A later call connects anew."""
        here = self._here.made()
        if here is not None:
            if here.link is not None:
                here.link.close()
            await self._close_own(here)
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        manager = trio.open_nursery()
        nursery = await manager.__aenter__()
        try:
            await nursery.start(self.run)
        except BaseException:
            nursery.cancel_scope.cancel()
            await manager.__aexit__(None, None, None)
            raise
        self._here().nursery = manager, nursery.cancel_scope
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        here = self._here()
        if here.nursery is None:
            return
        (manager, scope), here.nursery = here.nursery, None
        scope.cancel()
        # The block's own error goes on as it is, not wrapped in the group of a nursery that only tended a socket.
        await manager.__aexit__(None, None, None)

    # -- inside --------------------------------------------------------------------------------

    def _encoded(self, word: object) -> Word:
        kind = type(word)
        if kind is bytes or kind is int or (kind is str and self._is_utf8):
            return cast("Word", word)
        return cast("Word", self._encoder.encode(word))

    def _decoded(self, reply: Reply) -> Reply:
        if isinstance(reply, bytes):
            return self._encoder.decode(reply, force=True)
        if isinstance(reply, list):
            return [self._decoded(part) for part in reply]
        return reply

    def _admit(self, words: tuple[Word, ...]) -> None:
        if is_plain(word_of(words[0])):
            if len(self._known) < KNOWN_NAMES:
                self._known.add(cast("str", words[0]))
        else:
            refuse(words)

    async def _call_unlinked(self, here: _Local, words: tuple[Word, ...], timeout: float | None) -> Reply:  # noqa: ASYNC109
        is_known = words[0] in self._known
        if not is_known:
            self._admit(words)
        while here.attempt is not None:
            if not is_known:
                refuse_blocking(words)
            if here.link is not None:
                return await self.call(*words, timeout=timeout)
            await self._join(here.attempt)
        if not is_known and timeout is None:
            waits = blocking_time(words)
            if waits is not None:
                timeout = waits + self._response_timeout if waits else math.inf
        return await self._call_in_turn(here, words, timeout)

    async def _join(self, attempt: _Attempt) -> None:
        attempt.wanted.set()
        await attempt.ended.wait()
        if attempt.failure is not None:
            raise same_failure(attempt.failure)

    async def _serve_once(self, here: _Local, attempt: _Attempt) -> None:
        """One connection, from the call that wants it to its end; or one attempt that failed."""
        await attempt.wanted.wait()
        link: Link | None = None
        try:
            wire, reader = (await here.dialer.open()).detach()
            link = here.link = Link(
                wire, reader, self.location, response_timeout=self._response_timeout, on_lost=here.forget_link
            )
        except ConnectFailed as exc:
            attempt.failure = exc
        here.attempt = _Attempt()
        attempt.ended.set()
        if link is not None:
            began = trio.current_time()
            if await link.serve():
                here.dialer.note_lost(trio.current_time() - began)

    async def _call_in_turn(self, here: _Local, words: tuple[Word, ...], timeout: float | None) -> Reply:  # noqa: ASYNC109
        seen = here.dialer.failed_attempts
        try:
            here.lock.acquire_nowait()  # without the turn of the event loop that `acquire` takes
        except trio.WouldBlock:
            await here.lock.acquire()
        try:
            connection = here.connection
            if connection is None or connection.has_ended():
                here.connection = None
                connection = here.connection = await here.dialer.open(seen=seen)
                here.connected_at = trio.current_time()
            try:
                return await connection.call(*words, timeout=timeout)
            except ConnectionLost:
                here.dialer.note_lost(trio.current_time() - here.connected_at)
                raise
            finally:
                if here.attempt is not None:
                    here.connection = None
                    connection.abandon()
        finally:
            here.lock.release()

    async def _close_own(self, here: _Local) -> None:
        connection, here.connection = here.connection, None
        if connection is not None:
            await connection.aclose()

    def _new_local(self) -> _Local:
        return _Local(
            Dialer(
                self._address,
                self._credentials,
                connect_timeout=self._connect_timeout,
                response_timeout=self._response_timeout,
                name=self._client_name,
            )
        )

    async def _credentials(self) -> tuple[str, ...]:
        provider = self._credential_provider
        if provider is None:
            return self._address.credentials
        try:
            return tuple(await trio.to_thread.run_sync(provider.get_credentials, abandon_on_cancel=True))
        except Exception as exc:  # a provider is anybody's code
            raise ConnectFailed(f"the credential provider for {self.location} failed: {type(exc).__name__}") from exc
