"""One run of one child: its cancel scope, its readiness, its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import trio

from omniactors.actors.rules import ExitReason, Ignore, crash_part, escaping_part, exit_reason
from omniactors.actors.telling import call_safely

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

T = TypeVar("T")


class Incarnation:
    """One run of a child, from its start to its end; it is also the `task_status` the child gets.

    A child that can stop by itself when asked sets `on_stop`, a plain function, before it calls
    `started()`; without one, asking is cancelling. A child that has shielded children of its own
    sets `on_kill` too, which is called beside the cancellation and gives what is to be killed with it.
    """

    __slots__ = (
        "_at_end",
        "_ended",
        "asked",
        "by_itself",
        "crash",
        "expected",
        "for_restart",
        "ignored",
        "is_restart",
        "is_started",
        "killed",
        "nursery",
        "on_kill",
        "on_settled",
        "on_stop",
        "reason",
        "scope",
        "task",
        "value",
    )

    def __init__(self) -> None:
        # The shield keeps an outer cancellation from ending all children at once: the supervisor
        # alone ends them, in order.
        self.scope = trio.CancelScope(shield=True)
        # Made when somebody waits: few children's ends are waited for.
        self._ended: trio.Event | None = None
        self.task: trio.lowlevel.Task | None = None
        self.nursery: trio.Nursery | None = None
        """Where the child may run tasks of its own: that of its supervisor."""
        # Keys in their order: a watcher that ends first is taken out, however many there are.
        self._at_end: dict[Callable[[ExitReason], None], None] | None = None
        self.is_restart = False
        """Whether an earlier incarnation was to be followed by this one."""
        self.is_started = False
        self.value: Any = None
        self.reason: ExitReason | None = None
        self.ignored = False
        self.asked = False
        self.killed = False
        self.expected = False
        """Whether its end is the supervisor's doing, and so no reason to restart anything."""
        self.crash: BaseException | None = None
        """What it is ending of, whatever else happens at its end."""
        self.by_itself = False
        """Whether it ended before its end was expected."""
        self.for_restart = False
        """Whether another incarnation is to follow: what is queued may wait for that one."""
        self.on_settled: Callable[[], None] | None = None
        """Called at the moment in which the child is ready, or has ended before it was: for its supervisor."""
        self.on_stop: Callable[[], None] | None = None
        self.on_kill: Callable[[], Sequence[Incarnation]] | Callable[[], None] | None = None

    def started(self, value: Any = None) -> None:  # noqa: ANN401 -- trio's TaskStatus takes any value
        """Tell the supervisor that the child is ready; `value` is handed to whoever started it."""
        if self.is_started:
            raise RuntimeError("called 'started' twice on the same task status")
        self.is_started = True
        self.value = value
        self._settle()

    async def wait_ended(self) -> None:
        """Wait until the child has ended; cancellable."""
        if self.reason is None:
            if self._ended is None:
                self._ended = trio.Event()
            await self._ended.wait()

    def call_at_end(self, told: Callable[[ExitReason], None]) -> None:
        """Have `told` called with the reason when the child has ended, before its supervisor hears of it."""
        if self.reason is not None:
            told(self.reason)
        elif self._at_end is None:
            self._at_end = {told: None}
        else:
            self._at_end[told] = None

    def forget_at_end(self, told: Callable[[ExitReason], None]) -> None:
        """Take `call_at_end(told)` back."""
        if self._at_end is not None:
            self._at_end.pop(told, None)

    def ask_to_stop(self) -> None:
        """Ask the child to end in order; idempotent."""
        if self.asked or self.reason is not None:
            return
        self.asked = True
        if self.on_stop is None or not call_safely(self.on_stop):
            self.scope.cancel("its supervisor stops it")

    def end_within(self, seconds: float, crash: BaseException | None = None) -> None:
        """The child ends by itself, and cleans up: cancelled after so many seconds. A `crash` stays the reason."""
        self.crash = crash
        self.scope.deadline = min(self.scope.deadline, trio.current_time() + seconds)

    def abort(self) -> None:
        """Cancel the start of a child that is not ready; idempotent."""
        if self.reason is None:
            self.killed = True
            self.scope.cancel("its start is undone")

    def kill(self) -> None:
        """Cancel the child now, and all that it runs itself, level by level; idempotent."""
        pending = [self]
        while pending:
            run = pending.pop()
            if run.reason is None:
                run.killed = True
                on_kill, run.on_kill = run.on_kill, None  # once: each level is asked to end by the one above it, too
                if on_kill is not None:
                    call_safely(_collect, on_kill, pending)
                run.scope.cancel("its supervisor's patience is over")

    async def run(self, body: Awaitable[object], before_telling: Callable[[T, Incarnation], None], owner: T) -> None:
        """Run the child, `body`, to its end. Never lets an Exception out: a crash becomes `reason`.

        `before_telling` is called with the `owner` and this when it has ended, before anybody is told.
        What no supervisor may keep (an outer cancellation, KeyboardInterrupt, SystemExit) is
        noted and goes on its way.
        """
        self.task = trio.lowlevel.current_task()
        try:
            with self.scope:
                await body
        except BaseException as error:
            self._end(error, before_telling, owner)
            escaping = escaping_part(error)
            if escaping is error:
                raise
            if escaping is not None:
                raise escaping from None
        else:
            self._end(None, before_telling, owner)

    def stack(self) -> tuple[str, ...]:
        """Where the child waits now, outermost first, as "file:line function"."""
        if self.task is None:
            return ()
        return tuple(
            f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}" for frame, line in self.task.iter_await_frames()
        )

    @trio.lowlevel.enable_ki_protection
    def _end(self, error: BaseException | None, before_telling: Callable[[T, Incarnation], None], owner: T) -> None:
        self.by_itself = not self.expected
        if self.scope.cancelled_caught and trio.current_time() >= self.scope.deadline:
            self.killed = True
            if self.crash is not None:
                self.crash.add_note("what it did at its end took longer than its grace time, and was cancelled")
        if self.crash is not None and crash_part(error) is None:
            error = self.crash
        self.crash = None
        if isinstance(crash_part(error), Ignore) and not self.is_started:
            self.ignored = True
            error = None
        self.reason = exit_reason(error, asked=self.asked, killed=self.killed)
        if self.reason.error is not None and escaping_part(self.reason.error) is None:
            self.reason.error.__traceback__ = _own_part(self.reason.error.__traceback__)
        self.on_stop = self.on_kill = self.task = self.nursery = None
        before_telling(owner, self)
        told, self._at_end = self._at_end, None
        for call in told or ():
            call_safely(call, self.reason)
        self._settle()
        if self._ended is not None:
            self._ended.set()

    def _settle(self) -> None:
        on_settled, self.on_settled = self.on_settled, None
        if on_settled is not None:
            on_settled()


def _own_part(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the child's own code on, or else its last step: our frames would keep all else alive."""
    while trace is not None and trace.tb_next is not None:
        if trace.tb_frame.f_globals.get("__package__") != __package__:
            break
        trace = trace.tb_next
    return trace


def _collect(on_kill: Callable[[], Sequence[Incarnation]] | Callable[[], None], into: list[Incarnation]) -> None:
    into += on_kill() or ()
