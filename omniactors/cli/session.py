"""Session: one command's use of the system, from the settings to the closed store."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

import omniactors
from omniactors.cli.exits import CommandError, ExitCode
from omniactors.settings import MemoryUrl, read_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omniactors import OmniActors

T = TypeVar("T")


def with_system(work: Callable[[OmniActors], Awaitable[T]]) -> T:
    """What `work` returns, given the system that the settings name; the system is shut down afterwards.

    Raises CommandError for a store in memory: this process would find it empty, and take it along.
    """
    settings = read_settings()
    if isinstance(settings.backend, MemoryUrl):
        raise CommandError(
            f"memory:// (from {settings.chosen_by}) is a store inside one process, of which this command sees nothing: "
            "use sqlite:///FILE or redis://HOST, or for watch the --url that run printed",
            ExitCode.USAGE,
        )
    return trio.run(_use_system, work, omniactors.OmniActors(settings=settings))


async def _use_system(work: Callable[[OmniActors], Awaitable[T]], omni: OmniActors) -> T:
    try:
        return await work(omni)
    finally:
        await omni.shutdown()
