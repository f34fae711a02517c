"""What belongs to one trio run: sockets, locks and waiting tasks are of no use to another one.

One object serves any number of runs, one after another and side by side in several threads. A child that was
forked begins with a run of its own, so what is made for each run is never its parent's.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from omniactors.errors import OmniActorsError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class PerRun(Generic[T]):
    """One T for each trio run, made by `make` when the run first asks for it.

    `end` gets it when the run is over, or in a child that was forked from it: nothing may be awaited there,
    and the run's sockets are not watched any more. Whoever holds this object holds what was made; a run
    alone keeps nothing alive.
    """

    def __init__(self, make: Callable[[], T], end: Callable[[T], None] | None = None) -> None:
        self._make = make
        self._end = end
        self._found: dict[_Run, T] = {}
        _all.add(self)

    def __call__(self) -> T:
        """The one of this run; raises OmniActorsError where no trio runs."""
        try:
            return self._found[_this_run.get()]
        except LookupError:
            return self._begin()
        except RuntimeError:
            raise _no_trio() from None

    def made(self) -> T | None:
        """The one of this run, if it was made; None outside of trio too."""
        return self._found.get(_run()) if trio.lowlevel.in_trio_run() else None

    def over(self, run: _Run) -> None:
        """Called when the run is over."""
        found = self._found.pop(run, None)
        if found is not None and self._end is not None:
            self._end(found)

    def forked(self) -> None:
        """Called in the child, where none of these runs is; what was made stays, so that nothing of it ends here."""
        for found in list(self._found.values()):
            if self._end is not None:
                self._end(found)

    def _begin(self) -> T:
        run = _run()
        found = self._found[run] = self._make()
        run.ends.add(self)
        return found


class _Run(trio.abc.Instrument):
    """One trio run, as long as it lasts: an instrument without other hooks costs nothing meanwhile."""

    def __init__(self) -> None:
        self.ends: weakref.WeakSet[PerRun[Any]] = weakref.WeakSet()

    def after_run(self) -> None:
        """Called by trio, behind the last task."""
        for each in list(self.ends):
            each.over(self)


_all: weakref.WeakSet[PerRun[Any]] = weakref.WeakSet()


def _forked() -> None:
    for each in list(_all):
        with suppress(OSError):
            each.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

_this_run: trio.lowlevel.RunVar[_Run] = trio.lowlevel.RunVar("omniactors")


def _run() -> _Run:
    try:
        return _this_run.get()
    except LookupError:
        run = _Run()
        _this_run.set(run)
        trio.lowlevel.add_instrument(run)
        return run


def require_trio() -> None:
    """Raise OmniActorsError, with what to do, where no trio runs."""
    if not trio.lowlevel.in_trio_run():
        raise _no_trio()


def _no_trio() -> OmniActorsError:
    return OmniActorsError(
        "omniactors runs on trio, and no trio runs here: from asyncio use "
        "await asyncio.to_thread(trio.run, omni.publish, topic, content), from plain code trio.run(...)"
    )
