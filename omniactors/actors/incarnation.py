"""One run of one child: its cancel scope, its readiness, its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from omniactors.actors.rules import ExitReason, Ignore, crash_part, escaping_part, exit_reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Incarnation:
    """One run of a child, from its start to its end; it is also the `task_status` the child gets.

    A child that can stop by itself when asked sets `on_stop`, a plain function, before it calls
    `started()`; without one, asking is cancelling. A child that has shielded children of its own
    sets `on_kill` too, which is called beside the cancellation.
    """

    __slots__ = (
        "asked",
        "by_itself",
        "ended",
        "expected",
        "for_restart",
        "ignored",
        "is_started",
        "killed",
        "on_kill",
        "on_ready",
        "on_stop",
        "reason",
        "scope",
        "settled",
        "task",
        "value",
    )

    def __init__(self) -> None:
        # The shield keeps an outer cancellation from ending all children at once: the supervisor
        # alone ends them, in order.
        self.scope = trio.CancelScope(shield=True)
        self.settled = trio.Event()
        """Set when the child is ready, or has ended before it was."""
        self.ended = trio.Event()
        self.task: trio.lowlevel.Task | None = None
        self.is_started = False
        self.value: Any = None
        self.reason: ExitReason | None = None
        self.ignored = False
        self.asked = False
        self.killed = False
        self.expected = False
        """Whether its end is the supervisor's doing, and so no reason to restart anything."""
        self.by_itself = False
        """Whether it ended before its end was expected."""
        self.for_restart = False
        """Whether another incarnation is to follow: what is queued may wait for that one."""
        self.on_ready: Callable[[], None] | None = None
        """Called by `started()`: for the supervisor, which learns of it one turn later otherwise."""
        self.on_stop: Callable[[], None] | None = None
        self.on_kill: Callable[[], None] | None = None

    def started(self, value: Any = None) -> None:  # noqa: ANN401 -- trio's TaskStatus takes any value
        """Tell the supervisor that the child is ready; `value` is handed to whoever started it."""
        if self.is_started:
            raise RuntimeError("called 'started' twice on the same task status")
        self.is_started = True
        self.value = value
        self.settled.set()
        if self.on_ready is not None:
            self.on_ready()

    def ask_to_stop(self) -> None:
        """Ask the child to end in order; idempotent."""
        if self.asked or self.reason is not None:
            return
        self.asked = True
        if self.on_stop is not None:
            self.on_stop()
        else:
            self.scope.cancel("its supervisor stops it")

    def abort(self) -> None:
        """Cancel the start of a child that is not ready; idempotent."""
        if self.reason is None:
            self.killed = True
            self.scope.cancel("its start is undone")

    def kill(self) -> None:
        """Cancel the child now; idempotent."""
        if self.reason is not None:
            return
        self.killed = True
        if self.on_kill is not None:
            self.on_kill()
        self.scope.cancel("its supervisor's patience is over")

    async def run(self, body: Callable[[Incarnation], Awaitable[object]]) -> None:
        """Run the child to its end. Never lets an Exception out: a crash becomes `reason`.

        What no supervisor may keep (an outer cancellation, KeyboardInterrupt, SystemExit) is
        noted and goes on its way.
        """
        self.task = trio.lowlevel.current_task()
        try:
            with self.scope:
                await body(self)
        except BaseException as error:
            self._end(error)
            escaping = escaping_part(error)
            if escaping is error:
                raise
            if escaping is not None:
                raise escaping from None
        else:
            self._end(None)

    def stack(self) -> tuple[str, ...]:
        """Where the child waits now, outermost first, as "file:line function"."""
        if self.task is None:
            return ()
        return tuple(
            f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}" for frame, line in self.task.iter_await_frames()
        )

    @trio.lowlevel.enable_ki_protection
    def _end(self, error: BaseException | None) -> None:
        self.by_itself = not self.expected
        if isinstance(crash_part(error), Ignore) and not self.is_started:
            self.ignored = True
            error = None
        self.reason = exit_reason(error, asked=self.asked, killed=self.killed)
        self.on_ready = self.on_stop = self.on_kill = self.task = None
        self.settled.set()
        self.ended.set()
