"""Background work of an actor: tasks that end with its incarnation, and report back as messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import outcome
import trio

from omniactors.actors.rules import escaping_part

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Work = Callable[..., Awaitable[Any]]
    Report = Callable[[outcome.Outcome[Any]], None]


class Background:
    """The background tasks of one incarnation, in its supervisor's nursery, each under a scope of its own."""

    def __init__(self, nursery: trio.Nursery, path: str) -> None:
        self._nursery = nursery
        self._path = path
        self._scopes: dict[trio.CancelScope, None] = {}
        self._empty = trio.Event()
        self._is_over = False

    def start(self, report: Report, work: Work, *args: Any) -> None:
        """Run `work(*args)`; `report` gets its outcome, unless the incarnation ends first."""
        if self._is_over:
            raise RuntimeError(f"{self._path} has ended: nothing can be started in its name")
        scope = trio.CancelScope(shield=True)
        self._nursery.start_soon(self._run, scope, report, work, *args, name=f"{self._path} (background)")
        self._scopes[scope] = None  # not before: the line above may raise, and then there is nothing to wait for

    async def finish(self) -> None:
        """Cancel what still runs and wait for its end; the wait itself cannot be cancelled."""
        self._is_over = True
        for scope in self._scopes:
            scope.cancel("its actor has ended")
        if self._scopes:
            with trio.CancelScope(shield=True):
                await self._empty.wait()

    async def _run(self, scope: trio.CancelScope, report: Report, work: Work, *args: Any) -> None:
        result: outcome.Outcome[Any] | None = None
        try:
            with scope:
                result = outcome.Value(await work(*args))
        except BaseException as error:
            # Around the scope: what comes with a cancellation, in one group, is told from it only there.
            if escaping_part(error) is not None:
                raise
            result = outcome.Error(error)
        finally:
            del self._scopes[scope]
            if not self._scopes and self._is_over:
                self._empty.set()
        if result is not None and not self._is_over:
            report(result)
