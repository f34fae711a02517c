"""A real `supervisor` of Erlang/OTP, driven by the scripts of `tests.actors.model` over standard input and output."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.actors.model import Delete, End, Model, Plan, Restart, Setup, Start, Step, Stop

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from tests.actors.model import RestartType, StartOutcome

DRIVER = Path(__file__).parent / "erlang" / "supervisor_driver.escript"
IDS = ("c", "a", "d", "b")
HOUR = 3600.0


@dataclass(frozen=True)
class Shown:
    """What a supervisor shows after a step; `lines` are without incarnations, which OTP does not count."""

    answer: str
    lines: tuple[str, ...]
    children: tuple[str, ...]
    counts: tuple[int, int, int]
    state: str


class Erlang:
    """One `escript` process that runs one supervisor after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def send(self, term: str) -> Shown:
        """Hand over one term, and take the line it is answered with."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(term + ".\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the driver ended at {term}"
        answer, lines, children, counts, state = line.rstrip("\n").split("|")
        specs, active, workers = map(int, counts.split())
        return Shown(answer, _split(lines), _split(children), (specs, active, workers), state)

    def set_up(self, setup: Setup) -> None:
        """Begin with a new supervisor."""
        self.send(
            f"{{setup, {setup.strategy}, {setup.restarts}, {setup.period:.0f}, {setup.auto_shutdown}}}",
        )

    def do(self, step: Step) -> Shown:
        """Carry out one step."""
        return self.send(_term(step))


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(";")) if text else ()


def _term(step: Step) -> str:
    match step:
        case Start(child_id, restart, plan, significant):
            return f"{{start, {child_id}, {restart}, {str(significant).lower()}, [{', '.join(plan)}]}}"
        case Stop(child_id):
            return f"{{stop, {child_id}}}"
        case Restart(child_id):
            return f"{{restart, {child_id}}}"
        case Delete(child_id):
            return f"{{delete, {child_id}}}"
        case Plan(child_id, plan):
            return f"{{plan, {child_id}, [{', '.join(plan)}]}}"
        case End(child_id, how):
            return f"{{'end', {child_id}, {how}}}"
    raise ValueError(f"Erlang's clock cannot be moved: {step}")


@contextmanager
def open_erlang(escript: str) -> Iterator[Erlang]:
    """Run the driver for the length of the block."""
    with subprocess.Popen([escript, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Erlang(process)
        finally:
            process.kill()


def compare_with_model(erlang: Erlang, setup: Setup, script: Sequence[Step]) -> None:
    """Run `script` on the model and in Erlang; raises AssertionError with the step at which they differ."""
    model = Model(setup)
    erlang.set_up(setup)
    for number, step in enumerate(script):
        expected = _model_shown(model, model.do(step))
        shown = erlang.do(step)
        assert shown == expected, f"step {number}, {step}: OTP shows {shown}, the model {expected}"
        if model.is_over:
            return
    model.finish()
    assert erlang.send("finish") == _model_shown(model, "ok")


def _model_shown(model: Model, answer: str) -> Shown:
    lines = [line.rpartition(" ")[0] if line.startswith("started") else line for line in model.lines]
    model.lines.clear()
    lines = [line for line in lines if not line.startswith("restarting")]
    if model.is_over:
        return Shown(answer, tuple(lines), (), (0, 0, 0), "shutdown")
    children = tuple(f"{child.id} {child.state}" for child in model.children)
    active = sum(child.state == "running" for child in model.children)
    return Shown(answer, tuple(lines), children, (len(children), active, len(children)), "running")


def random_script(dice: random.Random) -> tuple[Setup, list[Step]]:
    """Some setup, some children, and some trouble."""
    auto_shutdown = dice.choice(("never", "never", "any_significant", "all_significant"))
    setup = Setup(
        dice.choice(("one_for_one", "one_for_all", "rest_for_one")), dice.randint(0, 5), HOUR, 0.0, auto_shutdown
    )
    starts = [_random_start(dice, child_id, setup) for child_id in IDS]
    return setup, [*starts, *(_random_step(dice, setup) for _ in range(dice.randint(5, 25)))]


def _random_start(dice: random.Random, child_id: str, setup: Setup) -> Step:
    restart: RestartType = dice.choice(("permanent", "permanent", "transient", "temporary"))
    is_significant = setup.auto_shutdown != "never" and restart != "permanent" and dice.random() < 0.5
    return Start(child_id, restart, _random_plan(dice), is_significant)


def _random_plan(dice: random.Random) -> tuple[StartOutcome, ...]:
    return tuple(dice.choices(("ok", "fail", "ignore"), weights=(5, 2, 1), k=dice.randint(0, 3)))


def _random_step(dice: random.Random, setup: Setup) -> Step:
    child_id = dice.choice(IDS)
    steps: list[Callable[[], Step]] = [
        lambda: _random_start(dice, child_id, setup),
        lambda: Stop(child_id),
        lambda: Restart(child_id),
        lambda: Delete(child_id),
        lambda: Plan(child_id, tuple(dice.choices(("ok", "fail", "ignore"), weights=(3, 5, 1), k=dice.randint(1, 3)))),
        lambda: End(child_id, dice.choice(("normal", "shutdown", "crash", "crash"))),
    ]
    return dice.choices(steps, weights=(4, 2, 3, 1, 4, 8))[0]()
