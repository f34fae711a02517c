"""Following rule: `watch` follows every live runtime of the store, those that start later too, until none is left."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.output import notice
from omniactors.errors import BackendError
from omniactors.settings import Address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omniactors import OmniActors

LOOK_EVERY = 1.0
"""Seconds between two looks for runtimes that have started meanwhile; a look is one small read."""


@dataclass(frozen=True)
class Gateway:
    """Where a runtime can be watched, and, when the store named it, its consumer id and process."""

    url: str
    runtime: str | None = None
    pid: int | None = None

    def __str__(self) -> str:
        host = urlsplit(self.url).netloc.rpartition("@")[2]
        return host if self.pid is None else f"{host} (pid {self.pid})"


class Refused(CommandError):
    """A gateway does not accept what was asked for, and so will no other."""


class Followers:
    """One task per gateway; `follow` returns when the gateway has said good-bye, and raises CommandError otherwise."""

    def __init__(self, omni: OmniActors, follow: Callable[[Gateway], Awaitable[None]]) -> None:
        self._omni = omni
        self._follow = follow
        self._known: set[str] = set()
        self._active = 0
        self._last_failure: CommandError | None = None
        self._one_has_left = trio.Event()

    async def run(self) -> None:
        """Follow until nobody is left; raises CommandError when nobody was there, or the last one just vanished."""
        fresh = await self._look()
        if not fresh:
            raise CommandError(
                "no running system was found in this store; start one with: omniactors run FILE_OR_MODULE",
                ExitCode.UNAVAILABLE,
            )
        async with trio.open_nursery() as nursery:
            while fresh or self._active:
                for gateway in fresh:
                    self._active += 1
                    nursery.start_soon(self._follow_one, gateway)
                with trio.move_on_after(LOOK_EVERY):
                    await self._one_has_left.wait()
                self._one_has_left = trio.Event()
                fresh = await self._look_again()
        if self._last_failure is not None:
            raise self._last_failure

    async def _follow_one(self, gateway: Gateway) -> None:
        try:
            await self._follow(gateway)
            self._last_failure = None
        except Refused:
            raise
        except CommandError as failure:
            self._last_failure = failure
            if self._active > 1:
                notice(str(failure))
        self._active -= 1
        self._one_has_left.set()

    async def _look_again(self) -> list[Gateway]:
        """As `_look`; a store that cannot be read just now ends nothing that goes on."""
        try:
            return await self._look()
        except BackendError:
            return []

    async def _look(self) -> list[Gateway]:
        """The gateways that were not there before, those of the oldest runtimes first; raises BackendError."""
        fresh = []
        here = socket.gethostname()
        for runtime in sorted(await self._omni.runtimes(), key=lambda runtime: runtime.started_at):
            if runtime.gateway is None or runtime.consumer in self._known:
                continue
            self._known.add(runtime.consumer)
            for agent, reason in runtime.gave_up.items():
                notice(f"{agent} has given up in pid {runtime.pid} on {runtime.host}: {reason}")
            parts = urlsplit(runtime.gateway)
            if runtime.host != here and Address(parts.hostname or "", 0).is_loopback:
                notice(f"not watching {runtime.host} (pid {runtime.pid}), whose gateway only that machine reaches")
                continue
            fresh.append(Gateway(runtime.gateway, runtime.consumer, runtime.pid))
        return fresh
