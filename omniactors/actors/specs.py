"""Child specs: what a supervisor is told about a child. Checked when made, without starting anything."""

from __future__ import annotations

import inspect
import math
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from omniactors.actors.refs import ChildRef
from omniactors.actors.rules import AutoShutdown, Intensity, RestartType, Strategy, check_choice
from omniactors.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.mailbox import Mailbox
    from omniactors.actors.rules import ExitReason
    from omniactors.actors.slot import Slot

OnCrash = Literal["keep", "dead_letter"]

WORKER_SHUTDOWN = 5.0
"""Seconds of grace for a worker, as in OTP; a supervisor has no limit of its own."""


class Child(Protocol):
    """What a slot runs, over and over: the supervisor knows no more of a child than this."""

    kind: Literal["worker", "supervisor"]
    restart: RestartType
    """The restart type of a spec that names none."""

    def make_ref(self, slot: Slot) -> ChildRef:
        """The reference that points at `slot` for as long as the slot lives."""
        ...

    async def run(self, slot: Slot, status: Incarnation) -> object:
        """One run, from start to end; calls `status.started()` when the child is ready."""
        ...

    def forget_arguments(self) -> None:
        """The present run is the last: what only another would need may go."""
        ...

    def run_begins(self) -> None:
        """The child is about to be started, for the first time or again."""
        ...

    def run_ended(self, reason: ExitReason) -> None:
        """One run is over, and another may follow."""
        ...

    def slot_closed(self, reason: ExitReason) -> None:
        """No run follows, unless somebody asks for one: whoever waits for the child is told."""
        ...


class ChildSpec:
    """How to start, restart and stop one child.

    `what` is an Actor subclass, an async function or the value of `subtree` or `pool`; `args` are
    given to each run anew. `id` is any hashable value; without one the name counts up
    ("Counter-1"). `restart`: actors are "permanent", functions "transient" when it is None.
    `shutdown` is the number of seconds between asking the child to stop and cancelling it: 0
    cancels at once, `math.inf` waits without limit; None means 5 for workers and no limit for
    supervisors. `significant` children take part in `auto_shutdown`. `backoff` overrides the
    supervisor's. `mailbox` and `on_crash` are for actors: what happens to queued messages when the
    actor crashes.

    Raises ValueError or TypeError, with the name of the argument, for what can never work.
    """

    __slots__ = ("args", "backoff", "child_factory", "id", "name", "restart", "shutdown", "significant", "what")

    def __init__(
        self,
        what: Any,  # noqa: ANN401 -- one of four kinds, told apart and checked here
        *args: Any,
        id: Hashable = None,
        restart: RestartType | None = None,
        shutdown: float | None = None,
        significant: bool = False,
        mailbox: Mailbox | None = None,
        backoff: Backoff | None = None,
        on_crash: OnCrash | None = None,
    ) -> None:
        source = child_source(what)
        self.what = what
        self.args = args
        self.id = source.id if id is None else id
        self.name = source.name
        self.child_factory = source.factory(args, mailbox, on_crash)
        self.restart: RestartType = source.restart if restart is None else restart
        self.shutdown = source.shutdown if shutdown is None else shutdown
        self.significant = significant
        self.backoff = backoff
        self.validate()

    def validate(self) -> None:
        """Raise ValueError or TypeError for a spec that can never work; starts nothing."""
        check_choice("restart", self.restart, RestartType)
        try:
            hash(self.id)
        except TypeError:
            raise TypeError(f"a child id must be hashable, and {self.id!r} is not") from None
        if isinstance(self.shutdown, bool) or not isinstance(self.shutdown, int | float):
            raise TypeError(f"shutdown must be a number of seconds, not {self.shutdown!r}")
        if math.isnan(self.shutdown) or self.shutdown < 0:
            raise ValueError(f"shutdown must be a number of seconds of at least 0, not {self.shutdown!r}")
        if not isinstance(self.significant, bool):
            raise TypeError(f"significant must be a bool, not {self.significant!r}")
        if self.significant and self.restart == "permanent":
            raise ValueError("a permanent child cannot be significant: it never ends by itself for good")
        if self.backoff is not None and not isinstance(self.backoff, Backoff):
            raise TypeError(f"backoff must be a Backoff, not {self.backoff!r}")

    def without_arguments(self) -> ChildSpec:
        """A copy for the record: it tells all but the arguments, and nothing can be started from it."""
        spec = copy(self)
        spec.args = ()
        spec.child_factory = _no_child
        return spec

    def __repr__(self) -> str:
        return f"<ChildSpec {self.name} id={self.id!r} {self.restart} shutdown={self.shutdown:g}>"


def _no_child() -> Child:
    raise RuntimeError("the arguments of a temporary child are not kept, so it cannot be started again")


@dataclass(frozen=True)
class ChildSource:
    """What can be started, as its own kind describes it: defaults, and a factory of children."""

    name: str
    restart: RestartType
    shutdown: float
    factory: Callable[[tuple[Any, ...], Mailbox | None, OnCrash | None], Callable[[], Child]]
    id: Hashable = None
    """The id of a spec that names none, if it is not to count up."""


def child_source(what: object) -> ChildSource:
    """How to run `what`; raises TypeError for what cannot be a child.

    A class or value that has `__child_source__` says it by itself: Actor subclasses, subtrees, pools.
    """
    if isinstance(what, ChildSpec):
        raise TypeError("a ChildSpec cannot be the `what` of another ChildSpec")
    own: Callable[[], ChildSource] | None = getattr(what, "__child_source__", None)
    if own is None:
        return _function_source(what)
    owner = getattr(own, "__self__", what)
    if isinstance(owner, type) and owner is not what:
        raise TypeError(f"a child is given as a class and its arguments, {what!r} is an instance already")
    return own()


def _function_source(what: Any) -> ChildSource:  # noqa: ANN401 -- checked here
    function = inspect.unwrap(getattr(what, "func", what))  # a partial has its function in func
    if not hasattr(function, "__code__"):
        function = getattr(type(what), "__call__", None)  # noqa: B004 -- the method itself, to look into
    if not inspect.iscoroutinefunction(function):
        raise TypeError(
            f"a child is an Actor subclass, an async function, a ChildSpec, a subtree() or a pool(), not {what!r}"
        )
    code = function.__code__  # inspect.signature would take longer than the rest of a start
    takes_status = "task_status" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

    def factory(args: tuple[Any, ...], mailbox: Mailbox | None, on_crash: OnCrash | None) -> Callable[[], Child]:
        if mailbox is not None or on_crash is not None:
            raise ValueError("mailbox and on_crash are for actors; an async function has no mailbox")
        return lambda: FunctionChild(what, args, takes_status=takes_status)

    return ChildSource(getattr(function, "__name__", "child"), "transient", WORKER_SHUTDOWN, factory)


class FunctionChild:
    """An async function as a child. With a `task_status` parameter it says itself when it is ready."""

    kind: Literal["worker", "supervisor"] = "worker"
    restart: RestartType = "transient"

    def __init__(
        self, function: Callable[..., Awaitable[object]], args: tuple[Any, ...], *, takes_status: bool
    ) -> None:
        self._function = function
        self._args = args
        self._takes_status = takes_status

    def make_ref(self, slot: Slot) -> ChildRef:
        """A plain reference: a function takes no messages."""
        return ChildRef(slot)

    async def run(self, _slot: Slot, status: Incarnation) -> object:
        """Call the function once."""
        if self._takes_status:
            return await self._function(*self._args, task_status=status)
        arguments = self._args  # of a temporary child they are forgotten once it is ready
        status.started()
        return await self._function(*arguments)

    def forget_arguments(self) -> None:
        """Keep the arguments no longer; the function itself may."""
        self._args = ()

    def run_begins(self) -> None:
        """Nothing to prepare: a function has no mailbox."""

    def run_ended(self, reason: ExitReason) -> None:
        """Nothing to keep: a function has no mailbox."""

    def slot_closed(self, reason: ExitReason) -> None:
        """Nobody to tell: a function has no mailbox."""


@dataclass(frozen=True)
class Flags:
    """What one supervisor does with its children; see `open_supervisor` for each."""

    strategy: Strategy = "one_for_one"
    intensity: Intensity = field(default_factory=Intensity)
    backoff: Backoff | None = None
    auto_shutdown: AutoShutdown = "never"
    stop_deadline: float = math.inf
    max_children: float = math.inf
    independent: bool = False
    """Whether children come and go each by itself: starts and stops overlap, and who has ended is forgotten."""

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError for a flag that is not allowed."""
        check_choice("strategy", self.strategy, Strategy)
        check_choice("auto_shutdown", self.auto_shutdown, AutoShutdown)
        if not isinstance(self.intensity, Intensity):
            raise TypeError(f"intensity must be an Intensity, not {self.intensity!r}")
        if self.backoff is not None and not isinstance(self.backoff, Backoff):
            raise TypeError(f"backoff must be a Backoff, not {self.backoff!r}")
        if math.isnan(self.stop_deadline) or self.stop_deadline < 0:
            raise ValueError(f"stop_deadline must be a number of seconds of at least 0, not {self.stop_deadline!r}")

    def check_spec(self, spec: ChildSpec) -> None:
        """Raise ValueError when the spec does not go with these flags."""
        if spec.significant and self.auto_shutdown == "never":
            raise ValueError(f"{spec!r} is significant, which means nothing while auto_shutdown is 'never'")


def as_spec(what: object, args: tuple[Any, ...] = ()) -> ChildSpec:
    """`what` as a ChildSpec, which it may be already (then without `args`)."""
    if isinstance(what, ChildSpec):
        if args:
            raise TypeError("a ChildSpec carries its own arguments")
        return what
    return ChildSpec(what, *args)
