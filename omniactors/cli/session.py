"""Session: one command's use of the system, from the settings to the closed store.

A command that reads, or changes what is there, creates nothing: where there is no embedded store yet it
sees an empty one, and says so.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

import omniactors
from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.output import notice
from omniactors.settings import MemoryUrl, SqliteUrl, read_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omniactors import OmniActors, Settings

T = TypeVar("T")


def with_system(work: Callable[[OmniActors], Awaitable[T]]) -> T:
    """What `work` returns, given the system that the settings name; the system is shut down afterwards.

    Raises CommandError for a store in memory: this process would find it empty, and take it along.
    """
    return trio.run(_use_system, work, omniactors.OmniActors(settings=_shared_settings()))


def ask_system(question: Callable[[OmniActors], Awaitable[T]]) -> T:
    """As `with_system`, for work that needs what is there already: an embedded store that is not there is not made."""
    settings = _shared_settings()
    if missing_store(settings) is not None:
        notice(f"there is no store yet at {settings.backend} (from {settings.chosen_by})")
        settings = replace(settings, backend=MemoryUrl())
    return trio.run(_use_system, question, omniactors.OmniActors(settings=settings))


def missing_store(settings: Settings) -> str | None:
    """The embedded store that the settings name, if nobody has made it yet."""
    backend = settings.backend
    return str(backend) if isinstance(backend, SqliteUrl) and _could_be_made(backend.path) else None


def _could_be_made(path: Path) -> bool:
    """Whether there is no such file, but might be; what stands in its way is for the opening of the store to say."""
    real = Path(os.path.realpath(path))
    if real.exists():
        return False
    folder = next(parent for parent in real.parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def store_name() -> str:
    """The store that the settings name, and who chose it."""
    settings = read_settings()
    return f"{settings.backend} (from {settings.chosen_by})"


def _shared_settings() -> Settings:
    settings = read_settings()
    if isinstance(settings.backend, MemoryUrl):
        raise CommandError(
            f"memory:// (from {settings.chosen_by}) is a store inside one process, of which this command sees nothing: "
            "use sqlite:///FILE or redis://HOST, or for watch the --url that run printed",
            ExitCode.USAGE,
        )
    return settings


async def _use_system(work: Callable[[OmniActors], Awaitable[T]], omni: OmniActors) -> T:
    try:
        return await work(omni)
    finally:
        await omni.shutdown()
