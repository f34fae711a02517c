"""A pure model of OTP's `supervisor.erl`: what it does for a script of requests, ends and clock steps.

Written from the behaviour's documentation, not from our code: a list of children, one restart
window, and the functions of `supervisor.erl` under their own names. Backoff, which OTP has not, is a
delay between the decision to restart and `restart`, during which the window's clock stands still.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

RestartType = Literal["permanent", "transient", "temporary"]
Ending = Literal["normal", "shutdown", "crash"]
StartOutcome = Literal["ok", "fail", "ignore"]
Answer = str
"""What a request comes to: "ok", or the name of an error."""


@dataclass(frozen=True)
class Setup:
    """The flags of one supervisor; the strategy "dynamic" stands for a DynamicSupervisor (simple_one_for_one)."""

    strategy: str = "one_for_one"
    restarts: int = 3
    period: float = 5.0
    backoff: float = 0.0
    auto_shutdown: str = "never"


@dataclass(frozen=True)
class Start:
    """`start_child`; the child's first starts go as `plan` says, all later ones well."""

    id: str
    restart: RestartType = "permanent"
    plan: tuple[StartOutcome, ...] = ()
    significant: bool = False


@dataclass(frozen=True)
class Stop:
    """`terminate_child`."""

    id: str


@dataclass(frozen=True)
class Restart:
    """`restart_child`."""

    id: str


@dataclass(frozen=True)
class Delete:
    """`delete_child`."""

    id: str


@dataclass(frozen=True)
class Plan:
    """From now on the child's next starts go as `plan` says."""

    id: str
    plan: tuple[StartOutcome, ...]


@dataclass(frozen=True)
class End:
    """The child ends by itself, if it runs."""

    id: str
    how: Ending


@dataclass(frozen=True)
class Advance:
    """Time passes."""

    seconds: float


Step = Start | Stop | Restart | Delete | Plan | End | Advance


@dataclass(eq=False)
class ModelChild:
    """A child record."""

    id: str
    restart: RestartType
    significant: bool
    state: Literal["running", "restarting", "stopped"] = "stopped"
    starts: int = 0


@dataclass
class Model:
    """One supervisor. `lines` tells what happened, in order, as `tests.actors.support.Notices` does."""

    setup: Setup
    children: list[ModelChild] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    plans: dict[str, deque[StartOutcome]] = field(default_factory=dict)
    is_over: bool = False
    is_undefined: bool = False
    """Two restarts under a dynamic supervisor are due in the same moment, in no order."""
    gave_up_on: str | None = None
    now: float = 0.0
    window_clock: float = 0.0
    window: list[float] = field(default_factory=list)
    due: dict[ModelChild, float] = field(default_factory=dict)
    retries: deque[tuple[ModelChild, int]] = field(default_factory=deque)
    """Casts of `try_again_restart`, each with the child's number of starts by then."""

    # -- requests -------------------------------------------------------------------------------

    def do(self, step: Step) -> Answer:
        """Carry out one step, and all that follows from it until the supervisor rests."""
        match step:
            case Start():
                return self.start_child(step)
            case Stop():
                return self.terminate_child(step.id)
            case Restart():
                return self.restart_child(step.id)
            case Delete():
                return self.delete_child(step.id)
            case Plan():
                self.plans[step.id] = deque(step.plan)
            case End():
                child = self.find(step.id)
                if child is not None and child.state == "running":
                    self.child_exited(child, step.how)
                    self.advance(0)
            case Advance():
                self.advance(step.seconds)
        return "ok"

    def find(self, child_id: str) -> ModelChild | None:
        """The child with this id."""
        return next((child for child in self.children if child.id == child_id), None)

    def start_child(self, step: Start) -> Answer:
        """`handle_start_child`: statements 27 to 30."""
        known = self.find(step.id)
        if known is not None:
            return "ChildAlreadyStarted" if known.state == "running" else "ChildAlreadyPresent"
        child = ModelChild(step.id, step.restart, step.significant)
        self.plans[step.id] = deque(step.plan)
        self.children.append(child)
        if self.start(child) == "fail":
            self.children.remove(child)
            return "ChildStartError"
        return "ok"

    def terminate_child(self, child_id: str) -> Answer:
        """Statements 33 to 35 and 77."""
        child = self.find(child_id)
        if child is None:
            return "ChildNotFound"
        was_restarting = child.state == "restarting"
        self.do_terminate(child)
        if was_restarting:
            self.abandon_followers()
        return "ok"

    def restart_child(self, child_id: str) -> Answer:
        """Statements 37 to 39."""
        child = self.find(child_id)
        if child is None:
            return "ChildNotFound"
        if child.state != "stopped":
            return "ChildRunning" if child.state == "running" else "ChildRestarting"
        return "ChildStartError" if self.start(child) == "fail" else "ok"

    def delete_child(self, child_id: str) -> Answer:
        """Statement 40."""
        child = self.find(child_id)
        if child is None:
            return "ChildNotFound"
        if child.state != "stopped":
            return "ChildRunning" if child.state == "running" else "ChildRestarting"
        self.children.remove(child)
        return "ok"

    def advance(self, seconds: float) -> None:
        """Time passes; restarts that were put off happen when they are due."""
        end = self.now + seconds
        while not self.is_over:
            child = min(self.due, key=lambda child: self.due[child], default=None)
            if child is not None and self.due[child] <= self.now:
                is_alone = sum(at <= self.now for at in self.due.values()) == 1
                self.is_undefined |= self.setup.strategy == "dynamic" and not is_alone
                del self.due[child]
                self.do_restart(child)
            elif self.retries:
                self.try_again_restart(*self.retries.popleft())
            elif child is not None and self.due[child] <= end:
                self.pass_time(self.due[child])
            else:
                break
        self.pass_time(end)

    def try_again_restart(self, child: ModelChild, starts: int) -> None:
        """A start has failed; unless somebody else has started or stopped the child since, it counts."""
        if child.state == "restarting" and child.starts == starts:
            self.restart(child)

    def pass_time(self, to: float) -> None:
        """The window's clock stands still while anything is put off."""
        if not self.due:
            self.window_clock += to - self.now
        self.now = to

    # -- what follows from an end ---------------------------------------------------------------

    def child_exited(self, child: ModelChild, how: Ending) -> None:
        """`restart_child/3`: statements 51 to 54 and 96 to 98."""
        self.lines.append(f"exited {child.id} {how}")
        if child.restart == "permanent" or (child.restart == "transient" and how == "crash"):
            self.restart(child)
            return
        self.close(child)
        if child.significant and (
            self.setup.auto_shutdown == "any_significant"
            or (
                self.setup.auto_shutdown == "all_significant"
                and not any(other.significant and other.state != "stopped" for other in self.children)
            )
        ):
            self.finish()

    def restart(self, child: ModelChild) -> None:
        """`restart/2`: count, and give up or go on (statements 70 to 75)."""
        if not self.add_restart():
            self.close(child)
            self.gave_up_on = child.id
            self.finish()
            return
        child.state = "restarting"
        self.lines.append(f"restarting {child.id} {len(self.window)}")
        if self.setup.backoff:
            self.due.pop(child, None)
            self.due[child] = self.now + self.setup.backoff
        else:
            self.do_restart(child)

    def add_restart(self) -> bool:
        """`add_restart/1`: a restart that is exactly one period old still counts."""
        self.window = [at for at in self.window if self.window_clock - at <= self.setup.period]
        self.window.append(self.window_clock)
        return len(self.window) <= self.setup.restarts

    def do_restart(self, failed: ModelChild) -> None:
        """`restart(Strategy, Child, State)`: statements 59 to 68."""
        group = self.group(failed)
        for child in reversed(group):
            if child is not failed and child.state == "running":
                self.do_terminate(child)
                if child in self.children:
                    child.state = "restarting"
        for child in group:
            if child in self.children and self.start(child) == "fail":
                child.state = "restarting"
                self.retries.append((child, child.starts))
                return

    def group(self, failed: ModelChild) -> list[ModelChild]:
        """Whom the strategy restarts with the failed child."""
        if self.setup.strategy in ("one_for_one", "dynamic"):
            return [failed]
        first = 0 if self.setup.strategy == "one_for_all" else self.children.index(failed)
        return self.children[first:]

    def abandon_followers(self) -> None:
        """Whoever was to be restarted with a child that is now stopped for good stays down."""
        awaited = [child for leader in self.due for child in self.group(leader)]
        for child in self.children:
            if child.state == "restarting" and child not in awaited:
                child.state = "stopped"

    # -- one child --------------------------------------------------------------------------------

    def start(self, child: ModelChild) -> StartOutcome:
        """`do_start_child`: statements 18, 19, 55 and 58."""
        self.due.pop(child, None)
        child.starts += 1
        plan = self.plans.get(child.id)
        outcome = plan.popleft() if plan else "ok"
        if outcome == "ok":
            child.state = "running"
            self.lines.append(f"started {child.id} {child.starts}")
        elif outcome == "fail":
            child.state = "stopped"
            self.lines.append(f"failed {child.id} crash")
        else:
            self.close(child)
        return outcome

    def do_terminate(self, child: ModelChild) -> None:
        """`do_terminate` and `del_child`."""
        if child.state == "running":
            self.lines.append(f"stopped {child.id} shutdown")
        self.close(child)

    def close(self, child: ModelChild) -> None:
        """No start of this child is to come; a temporary or dynamic one is forgotten (statements 20, 45, 49)."""
        self.due.pop(child, None)
        child.state = "stopped"
        if child.restart == "temporary" or self.setup.strategy == "dynamic":
            self.children.remove(child)

    def finish(self) -> None:
        """`terminate/2`: the newest first (statements 83 and 92)."""
        self.is_over = True
        for child in reversed(list(self.children)):
            self.do_terminate(child)
