"""Calls: scripts on the way to Redis, sent again where that is safe, and errors in our words.

A script that is called `once` carries a number, and the slot that it uses meanwhile. The server keeps
the last reply of each slot, so a repeat after a lost connection gets the first reply and changes nothing.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import secrets
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
from redis import exceptions

from omniactors.backoff import Backoff
from omniactors.errors import BackendClosed, BackendError, BackendRefused, BackendUnusable
from omniactors.streams.redis.codes import is_general, is_loss, is_passing, meaning_of, unwrapped
from omniactors.streams.redis.errors import ConnectionLost, ServerUnusable
from omniactors.streams.redis.keys import has_hash_tag
from omniactors.streams.redis.scripts import pack, script

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from omniactors.streams.redis.client import TrioRedis
    from omniactors.streams.redis.keys import Keys

T = TypeVar("T")

Ticket = tuple[int, int]
"""A slot and a number."""

logger = logging.getLogger("omniactors.streams")

RETRY = Backoff(initial=0.05, maximum=2.0)
"""Between two tries of a call."""


class GeneralError(BackendError):
    """The server says ERR, which leaves open whether this call is at fault or the server."""


LOSSES: Final = 5
"""Connections that were lost in a row over one call, each after it was made well ..."""

HEAVY: Final = 1 << 18
"""... and of more than so many bytes: it may be the call that ends them, as one above `client-query-buffer-limit`
does, which the server closes without a word."""


class Caller:
    """Who a process is to the server: numbered calls carry its `id`. All its runs share it, in all threads.

    A process has one of its own, a child that was forked too: the server takes a call under a number that it
    has met for a repeat, and answers it with what the first one brought.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.id = secrets.token_hex(8)
        self.has_checked = False
        """Whether the server was found to be one that we can use."""
        # Each step of these is one of the interpreter's, so threads need no lock.
        self._numbers = itertools.count(1)
        self._slots = itertools.count(1)
        self._free: list[int] = []

    def open(self) -> Ticket:
        """A slot that nobody uses, and a number above all that it was used with."""
        try:
            slot = self._free.pop()
        except IndexError:
            slot = next(self._slots)
        return slot, next(self._numbers)

    def retire(self, ticket: Ticket) -> None:
        """The slot may be used again."""
        self._free.append(ticket[0])


class Calls:
    """The scripts and commands of one backend in one trio run. `patience` (seconds) is how long a call is tried."""

    def __init__(self, redis: TrioRedis, keys: Keys, caller: Caller, *, patience: float) -> None:
        self.redis = redis
        self._keys = keys
        self._caller = caller
        self.patience = patience
        self._in_flight = 0
        self.generation = 0
        """Goes up with every `close()`."""

    @property
    def client(self) -> str:
        """Who we are to the server."""
        return self._caller.id

    # -- calling --------------------------------------------------------------------------------

    async def script(self, name: str, arguments: list[Any], *, patience: float | None = None) -> Any:  # noqa: ANN401 -- a reply
        """Run a script that may be repeated without harm; raises BackendError."""
        return await self.words(name, pack(arguments), patience=patience)

    async def words(self, name: str, *words: bytes | str | int, patience: float | None = None) -> Any:  # noqa: ANN401 -- a reply
        """As `script`, with the script's arguments as they are."""
        patience = self.patience if patience is None else patience
        return await self._persist(lambda: self._run(name, words), patience, words)

    async def once(
        self, name: str, arguments: list[Any], words: Sequence[bytes | str] = (), *, patience: float | None = None
    ) -> Any:  # noqa: ANN401 -- a reply
        """Run a script that changes something once, however often it has to be sent; raises BackendError.

        `words` are what it takes as it is, behind its arguments.
        """
        ticket = self.open()
        try:
            return await self.numbered(ticket, name, arguments, words, patience=patience)
        finally:
            self.retire(ticket)

    async def numbered(
        self,
        ticket: Ticket,
        name: str,
        arguments: list[Any],
        words: Sequence[bytes | str] = (),
        *,
        patience: float | None = None,
    ) -> Any:  # noqa: ANN401 -- a reply
        """As `once`, with a ticket from `open`, which a later call may use again for the same arguments."""
        return await self.words(name, pack([[self.client, *ticket], *arguments]), *words, patience=patience)

    def open(self) -> Ticket:
        """A ticket for `numbered`, to be given to `retire` when its outcome is known or nobody asks any more."""
        return self._caller.open()

    def retire(self, ticket: Ticket) -> None:
        """Let the server forget the reply."""
        self._caller.retire(ticket)

    async def command(self, *args: str | bytes | float, patience: float | None = None) -> Any:  # noqa: ANN401 -- a reply
        """Run a command that may be repeated without harm; raises BackendError."""
        return await self._persist(lambda: self.redis.call(*args), self.patience if patience is None else patience)

    async def close(self) -> None:
        """Wait for the calls that are under way, as long as they may take, and disconnect."""
        self.generation += 1
        with trio.move_on_after(self.patience):
            while self._in_flight:  # noqa: ASYNC110 -- they end within a round trip
                await trio.sleep(0.002)
        self._caller.has_checked = False
        await self.redis.aclose()

    # -- sending --------------------------------------------------------------------------------

    async def _run(self, name: str, words: tuple[bytes | str | int, ...]) -> Any:  # noqa: ANN401 -- a reply
        found = script(name)
        try:
            return await self.redis.call(b"EVALSHA", found.sha, 1, self._keys.control, *words)
        except exceptions.NoScriptError:
            return await self.redis.call(b"EVAL", found.text, 1, self._keys.control, *words)

    async def _persist(self, send: Callable[[], Awaitable[T]], patience: float, words: Sequence[object] = ()) -> T:
        give_up = trio.current_time() + patience
        generation, attempt, losses, is_unknown = self.generation, 0, 0, False
        self._in_flight += 1
        try:
            while True:
                try:
                    if not self._caller.has_checked:
                        await self._check_server()
                    return await send()
                except (exceptions.RedisError, OSError) as failure:
                    error = unwrapped(failure)
                    is_unknown |= getattr(error, "sent", False)
                    if generation != self.generation:
                        raise BackendClosed(f"{self.redis.location} was closed") from None
                    losses = losses + 1 if is_loss(error) else 0
                    if losses == LOSSES and _is_heavy(words):
                        raise GeneralError(f"{error}, as each time that it was sent", outcome_known=False) from None
                    if not is_passing(error) or trio.current_time() >= give_up:
                        raise self.translate(error, is_unknown=is_unknown) from None
                    if isinstance(error, exceptions.ReadOnlyError):
                        # A primary that was replaced: its name may lead to another server by now.
                        await self.redis.aclose()
                    attempt += 1
                    if attempt == 1 and patience == math.inf:
                        logger.warning("%s", self.translate(error, is_unknown=is_unknown))
                await trio.sleep(RETRY.delay(attempt, random.random()))  # noqa: S311 -- jitter, not a secret
        finally:
            self._in_flight -= 1

    async def _check_server(self) -> None:
        """Raise BackendUnusable unless the server is a Redis 6.2 or newer, or a Valkey, that can hold all our keys."""
        where = self.redis.location
        found = await self.redis.call("COMMAND", "INFO", "XAUTOCLAIM", "EVALSHA")
        if not isinstance(found, list) or not all(found):
            raise BackendUnusable(f"{where} is too old: Redis 6.2 or newer, or Valkey, is needed")
        if not has_hash_tag(self._keys.prefix) and await self._is_cluster():
            raise BackendUnusable(
                f"{where} is part of a cluster, and a cluster takes keys together only when they carry one hash tag: "
                "set OMNIACTORS_PREFIX to one, as in {work}:"
            )
        self._caller.has_checked = True

    async def _is_cluster(self) -> bool:
        try:
            return b"cluster_enabled:1" in await self.redis.call("INFO", "cluster")
        except exceptions.NoPermissionError:
            return False

    def translate(self, error: Exception, *, is_unknown: bool = False) -> BackendError:
        """The error as one sentence of ours, without secrets."""
        where = self.redis.location
        match error:
            case ServerUnusable():
                return BackendUnusable(str(error))
            case exceptions.AuthenticationError() | exceptions.NoPermissionError():
                return BackendUnusable(f"{where} refuses us: {error}")
            case ConnectionLost():
                unknown = "; whether the operation took place is not known" if is_unknown else ""
                return BackendError(f"{error.message}{unknown}", outcome_known=not is_unknown)
        is_for_good = meaning_of(error) == "never"
        kind = BackendRefused if is_for_good else GeneralError if is_general(error) else BackendError
        return kind(self._sentence(error), outcome_known=not is_unknown)

    def _sentence(self, error: Exception) -> str:
        where = self.redis.location
        if isinstance(error, exceptions.OutOfMemoryError):
            return f"{where} has no memory left (maxmemory is reached): nothing was written"
        if isinstance(error, exceptions.ReadOnlyError):
            return f"{where} is a read-only replica: nothing was written"
        return f"{where} refused the operation: {error}"


def _is_heavy(words: Sequence[object]) -> bool:
    return sum(len(word) for word in words if isinstance(word, bytes | str)) > HEAVY
