"""The entrance of a bus: events come from any thread, one at a time goes in, and nobody waits for another.

A bus belongs to the thread whose trio run reads from it, because only there a reader may be woken.
What other threads bring waits in a bounded line, and that run is asked to let it in; what finds the
line full is counted. While no trio run has the bus (before the first, between two, in a program
without one) whoever comes lets the line in by itself.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Item = TypeVar("Item")


class Entrance(Generic[Item]):
    """Calls `admit(item)` for each item, never two calls at once, and `admit_loss(n)` where n items were lost.

    Neither of them may raise or enter again. Items of one thread keep their order. An item that has
    to wait is first made ready with `pack(item)`, in the thread and the context that it comes from.
    """

    def __init__(
        self,
        capacity: int,
        admit: Callable[[Item], None],
        admit_loss: Callable[[int], None],
        *,
        pack: Callable[[Item], Item],
    ) -> None:
        self._capacity = capacity
        self._pack = pack
        self._admit = admit
        self._admit_loss = admit_loss
        self._line: deque[Item] = deque()
        self._loss_lock = threading.RLock()
        self._untold = 0
        self._inside = threading.Lock()
        self._token: trio.lowlevel.TrioToken | None = None
        self._home: int | None = None
        self.lost_total = 0

    def enter(self, *items: Item) -> None:
        """Let the items in, or line them up, or lose those that find the line full. Never waits, never raises."""
        home = self._home
        # `_enter_at_home` written out: every event comes through here, and a call costs as much as the rest.
        if (home is None or threading.get_ident() == home) and self._inside.acquire(blocking=False):
            try:
                if self._home is home:
                    if self._line or self._untold:
                        self._admit_line()
                    for item in items:
                        self._admit(item)
                    items = ()
            finally:
                self._inside.release()
        if items:
            for item in items:
                if len(self._line) < self._capacity:
                    self._line.append(self._pack(item))
                else:
                    with self._loss_lock:
                        self._untold += 1
                        self.lost_total += 1
        if self._line or self._untold:
            self._let_in()

    def enter_surely(self, item: Item) -> None:
        """As `enter`, but exempt from the line's bound: for the few items that must not be lost."""
        if not self._enter_at_home((item,)):
            self._line.append(item)
        if self._line or self._untold:
            self._let_in()

    def claim(self) -> None:
        """Make this trio run the bus's own; raises RuntimeError when one in another thread has it now."""
        token = trio.lowlevel.current_trio_token()
        if token is self._token:
            return
        if self._is_elsewhere and self._ask(self._token):
            raise RuntimeError("a trio run in another thread is reading from this bus; give each run its own")
        with self._inside:
            self._token, self._home = token, threading.get_ident()
        self._let_in()

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Nothing is admitted inside the block, and all that was lined up is in before it.

        Raises RuntimeError in a thread other than that of the trio run that has the bus.
        """
        if trio.lowlevel.in_trio_run():
            self.claim()
        elif self._is_elsewhere and self._ask(self._token):
            raise RuntimeError("a trio run in another thread has this bus; do this in that thread")
        try:
            with self._inside:
                self._admit_line()
                yield
        finally:
            self._let_in()

    @property
    def is_clear(self) -> bool:
        """Whether what this thread brings would be let in at once, before anything else."""
        home = self._home
        return not self._line and not self._untold and (home is None or threading.get_ident() == home)

    @contextmanager
    def if_free(self) -> Iterator[bool]:
        """Inside alone, behind the line, if that needs no waiting.

        False where a run in another thread has the bus, and in a signal handler that interrupted who is inside.
        """
        home = self._home
        is_inside = (home is None or threading.get_ident() == home) and self._inside.acquire(blocking=False)
        if not is_inside:
            yield False
            return
        try:
            if self._home is home:
                self._admit_line()
            yield self._home is home
        finally:
            self._inside.release()
            self._let_in()

    def _enter_at_home(self, items: tuple[Item, ...]) -> bool:
        """Let the items in at once, behind the line, if this is the thread of the run that has the bus, or none had."""
        home = self._home
        # A taken lock means another thread without a run, or a signal handler in the middle of
        # admit: waiting would block the one and deadlock the other, so the line it is.
        if (home is not None and threading.get_ident() != home) or not self._inside.acquire(blocking=False):
            return False
        try:
            if self._home is not home:  # a run has claimed the bus meanwhile
                return False
            if self._line or self._untold:
                self._admit_line()
            for item in items:
                self._admit(item)
        finally:
            self._inside.release()
        return True

    def _let_in(self) -> None:
        """See to it that the line gets in: by the run that has the bus, else here and now."""
        admitted = 0
        while self._line or self._untold:
            seen = self._token
            if self._is_elsewhere and self._ask(seen):
                return
            # A thread that never stops must not keep a trio run from its tasks.
            if admitted > self._capacity and self._ask(seen):
                return
            if not self._inside.acquire(blocking=False):
                return  # who is inside looks at the line again on the way out
            try:
                # A run may have claimed the bus since it was asked; then it is that run's to admit.
                if self._token is seen:
                    admitted += self._admit_line()
            finally:
                self._inside.release()

    def _admit_line(self) -> int:
        """Admit who stands in the line now, and say how many were."""
        count = len(self._line)
        for _ in range(count):
            self._admit(self._line.popleft())
        if self._untold:
            with self._loss_lock:
                lost, self._untold = self._untold, 0
            self._admit_loss(lost)
        return count

    @property
    def _is_elsewhere(self) -> bool:
        return self._token is not None and threading.get_ident() != self._home

    def _ask(self, token: trio.lowlevel.TrioToken | None) -> bool:
        """Ask a run to let the line in soon; False when it is over."""
        if token is None:
            return False
        try:
            token.run_sync_soon(self._let_in, idempotent=True)
        except trio.RunFinishedError:
            return False
        return True
