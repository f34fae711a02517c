"""Session: one command's use of the system, from the settings to the closed store."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

import omniactors
from omniactors.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omniactors import OmniActors

T = TypeVar("T")


def with_system(work: Callable[[OmniActors], Awaitable[T]]) -> T:
    """What `work` returns, given the system that the settings name; the system is shut down afterwards."""
    return trio.run(_use_system, work)


async def _use_system(work: Callable[[OmniActors], Awaitable[T]]) -> T:
    omni = omniactors.OmniActors(settings=read_settings())
    try:
        return await work(omni)
    finally:
        await omni.shutdown()
