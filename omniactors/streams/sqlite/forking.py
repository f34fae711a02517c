"""Forking: a child inherits no open database, and nothing of SQLite that is in use.

SQLite's own locks, and what it knows of those that its process has on a file, would be copied as they are: a child
waited for ever for a lock of a thread that it does not have, or believed to hold what only its parent holds. So a
fork waits until no thread of ours is at work in SQLite, and the connections are closed before it. The parent opens
them again when it needs them; the child begins anew.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Gate:
    """What a thread holds while it works on its database (`with gate:`), and a fork holds as well.

    `let_go` is called before a fork, in the thread that forks.
    """

    def __init__(self, let_go: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._let_go = weakref.WeakMethod(let_go)
        _gates.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def close_for_fork(self) -> None:
        """Wait for the work that is under way, and let the database go."""
        self._lock.acquire()
        let_go = self._let_go()
        if let_go is not None:
            let_go()

    def ajar(self) -> Ajar:
        """For a wait in the middle of the work: a fork does not wait for that."""
        return Ajar(self)


class Ajar:
    """Lets a fork pass inside its block."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate.__exit__()

    def __exit__(self, *_: object) -> None:
        self._gate.__enter__()


_gates: weakref.WeakSet[Gate] = weakref.WeakSet()


class _Fork:
    """The fork that is under way."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._closed: list[Gate] = []

    def before(self) -> None:
        self._one_at_a_time.acquire()
        for gate in list(_gates):
            self._closed.append(gate)
            gate.close_for_fork()

    def after_in_parent(self) -> None:
        closed, self._closed = self._closed, []
        for gate in closed:
            gate.__exit__()
        self._one_at_a_time.release()

    def after_in_child(self) -> None:
        """The parent's databases are nobody's here."""
        _gates.clear()
        self.__init__()  # type: ignore[misc]  # as new


_fork = _Fork()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_fork.before, after_in_parent=_fork.after_in_parent, after_in_child=_fork.after_in_child)
