"""Talking to an actor from another thread, which has no trio of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import trio

from omniactors.errors import ActorStopped

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omniactors.actors.messages import Request
    from omniactors.actors.refs import ActorRef

M_contra = TypeVar("M_contra", contravariant=True)
R = TypeVar("R")


class ThreadRef(Generic[M_contra]):
    """`ref.from_thread`: the verbs of an ActorRef for threads; each blocks the thread until it is done.

    Raises what the verb raises, ActorStopped also when the actor's trio run is over, and
    RuntimeError when called in a trio thread.
    """

    __slots__ = ("_ref", "_token")

    def __init__(self, ref: ActorRef[M_contra], token: trio.lowlevel.TrioToken | None) -> None:
        self._ref = ref
        self._token = token

    def tell(self, message: M_contra) -> None:
        """As `ActorRef.tell`: waits for room."""
        self._run(message, self._ref.tell, None)

    @overload
    def ask(self, message: Request[R], *, timeout: float | None = None) -> R: ...

    @overload
    def ask(self, message: M_contra, *, timeout: float | None = None) -> Any: ...  # noqa: ANN401 -- as ActorRef.ask

    def ask(self, message: Any, *, timeout: float | None = None) -> Any:
        """As `ActorRef.ask`; raises trio.TooSlowError after `timeout` seconds, since a thread has no scope."""
        return self._run(message, self._ref.ask, timeout)

    def _run(self, message: object, verb: Callable[[Any], Awaitable[Any]], seconds: float | None) -> object:
        async def call() -> object:
            if seconds is None:
                return await verb(message)
            with trio.fail_after(seconds):
                return await verb(message)

        if self._token is None:
            raise ActorStopped(self._ref.path, message)
        try:
            return trio.from_thread.run(call, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled) as error:
            # Cancelled by nothing but the end of the run, in which the call is a task of its own.
            raise ActorStopped(self._ref.path, message) from error
