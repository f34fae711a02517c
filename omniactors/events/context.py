"""The current run: what ties the events of one piece of work together without passing its id around."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

_current_run: ContextVar[str] = ContextVar("omniactors_run", default="")


def current_run() -> str:
    """The id of the run that this code is part of, "" outside of any."""
    return _current_run.get()


def enter_run(run_id: str) -> Token[str]:
    """Make this the current run until `leave_run`; what `run_context` does, without an object for it."""
    return _current_run.set(run_id)


def leave_run(token: Token[str]) -> None:
    """Go back to the run that was current before."""
    _current_run.reset(token)


class run_context:  # noqa: N801 -- read as a verb at `with run_context("run-A"):`, like contextlib.suppress
    """Events published inside the block carry `run_id`, unless they name a run themselves.

    For `with` and `async with` (neither ever blocks). Child tasks and `trio.to_thread` inherit the
    run of the place where they start. One object is for one block; blocks may be nested.
    """

    __slots__ = ("_token", "run_id")

    def __init__(self, run_id: str) -> None:
        if not isinstance(run_id, str):
            raise TypeError(f"run_id must be a string, not {type(run_id).__name__}")
        self.run_id = run_id
        self._token: Token[str] | None = None

    def __repr__(self) -> str:
        return f"<run_context {self.run_id!r}>"

    def __enter__(self) -> str:
        if self._token is not None:
            raise RuntimeError("this run_context is already entered; make a new one for another block")
        self._token = _current_run.set(self.run_id)
        return self.run_id

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current_run.reset(self._token)
            self._token = None

    async def __aenter__(self) -> str:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)
