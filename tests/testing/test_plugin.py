"""The fixtures, in pytest runs of their own: what is sound passes, each fault fails the test with its reason."""

from __future__ import annotations

import subprocess
import sys

import pytest

import omniactors.testing as kit

pytest_plugins = ["pytester"]

HEAD = """
import pytest, trio
from pytest_trio import trio_fixture
from typing import Any
from omniactors import *
from omniactors.testing import *
from tests.testing.support import Add, Boom, Counter, Total
"""


@pytest.fixture(params=["trio_mode", "marks"])
def project(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> pytest.Pytester:
    """A user's project: pytest-trio in its own mode, or by marks."""
    mode = "trio_mode = true" if request.param == "trio_mode" else ""
    pytester.makeini(f"[pytest]\n{mode}\nfilterwarnings = error\n")
    pytester.makeconftest('pytest_plugins = ["omniactors.testing.pytest_plugin"]')
    return pytester


def run(project: pytest.Pytester, tests: str) -> pytest.RunResult:
    project.makepyfile(HEAD + tests)
    return project.runpytest_inprocess("-q", "-p", "no:cacheprovider")


def test_sound_tests_pass(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
@pytest.mark.trio
async def test_tree(supervisor, notices, probe, autojump_clock):
    counter = await supervisor.start_child(Counter)
    mailer = await probe(Total, name="mailer")
    mailer.reply_with(3)
    assert await mailer.ref.ask(Total()) == 3
    await mailer.expect(Total)
    counter.tell_nowait(Boom())
    await notices.expect(ChildExited, path="Counter-1")
    await trio.sleep(1000)
    assert counter.incarnation == 2

@pytest.mark.trio
async def test_tasks_of_the_test_itself(supervisor, nursery):
    nursery.start_soon(trio.sleep_forever)
    await supervisor.start_child(Counter)

class Picky(Agent, topic="picky"):
    async def handle(self, event: EventEnvelope[Any]) -> int:
        if event.payload.content == "bad":
            raise Reject("it is bad")
        return 1

@pytest.mark.trio
async def test_agents(omni, dead_letters):
    omni.add(Picky)
    assert await omni.wait_result(await omni.publish("picky", "good")) == 1
    await omni.publish("picky", "bad")
    assert (await dead_letters.expect("picky")).error == "Reject: it is bad"
""",
    )
    result.assert_outcomes(passed=3)


def test_each_fault_fails_its_test(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
class Leaker(Actor[Any]):
    @on
    async def leak(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(trio.sleep_forever, name="the leak")

@pytest.mark.trio
async def test_crash(supervisor):
    counter = await supervisor.start_child(Counter)
    counter.tell_nowait(Boom())
    await wait_idle(supervisor)

@pytest.mark.trio
async def test_lost(supervisor, autojump_clock):
    plan = FaultPlan(at_message(Hang()))
    counter = await supervisor.start_child(faulty(Counter, plan))
    for _ in range(3):
        counter.tell_nowait(Add())
    await trio.testing.wait_all_tasks_blocked()

@trio_fixture
async def outer():
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()

class TestLeak:
    @pytest.fixture
    def notices(self, outer):  # of which the supervisor is made: the nursery outlives it
        return Notices()

    @pytest.mark.trio
    async def test_leak(self, supervisor, outer):
        leaker = await supervisor.start_child(Leaker)
        await leaker.ask(outer)

@pytest.mark.trio
async def test_gave_up(supervisor):
    counter = await supervisor.start_child(Counter)
    for _ in range(9):
        counter.tell_nowait(Boom())
    await trio.sleep_forever()

class Picky(Agent, topic="picky"):
    async def handle(self, event: EventEnvelope[Any]) -> int:
        raise Reject("it is bad")

@pytest.mark.trio
async def test_dead_letter(omni):
    omni.add(Picky)
    with pytest.raises(TaskFailed):
        await omni.wait_result(await omni.publish("picky", "bad"))
""",
    )
    result.assert_outcomes(failed=5)
    result.stdout.fnmatch_lines(
        [
            "*ChildExited(path='supervisor/Counter-1', incarnation=1*boom*",
            "*MessagesLost(path='supervisor/Counter-1', count=2)*",
            "*the leak (waits at *)*",
            "*GaveUp: supervisor 'supervisor' gave up on child 'Counter-1'*",
            "*picky (*): Reject: it is bad, rejected*",
        ]
    )


def test_the_kit_needs_no_pytest() -> None:
    code = "import sys; sys.modules.update(pytest=None, _pytest=None, pytest_trio=None); import omniactors.testing"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_names_of_the_kit_are_sorted_and_there() -> None:
    assert kit.__all__ == sorted(set(kit.__all__))
    assert all(hasattr(kit, name) for name in kit.__all__)
