"""The entrance of a bus: events come from any thread, one at a time goes in, and nobody waits for another.

A bus belongs to the thread whose trio run reads from it, because only there a reader may be woken.
What other threads bring waits in a line, bounded by number and bytes, and that run is asked to let
it in; what finds the line full is counted. While no trio run has the bus (before the first, between
two, in a program without one) whoever comes lets the line in by itself.

Whoever is inside runs a generator, which the interpreter lets nobody enter twice. So there is no
lock that an exception out of a signal handler could leave taken: such an exception ends the
generator, and the next one begins by repairing what was left half done.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar, cast

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import GeneratorType

Item = TypeVar("Item")
_Visit: TypeAlias = "tuple[Item, ...] | Callable[[], None]"
_Inside: TypeAlias = "GeneratorType[bool, tuple[int | None, _Visit[Item]], None]"

LINE_BYTES = 32 * 1024 * 1024
"""About what may wait in the line; one item alone always may."""
PATIENCE = 0.00005
"""Seconds between two looks whether another thread, without a run, has left: it is inside for microseconds."""


class Entrance(Generic[Item]):
    """Calls `admit(item)` for each item, never two calls at once, and `admit_loss(n)` where n items were lost.

    Neither of them raises or enters again. Items of one thread keep their order. An item that has
    to wait is first made ready with `pack(item)`, in the thread and the context that it comes from,
    and weighed with `weigh(item)` in bytes. `admitted()` goes up with each item. When an exception
    has interrupted an `admit`, anywhere in it, `repair()` is called before the next.
    """

    def __init__(
        self,
        capacity: int,
        admit: Callable[[Item], None],
        admit_loss: Callable[[int], None],
        *,
        pack: Callable[[Item], Item],
        weigh: Callable[[Item], int],
        admitted: Callable[[], int],
        repair: Callable[[], None],
    ) -> None:
        self._capacity = capacity
        self._pack = pack
        self._weigh = weigh
        self._admit = admit
        self._admit_loss = admit_loss
        self._admitted = admitted
        self._repair = repair
        self._line: deque[Item] = deque()
        self._line_bytes = 0
        self._in_hand: tuple[Item, int] | None = None
        """The first of the line while it is admitted, and what `admitted()` was before."""
        self._lost: dict[int, int] = {}
        """Items lost by each thread: each counts its own, so none waits and none is miscounted."""
        self._told = 0
        self._token: trio.lowlevel.TrioToken | None = None
        self._home: int | None = None
        self._changing = threading.RLock()
        self._inside = self._new_inside()

    @property
    def lost_total(self) -> int:
        """How many items were lost so far."""
        return sum(tuple(self._lost.values()))

    def enter(self, *items: Item) -> None:
        """Let the items in, or line them up, or lose those that find the line full. Never waits.

        Raises nothing of its own: an exception that comes out of a signal handler goes through, and
        leaves everything as it should be.
        """
        home = self._home
        # `_visit` written out: every event comes through here, and a call costs as much as the rest.
        if home is None or threading.get_ident() == home:
            inside = self._inside
            try:
                is_in = inside.send((home, items))
            except BaseException as error:  # noqa: BLE001 -- raised again unless somebody is inside
                self._sort_out(inside, error)
                is_in = self._visit(home, items)
            if is_in:
                if self._line:
                    self._let_in()
                return
        try:
            for item in items:
                self._line_up(item)
        finally:
            self._let_in()

    def enter_surely(self, item: Item) -> None:
        """As `enter`, but exempt from the line's bounds: for the few items that must not be lost."""
        home = self._home
        if not (home is None or threading.get_ident() == home) or not self._visit(home, (item,)):
            self._line.append(item)
        self._let_in()

    def claim(self) -> None:
        """Make this trio run the bus's own; raises RuntimeError when one in another thread has it now."""
        token = trio.lowlevel.current_trio_token()
        if token is self._token:
            return
        if self._is_elsewhere and self._ask(self._token):
            raise RuntimeError("a trio run in another thread is reading from this bus; give each run its own")

        def move_in() -> None:
            self._token, self._home = token, threading.get_ident()

        self._wait_inside(move_in)
        self._let_in()

    def exclusively(self, action: Callable[[], None]) -> None:
        """Call `action` while nothing is admitted, when all that was lined up is in.

        Raises RuntimeError in a thread other than that of the trio run that has the bus, and in a
        signal handler that interrupted who is inside.
        """
        if trio.lowlevel.in_trio_run():
            self.claim()
        elif self._is_elsewhere and self._ask(self._token):
            raise RuntimeError("a trio run in another thread has this bus; do this in that thread")
        try:
            self._wait_inside(action)
        finally:
            self._let_in()

    def if_free(self, action: Callable[[], None]) -> None:
        """As `exclusively`, if that needs no waiting.

        Nothing is done where a run in another thread has the bus, and in a signal handler that
        interrupted who is inside.
        """
        home = self._home
        if (home is None or threading.get_ident() == home) and self._visit(home, action) and self._line:
            self._let_in()

    @property
    def is_clear(self) -> bool:
        """Whether what this thread brings would be let in at once, before anything else."""
        home = self._home
        return not self._line and (home is None or threading.get_ident() == home)

    # -- being inside ------------------------------------------------------------------------------

    def _visits(self) -> Generator[bool, tuple[int | None, _Visit[Item]], None]:
        """Let in whoever is sent: items to admit, or something to do alone. False when the bus has moved meanwhile."""
        home, visit = yield False
        self._repair_all()
        while True:
            is_in = self._home is home
            if is_in:
                if self._line:
                    self._admit_line()
                if isinstance(visit, tuple):
                    for item in visit:
                        self._admit(item)
                else:
                    visit()
            home, visit = yield is_in

    def _new_inside(self) -> _Inside[Item]:
        inside = cast("_Inside[Item]", self._visits())
        next(inside)
        return inside

    def _visit(self, home: int | None, visit: _Visit[Item]) -> bool:
        """Go in; False when somebody is inside, or the bus no longer belongs to `home`."""
        while True:
            inside = self._inside
            try:
                return inside.send((home, visit))
            except BaseException as error:  # noqa: BLE001 -- raised again unless somebody is inside
                if not self._sort_out(inside, error):
                    return False

    def _sort_out(self, inside: _Inside[Item], error: BaseException) -> bool:
        """What `send` to `inside` raised: False if somebody is there, True if it has ended before; else raises it."""
        traceback = error.__traceback__
        is_its_own = traceback is not None and traceback.tb_next is None
        if is_its_own and isinstance(error, ValueError):  # "generator already executing"
            return False
        self._begin_anew(inside)
        if is_its_own and isinstance(error, StopIteration):
            return True
        with suppress(StopIteration, ValueError):
            self._inside.send((self._home, ()))  # completes what was interrupted, so that nobody has to come for that
        raise error

    def _begin_anew(self, ended: _Inside[Item]) -> None:
        """Put another generator in the place of one that an exception has ended; harmless when it has not."""
        if ended.gi_frame is not None:
            return
        inside = self._new_inside()
        with self._changing:
            if self._inside is ended:
                self._inside = inside

    def _wait_inside(self, action: Callable[[], None]) -> None:
        while not self._visit(self._home, action):
            frame = inspect.currentframe()
            while frame is not None:
                if frame is self._inside.gi_frame:
                    raise RuntimeError("a signal handler that interrupts a bus may publish, and nothing else")
                frame = frame.f_back
            time.sleep(PATIENCE)

    def _repair_all(self) -> None:
        self._repair()
        in_hand, self._in_hand = self._in_hand, None
        if in_hand is not None and self._line and self._line[0] is in_hand[0] and self._admitted() > in_hand[1]:
            self._line.popleft()

    # -- the line ----------------------------------------------------------------------------------

    def _line_up(self, item: Item) -> None:
        packed = self._pack(item)
        size = self._weigh(packed)
        line = self._line
        room = self._capacity + (self._in_hand is not None)  # what is admitted just now stands in the line still
        if len(line) < room and (not line or self._line_bytes + size <= LINE_BYTES):
            self._line_bytes += size  # threads may miscount it; every look at the line begins anew
            line.append(packed)
        else:
            thread = threading.get_ident()
            self._lost[thread] = self._lost.get(thread, 0) + 1

    def _let_in(self) -> None:
        """See to it that the line gets in: by the run that has the bus, else here and now."""
        admitted = 0
        while self._line or self.lost_total > self._told:
            token, home = self._token, self._home
            if self._is_elsewhere and self._ask(token):
                return
            # A thread that never stops must not keep a trio run from its tasks.
            if admitted > self._capacity and self._ask(token):
                return
            admitted += len(self._line)
            # A run may have claimed the bus since it was asked; then it is that run's to admit, as it
            # is that of whoever is inside, who looks at the line again on the way out.
            if not self._visit(home, () if self._line else self._admit_line) and self._home is home:
                return

    def _admit_line(self) -> None:
        """Admit who stands in the line now, and tell how many were lost."""
        line = self._line
        self._line_bytes = 0
        for _ in range(len(line)):
            item = line[0]
            self._in_hand = (item, self._admitted())
            self._admit(item)
            line.popleft()
            self._in_hand = None
        lost = self.lost_total
        if lost > self._told:
            lost, self._told = lost - self._told, lost
            self._admit_loss(lost)

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
