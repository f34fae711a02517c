"""Fixtures for pytest-trio: name this module in the `pytest_plugins` of your top conftest.

Importing `omniactors.testing` does not import this module, nor pytest.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from pytest_trio import trio_fixture  # type: ignore[import-untyped]

from omniactors import OmniActors, open_supervisor
from omniactors.testing.dead_letters import DeadLetters
from omniactors.testing.leftovers import TaskFamily
from omniactors.testing.notices import Notices
from omniactors.testing.probes import Probe, start_probe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable

    from omniactors import Supervisor


@pytest.fixture
def notices() -> Notices:
    """The notices of `supervisor`."""
    return Notices()


@trio_fixture  # type: ignore[untyped-decorator]
async def supervisor(notices: Notices) -> AsyncIterator[Supervisor]:
    """An open supervisor without children; fails the test at its end for whatever the test did not expect.

    That is: trouble in `notices` that was neither expected nor allowed, and tasks of the tree that
    are alive when the tree has ended.
    """
    family = TaskFamily()
    async with AsyncExitStack() as stack:
        with family.marking():
            opened = await stack.enter_async_context(open_supervisor(emit=notices))
        yield opened
    await family.check()
    notices.check()


@pytest.fixture
def probe(supervisor: Supervisor) -> Callable[..., Awaitable[Probe]]:
    """What starts probes under `supervisor`: `start_probe` without its first argument."""

    async def start(*accepts: type, name: Hashable = None) -> Probe:
        return await start_probe(supervisor, *accepts, name=name)

    return start


@pytest.fixture
def _system() -> OmniActors:
    return OmniActors("memory://")


@pytest.fixture
def dead_letters(_system: OmniActors) -> DeadLetters:
    """The dead letters of `omni`."""
    return DeadLetters(_system)


@trio_fixture  # type: ignore[untyped-decorator]
async def omni(_system: OmniActors, dead_letters: DeadLetters) -> AsyncIterator[OmniActors]:
    """A running system in memory, without agents; fails the test for dead letters that it did not expect.

    Its store works in a thread of its own: not for an autojump clock.
    """
    async with _system:
        yield _system
    try:
        await dead_letters.check()
    finally:
        await _system.shutdown()
