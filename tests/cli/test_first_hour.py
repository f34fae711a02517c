"""The command line as a new user meets it: wrong names, empty stores, odd terminals, full disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import Agent, EventEnvelope, OmniActors, Reject
from tests.cli.command import COMMAND, Finished, environment, running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cli.conftest import Cli

AGENTS = """
from contextlib import asynccontextmanager
from pathlib import Path
import trio
from omniactors import Agent, Backoff, EventEnvelope, RetryPolicy, on
from omniactors.agents import runtime

runtime.AGENT_BACKOFF = Backoff(initial=0.001, maximum=0.01)

class Greeter(Agent, topic="greet.user", name="greeter"):
    async def handle(self, event: EventEnvelope[dict]) -> dict:
        return {"greeting": "Hello " + event.payload.content["name"]}

class Slow(Agent, topic="slow", name="slow"):
    async def handle(self, event: EventEnvelope[int]) -> int:
        await trio.sleep(event.payload.content)
        return 1

class Frail(Agent, topic="frail", name="frail"):
    async def handle(self, event: EventEnvelope[int]) -> int:
        return event.payload.content
    @asynccontextmanager
    async def lifespan(self):
        if Path("broken").exists():
            raise OSError("no disk")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch_out)
            yield
            nursery.cancel_scope.cancel()
    async def watch_out(self):
        while not Path("broken").exists():
            await trio.sleep(0.02)
        raise OSError("no disk")
"""

READING = [
    ("agent", "list"),
    ("streams", "list"),
    ("bus", "list"),
    ("streams", "dlq", "-t", "x"),
    ("config", "list"),
    ("metrics",),
    ("doctor",),
    ("health",),
    ("info",),
    ("task", "result", "--task-id", "x"),
    ("config", "get", "x"),
    ("agent", "restart", "x"),
    ("agent", "pause", "x"),
    ("agent", "delete", "x"),
    ("agent", "delete-topic", "x"),
    ("streams", "purge", "-t", "x"),
    ("streams", "replay", "-t", "x"),
    ("config", "delete", "x"),
    ("watch",),
]


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_a_command_that_reads_creates_nothing_and_names_the_store(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = cli(*arguments)
    assert list(tmp_path.iterdir()) == []
    assert f"sqlite:///{tmp_path}/.omniactors/omniactors.db" in done.stdout + done.stderr


def test_a_link_that_leads_nowhere_is_left_so(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "work.db").symlink_to(tmp_path / "none" / "work.db")
    for arguments in READING:
        assert "Traceback" not in cli(*arguments, OMNIACTORS_URL="sqlite:///work.db").stderr
    assert [path.name for path in tmp_path.iterdir()] == ["work.db"]


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_json_is_one_document_whether_it_works_or_not(cli: Cli, arguments: tuple[str, ...]) -> None:
    if arguments == ("watch",):
        return
    done = cli(*arguments, "-f", "json")
    assert isinstance(json.loads(done.stdout), dict | list)
    done = cli(*arguments, "-f", "json", OMNIACTORS_URL="sqlite:////proc/none/work.db")
    assert isinstance(json.loads(done.stdout), dict | list)
    assert done.code in ((0,) if arguments == ("info",) else (1, 3))


@pytest.mark.parametrize(
    "arguments",
    [(), *(arguments[:2] if len(arguments) > 1 else arguments for arguments in READING), ("run",), ("task", "publish")],
    ids=" ".join,
)
def test_minus_h_shows_the_help(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, "-h")
    assert done.code == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (("agnet", "list"), "agent"),
        (("agent", "lst"), "list"),
        (("doctr",), "doctor"),
        (("task", "publish", "--tpic", "x"), "--topic"),
        (("doctor", "--fromat", "json"), "--format"),
    ],
    ids=str,
)
def test_a_slip_of_the_hand_is_told_with_the_near_name(cli: Cli, arguments: tuple[str, ...], near: str) -> None:
    done = cli(*arguments)
    assert done.code == 2
    assert near in done.stderr
    done = cli(*arguments, "--format", "json")
    assert (done.code, done.document()["type"]) == (2, "UsageError")
    assert near in done.document()["error"]


async def beside(cli: Cli, *arguments: str, **settings: str) -> Finished:
    """As `cli`, while a runner is followed: a command has a trio run of its own."""
    return await trio.to_thread.run_sync(lambda: cli(*arguments, **settings))


async def test_it_is_said_that_nobody_reads_a_topic_and_which_one_was_meant(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENTS)
    async with running(tmp_path, "agents.py"):
        done = await beside(cli, "task", "publish", "-t", "greet.usr", "-c", "{}", "--wait", "0.1")
        assert done.code == 1
        assert "nobody reads greet.usr, and no agent ever has; did you mean 'greet.user'?" in done.stderr
        assert "it is pending: queued at greet.usr" in done.stderr
        found = (await beside(cli, "doctor")).stdout
        assert "nobody reads greet.usr" in found
        assert "did you mean 'greet.user'?" in found
        done = await beside(cli, "task", "publish", "-t", "greet.user", "-c", '{"name": "A"}', "--wait", "9")
        assert (done.code, "nobody" in done.stderr) == (0, False)
    done = await beside(cli, "task", "publish", "-t", "greet.user", "-c", "{}", "--wait", "0", "-f", "json")
    assert done.document()["hint"] == "no running process reads greet.user at the moment"


async def test_unknown_queued_running_and_expired_tasks_are_told_apart(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENTS)

    async def state(task_id: str) -> str:
        done = await beside(cli, "task", "result", "--task-id", task_id, "-f", "json", OMNIACTORS_RESULT_TTL="0.5")
        assert done.code == (0 if done.document()["status"] == "success" else 1)
        return str(done.document().get("state", done.document()["status"]))

    async def publish(*arguments: str) -> str:
        return (await beside(cli, "task", "publish", *arguments)).stdout.strip()

    async with running(tmp_path, "agents.py", OMNIACTORS_RESULT_TTL="0.5"):
        queued, running_, late = [
            await publish(*arguments)
            for arguments in (
                ("-t", "nobody", "-c", "1"),
                ("-t", "slow", "-c", "60"),
                ("-t", "x", "-c", "1", "--delay", "99"),
            )
        ]
        quick = await publish("-t", "greet.user", "-c", '{"name": "A"}')
        with trio.fail_after(20):
            while await state(quick) != "expired":  # noqa: ASYNC110 -- another process' clock
                await trio.sleep(0.1)
        states = {task_id: await state(task_id) for task_id in (queued, running_, late, "0000", str(os.getpid()))}
        assert list(states.values()) == ["queued", "running", "scheduled", "unknown", "unknown"]
        text = await beside(cli, "task", "result", "--task-id", "0000")
        assert "it is unknown in sqlite:///" in text.stderr
        text = await beside(cli, "task", "result", "--task-id", running_)
        assert "running at slow for slow" in text.stderr


async def test_an_agent_that_gave_up_is_an_error_everywhere_and_comes_back_on_demand(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENTS + "\nruntime.CURE = Backoff(initial=3600, maximum=3600)\n")
    async with running(tmp_path, "agents.py") as runner:
        assert (await beside(cli, "health", "-f", "json")).document()["status"] == "ok"
        (tmp_path / "broken").touch()
        await runner.logged("agent frail gave up: OSError: no disk")
        with trio.fail_after(20):
            while (await beside(cli, "health")).code != 1:  # noqa: ASYNC110 -- another process reports
                await trio.sleep(0.1)
        for words in (("health",), ("doctor",), ("agent", "list"), ("agent", "list", "-f", "compact")):
            done = await beside(cli, *words)
            assert done.code == 1, words
            assert "frail" in done.stdout
            assert "OSError: no disk" in done.stdout
        (listed,) = (await beside(cli, "agent", "list", "-f", "json")).document()["frail"]
        assert listed["gave_up"] == "OSError: no disk"
        (tmp_path / "broken").unlink()
        done = await beside(cli, "agent", "restart", "frail")
        assert done.stderr.startswith("frail is tried again in 1 process")
        done = await beside(cli, "task", "publish", "-t", "frail", "-c", "7", "--wait", "20", "-f", "json")
        assert done.document()["result"] == 7
        assert (await beside(cli, "agent", "restart", "frail")).stderr.startswith("frail has given up nowhere")


async def test_a_renamed_agent_is_named_by_doctor_and_deleted(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENTS)
    async with running(tmp_path, "agents.py"):
        done = await beside(cli, "agent", "delete", "greeter")
        assert done.code == 1
        assert "is in use by process" in done.stderr
    (tmp_path / "agents.py").write_text(AGENTS.replace('name="greeter"', 'name="welcomer"'))
    async with running(tmp_path, "agents.py"):
        name = '{"name": "A"}'
        await beside(cli, "task", "publish", "-t", "greet.user", "-c", name, "--wait", "20")
        found = (await beside(cli, "doctor")).stdout
        assert "greeter on greet.user (not for" in found
        assert "1 event waiting" in found
        assert (await beside(cli, "agent", "delete", "greeter")).code == 0
        found = (await beside(cli, "doctor", "-f", "json")).document()
        assert {finding["status"] for finding in found if finding["check"] == "unserved agents"} == {"ok"}
        (stream,) = [
            each
            for each in (await beside(cli, "streams", "list", "-f", "json")).document()
            if each["topic"] == "greet.user"
        ]
        assert (stream["length"], [group["agent"] for group in stream["groups"]]) == (0, ["welcomer"])
    await beside(cli, "task", "publish", "-t", "gone", "-c", "1")
    done = await beside(cli, "agent", "delete-topic", "gone", "-f", "json")
    assert done.document() == {"topic": "gone", "deleted": 1}
    done = await beside(cli, "agent", "delete-topic", "gone")
    assert (done.code, "there is no topic 'gone'" in done.stderr) == (1, True)


async def test_a_failing_handler_is_told_on_the_terminal(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENTS)
    async with running(tmp_path, "agents.py") as runner:
        await beside(cli, "task", "publish", "-t", "greet.user", "-c", "{}")
        await runner.logged("agent greeter: KeyError: 'name'")
        await runner.logged("attempt 1 of 4, next in ")
        assert "Traceback" not in runner.log.read_text()


# -- odd terminals ----------------------------------------------------------------------------------


class Refuser(Agent, topic="odd", name="refuser → ✓"):
    async def handle(self, event: EventEnvelope[str]) -> None:
        raise Reject(event.payload.content)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with names and contents beyond ASCII; it is only read."""
    folder = tmp_path_factory.mktemp("odd")

    async def fill() -> None:
        omni = OmniActors(f"sqlite:///{folder}/.omniactors/omniactors.db")
        omni.add(Refuser)
        async with omni:
            await omni.publish("odd", "Zoë → ✓ 🐍")
            await omni.config.set("key", {"größe": "→"})
            with trio.fail_after(20):
                while not await omni.streams.dlq("odd"):  # noqa: ASYNC110 -- the store tells nobody
                    await trio.sleep(0.01)

    trio.run(fill)
    return folder


SHOWING = [
    ("agent", "list"),
    ("streams", "list"),
    ("streams", "dlq", "-t", "odd"),
    ("streams", "dlq", "-t", "odd", "-f", "json"),
    ("config", "get", "key"),
    ("doctor",),
    ("agent", "list", "-x"),
]


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"COLUMNS": "20"},
        {"COLUMNS": "1", "TERM": "dumb"},
    ],
    ids=str,
)
def test_no_terminal_ends_a_command_in_a_traceback(odd: Path, settings: dict[str, str]) -> None:
    for arguments, (code, out, err) in zip(SHOWING, one_after_another(odd, SHOWING, settings), strict=True):
        assert b"Traceback" not in err, (arguments, err.decode("utf-8", "replace"))
        assert code == (2 if "-x" in arguments else 0), arguments
        if "json" in arguments:
            text = json.dumps(json.loads(out), ensure_ascii=False)
            assert "→" in text


IN_ONE_PROCESS = """
import json, sys
from omniactors.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["omniactors", *arguments]
    try:
        main()
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            stream.buffer.write(b"\\0%d\\0" % (end.code or 0))
            stream.flush()
"""


def one_after_another(
    folder: Path, commands: Sequence[tuple[str, ...]], settings: dict[str, str]
) -> list[tuple[int, bytes, bytes]]:
    """How each of these commands ends: its code, stdout and stderr; they share a process, which is slow to start."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", IN_ONE_PROCESS, json.dumps(commands)],
        cwd=folder,
        env=environment(**settings),
        capture_output=True,
        check=True,
        timeout=60,
    )
    *outs, _ = done.stdout.split(b"\0")
    *errs, _ = done.stderr.split(b"\0")
    return [(int(code), out, err) for out, code, err in zip(outs[::2], outs[1::2], errs[::2], strict=True)]


FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full on this system")


def into(folder: Path, *arguments: str, stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE) -> Any:
    """How a command ends with these streams, and what it says on stderr."""
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment(), stdout=stdout, stderr=stderr, check=False, timeout=60
    )
    return done.returncode, done.stderr


@needs_full
@pytest.mark.parametrize(
    "arguments", [("config", "list"), ("doctor", "-f", "json"), ("--help",), ("--version",)], ids=" ".join
)
def test_output_that_cannot_be_written_has_an_exit_code_of_its_own(odd: Path, arguments: tuple[str, ...]) -> None:
    with FULL.open("w") as full:
        ended = into(odd, *arguments, stdout=full)
    assert ended == (74, b"error: stdout cannot be written: No space left on device\n")


@needs_full
def test_notices_that_cannot_be_written_change_nothing(odd: Path) -> None:
    with FULL.open("w") as full:
        assert into(odd, "task", "result", "--task-id", "x", stderr=full)[0] == 1
        assert into(odd, "doctor", stderr=full)[0] == 0


def test_a_dotenv_of_a_windows_editor_is_read(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"\xef\xbb\xbfOMNIACTORS_URL=sqlite:///here.db\r\nOMNIACTORS_GRACE=5\r\n")
    done = cli("info", "-f", "json")
    assert done.document()["store"] == f"sqlite:///{tmp_path}/here.db"
    for text in ("utf-16", "utf-16-le"):
        file.write_text("OMNIACTORS_TOKEN=s3cret\n", encoding=text)
        done = cli("info")
        assert done.code == 2
        assert "save it as UTF-8" in done.stderr
        assert "s3cret" not in done.stderr
    file.write_bytes("# grün\nOMNIACTORS_TOKEN=gehe\xefm\n".encode("latin-1"))
    done = cli("info")
    assert (done.code, "is not UTF-8 in line 1" in done.stderr) == (2, True)


def test_a_file_of_a_newer_version_or_of_nobody_is_a_sentence_for_every_command(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "bad.db"
    file.write_bytes(b"this is no database" * 100)
    for arguments in READING:
        done = cli(*arguments, OMNIACTORS_URL=f"sqlite:///{file}")
        assert "Traceback" not in done.stderr
        if arguments != ("info",):
            assert "is no SQLite database" in done.stdout + done.stderr, arguments
            assert done.code in {1, 3}, arguments
