"""`run` and the module it is given: what it picks, and how it refuses."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import trio

from omniactors import OmniActors
from omniactors import __version__ as omniactors_version
from omniactors.cli.loading import load
from tests.cli.command import Finished, command, environment, omniactors, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Cli

AGENT = """
from omniactors import Agent

class Mine(Agent, topic="t"):
    async def handle(self, event):
        return 1
"""

TYPED_AGENT = """
from __future__ import annotations

import msgspec
from omniactors import Agent, EventEnvelope, OmniActors

class Part(msgspec.Struct):
    number: int

class Content(msgspec.Struct):
    number: int
    parts: list[Part] = []

class Mine(Agent, topic="t"):
    async def handle(self, event: EventEnvelope[Content]) -> int:
        return event.payload.content.number + 1

if __name__ == "__main__":
    print(OmniActors("memory://").add(Mine))
"""
"""An agent whose types are looked up by the name of their module."""


@pytest.fixture(autouse=True)
def _imports_end_with_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the test's own files where they were loaded into this process."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x = 1\n", "error: module.py has no agents"),
        ("from other import Mine\n", "error: module.py has no agents"),
        ("from omniactors import OmniActors\na = OmniActors()\nb = OmniActors()\n", "more than one OmniActors (a, b)"),
    ],
)
def test_a_module_without_one_clear_program_is_refused(cli: Cli, tmp_path: Path, source: str, sentence: str) -> None:
    (tmp_path / "other.py").write_text(AGENT)
    (tmp_path / "module.py").write_text(source)
    done = cli("run", "module.py")
    assert (done.code, done.stdout) == (2, "")
    assert sentence in done.stderr


def test_an_error_in_the_module_shows_the_users_own_frames(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("def break_it():\n    raise RuntimeError('my own fault')\n\nbreak_it()\n")
    done = omniactors(tmp_path, "run", "module.py")
    assert done.code == 1
    assert "module.py" in done.stderr
    assert "in break_it" in done.stderr
    assert "importlib" not in done.stderr
    assert "cli/loading" not in done.stderr
    assert done.stderr.endswith("error: module.py could not be imported: RuntimeError: my own fault\n")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("class A(:\n", "    class A(:\n            ^\n"),
        ("from omniactors import Agent\nclass A(Agent, topic='a', retires=3):\n    pass\n", "retires=3"),
    ],
)
def test_a_mistake_in_the_module_shows_its_line_and_no_frame_of_ours(
    cli: Cli, tmp_path: Path, source: str, shown: str
) -> None:
    (tmp_path / "module.py").write_text(source)
    done = cli("run", "module.py")
    assert shown in done.stderr
    assert "omniactors/" not in done.stderr
    assert "importlib" not in done.stderr


def test_an_agent_that_does_not_start_is_named_with_its_own_frames(cli: Cli, tmp_path: Path) -> None:
    source = """
import trio
from omniactors import Agent

class Lifer(Agent, topic="t", name="lifer"):
    async def on_start(self):
        async with trio.open_nursery():
            raise ConnectionError("no database")

    async def handle(self, event):
        return None
"""
    (tmp_path / "module.py").write_text(source)
    done = cli("run", "module.py")
    assert done.code == 1
    assert 'module.py", line 8, in on_start' in done.stderr
    assert "omniactors/" not in done.stderr.partition("Traceback")[2]
    assert done.stderr.endswith("error: agent lifer did not start: ConnectionError: no database\n")


def test_a_missing_import_of_the_module_is_the_modules_error(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import no_such_package\n")
    done = cli("run", "module")
    assert done.code == 1
    assert "No module named 'no_such_package'" in done.stderr


@pytest.mark.parametrize("call", ["sys.exit()", "sys.exit(4)", "sys.exit('no key')"])
def test_a_module_that_exits_is_told_and_exits_1(cli: Cli, tmp_path: Path, call: str) -> None:
    (tmp_path / "module.py").write_text(f"import sys\n{call}\n")
    done = cli("run", "module.py")
    said = call.replace("()", "(None)")
    assert done == Finished(1, "", f"error: module.py called {said} while it was imported, so nothing runs\n")


def test_a_package_is_no_file_and_a_part_that_is_missing_no_module(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("x = 1\n")
    assert "error: package has no agents" in cli("run", "package").stderr
    done = cli("run", "package.none")
    assert done == Finished(2, "", "error: there is no file and no module 'package.none'\n")


@pytest.mark.parametrize(
    ("file", "agent"),
    [
        ("my-agents.py", "my-agents.Mine@t"),
        ("two words.v2.py", "two words.v2.Mine@t"),
        ("script", "script.Mine@t"),
        ("json.py", "json.Mine@t"),
    ],
)
def test_a_file_of_any_name_is_loaded_and_its_agents_are_named_after_it(tmp_path: Path, file: str, agent: str) -> None:
    (tmp_path / file).write_text(AGENT)
    program = load(str(tmp_path / file))
    assert program.origin == str(tmp_path / file)
    assert [OmniActors("memory://").add(cls) for cls in program.agents] == [agent]


async def test_a_file_named_as_a_module_in_use_runs_as_it_does_under_python(tmp_path: Path) -> None:
    (tmp_path / "trio.py").write_text(TYPED_AGENT)
    python = await trio.run_process(
        [sys.executable, "-P", "trio.py"], cwd=tmp_path, env=environment(), capture_stdout=True
    )
    async with running(tmp_path, "trio.py") as runner:
        assert runner.document["agents"] == python.stdout.decode().split()
        done = await command(tmp_path, "task", "publish", "-t", "t", "-c", '{"number": 6}', "--wait", "20")
    assert (done.code, done.stdout) == (0, "7\n")


async def test_python_m_omniactors_is_the_command_line(tmp_path: Path) -> None:
    done = await trio.run_process(
        [sys.executable, "-m", "omniactors", "--version"], cwd=tmp_path, env=environment(), capture_stdout=True
    )
    assert done.stdout.decode() == f"omniactors {omniactors_version}\n"
