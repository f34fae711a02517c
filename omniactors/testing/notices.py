"""Notices: collecting what a tree tells, waiting for one of it, and finding trouble that no test expected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import trio

from omniactors import (
    ChildExited,
    ChildStartFailed,
    ChildStopped,
    ChildStuck,
    MessagesLost,
    SupervisorGaveUp,
)
from omniactors.testing.probes import EXPECT_WITHIN

if TYPE_CHECKING:
    from collections.abc import Callable

N = TypeVar("N")


class Notices:
    """Collects the notices of a tree: `open_supervisor(emit=notices)`.

    Trouble is a crash, a failed start, lost messages, a child that is stuck, and a supervisor that
    gave up. A test either expects it or allows it; `check` finds the rest.
    """

    def __init__(self) -> None:
        self.all: list[Any] = []
        """Every notice so far, in order."""
        self._expected: set[int] = set()
        self._allowed: tuple[type, ...] = ()
        self._news = trio.Event()

    def __call__(self, notice: object) -> None:
        """Take one notice."""
        self.all.append(notice)
        news, self._news = self._news, trio.Event()
        news.set()

    def of(self, kind: type[N], *, path: str | None = None) -> list[N]:
        """The notices of one kind so far, of one child; a path may leave out its beginning."""
        return [notice for notice in self.all if isinstance(notice, kind) and _is_at(notice, path)]

    async def expect(
        self,
        kind: type[N],
        *,
        path: str | None = None,
        where: Callable[[N], bool] = lambda _notice: True,
        within: float = EXPECT_WITHIN,
    ) -> N:
        """The first such notice that was not expected before; waits for it `within` seconds in trio's time.

        `path` is the child's, and may leave out its beginning ("Counter-1"); `where` looks closer.
        Raises AssertionError, which shows what came instead.
        """
        seen = 0
        with trio.move_on_after(within):
            while True:
                for index in range(seen, len(self.all)):
                    notice = self.all[index]
                    if index in self._expected or not isinstance(notice, kind) or not _is_at(notice, path):
                        continue
                    if where(notice):
                        self._expected.add(index)
                        return notice
                seen = len(self.all)
                await self._news.wait()
        wanted = kind.__name__ if path is None else f"{kind.__name__} of {path}"
        raise AssertionError(
            f"expected {wanted}, but none came within {within:g} s; {self._listing('so far', self.all)}"
        )

    def allow(self, *kinds: type) -> None:
        """Let any number of notices of these kinds pass the check, also those that came before."""
        self._allowed += kinds

    def check(self) -> None:
        """Raise AssertionError, with a list, if there was trouble that was neither expected nor allowed."""
        trouble = [
            notice
            for index, notice in enumerate(self.all)
            if is_trouble(notice) and index not in self._expected and not isinstance(notice, self._allowed)
        ]
        if trouble:
            raise AssertionError(self._listing("nobody expected", trouble))

    def _listing(self, title: str, notices: list[Any]) -> str:
        return f"{title}:{''.join(f'{chr(10)}  {notice}' for notice in notices) or ' nothing'}"


def is_trouble(notice: object) -> bool:
    """Whether a test that does not say so would not want this to happen."""
    match notice:
        case ChildExited() | ChildStopped():
            return notice.reason.kind == "crash"
        case ChildStartFailed() | MessagesLost() | ChildStuck() | SupervisorGaveUp():
            return True
    return False


def _is_at(notice: object, path: str | None) -> bool:
    return path is None or f"/{getattr(notice, 'path', '')}".endswith(f"/{path}")
