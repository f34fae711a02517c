"""Tasks: walking the tasks of a trio run, and saying where one waits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType


def all_tasks() -> Iterator[trio.lowlevel.Task]:
    """Every living task of this trio run, parents first."""
    root = trio.lowlevel.current_root_task()
    return iter(()) if root is None else descendants(root)


def descendants(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """A task and all that run in its nurseries, parents first."""
    waiting = [task]
    while waiting:
        task = waiting.pop()
        yield task
        for nursery in task.child_nurseries:
            waiting.extend(nursery.child_tasks)


def check_none_left(tasks: Iterable[trio.lowlevel.Task]) -> None:
    """Raise AssertionError, with names and places, if there are any."""
    left = "".join(f"\n  {describe(task)}" for task in tasks)
    if left:
        raise AssertionError(f"tasks are left:{left}")


def place_of(task: trio.lowlevel.Task) -> str:
    """Where a task waits now, as "file.py:12 function": in the innermost frame that is not trio's, if there is one."""
    frames = list(task.iter_await_frames())
    own = [(frame, line) for frame, line in frames if not _is_of_trio(frame)]
    for frame, line in reversed(own or frames):
        return f"{Path(frame.f_code.co_filename).name}:{line} {frame.f_code.co_qualname}"
    return "its end"


def _is_of_trio(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("trio.")


def describe(task: trio.lowlevel.Task) -> str:
    """A task's name, and where it waits."""
    return f"{task.name} (waits at {place_of(task)})"
