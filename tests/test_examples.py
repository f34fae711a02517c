"""The examples do what they say, each as a process of its own in an empty folder.

The quickstart and the watcher have tests of their own, beside their subjects.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.cli.command import Finished, command, environment, running
from tests.source import ROOT

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = ROOT / "examples"
MAX_LINES = 80
COUNTS = re.compile(r"^(\d+) published = (\d+) indexed \+ (\d+) rejected\nreport: (.+)\n$")


def start(example: str, *arguments: object, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLES / example), *map(str, arguments)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(example: str, *arguments: object, folder: Path) -> Finished:
    process = start(example, *arguments, folder=folder)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return Finished(process.returncode, out, err)


def counts(done: Finished) -> tuple[int, int, int]:
    """How many files were published, indexed and rejected; there is no other output."""
    assert done.code == 0, done.stderr
    match = COUNTS.match(done.stdout)
    assert match, done.stdout
    published, indexed, rejected = (int(number) for number in match.group(1, 2, 3))
    return published, indexed, rejected


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_an_example_is_a_short_python_file(path: Path) -> None:
    if path.name != "__pycache__":
        assert path.suffix == ".py"
        assert len(path.read_text().splitlines()) < MAX_LINES


@pytest.fixture
def odd_files(tmp_path: Path) -> Path:
    """Six text files, one of them empty and one a copy, two that are no text, and what is no file at all."""
    folder = tmp_path / "odd files"
    (folder / "sub" / "__pycache__").mkdir(parents=True)
    (folder / "sub" / "__pycache__" / "made.pyc").write_bytes(b"\0")
    (folder / ".hidden").write_text("hidden")
    (folder / "broken").symlink_to("nowhere")
    os.mkfifo(folder / "fifo")
    (folder / "empty.txt").touch()
    (folder / "pipe|in name.md").write_text("apple banana apple\n")
    (folder / "copy.txt").write_text("apple banana apple\n")
    (folder / "sub" / "new\nline.txt").write_text("zażółć APPLE", encoding="utf-8")
    (folder / "big.txt").write_text("cherry " * 200_000)
    (folder / "binary").write_bytes(b"PNG\xff\x00")
    (folder / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (folder / "sub" / "plain.txt").write_text("banana\n")
    return folder


def test_the_pipeline_accounts_for_every_file_and_says_why_it_refused_one(tmp_path: Path, odd_files: Path) -> None:
    done = run("file_pipeline.py", odd_files, "--report", "out.md", folder=tmp_path)
    assert counts(done) == (8, 6, 2)
    report = (tmp_path / "out.md").read_text()
    assert "8 published, 6 indexed, 2 rejected" in report
    assert "5 different contents" in report
    for row in ("| cherry | 200000 | 1 |", "| apple | 5 | 3 |", "| banana | 3 | 3 |", "| zażółć | 1 | 1 |"):
        assert row in report
    assert "| pipe&#124;in name.md | " in report
    assert "| sub/new line.txt | " in report
    assert "| binary | Reject: it is not UTF-8: invalid start byte at byte 3 |" in report
    assert "| latin.txt | Reject: it is not UTF-8: invalid start byte at byte 2 |" in report
    assert "hidden" not in report


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_the_pipeline_rejects_what_it_may_not_read(tmp_path: Path, odd_files: Path) -> None:
    (odd_files / "sub" / "plain.txt").chmod(0)
    assert counts(run("file_pipeline.py", odd_files, folder=tmp_path)) == (8, 5, 3)
    assert "| sub/plain.txt | it cannot be read: Permission denied |" in (tmp_path / "file-report.md").read_text()


def test_the_pipeline_runs_over_the_standard_library_by_default(tmp_path: Path) -> None:
    for _ in range(2):  # what the first run left in the store does not disturb the second
        published, indexed, rejected = counts(run("file_pipeline.py", "--limit", 60, folder=tmp_path))
        assert published == 60 == indexed + rejected
        assert indexed >= 50
    assert "| self | " in (tmp_path / "file-report.md").read_text()


def test_a_run_after_a_killed_one_counts_only_its_own_files(tmp_path: Path, odd_files: Path) -> None:
    killed = start("file_pipeline.py", "--limit", 2000, folder=tmp_path)
    deadline = time.monotonic() + 60
    while len(stored_results(tmp_path, "file_stages.Scanner@file.uploaded")) < 10:
        assert time.monotonic() < deadline, "it never got anywhere"
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert counts(run("file_pipeline.py", odd_files, folder=tmp_path)) == (8, 6, 2)


def stored_results(folder: Path, agent: str) -> list[Any]:
    """The result records of an agent, read from the store as docs/delivery.md describes it; [] before there is one."""
    try:
        connection = sqlite3.connect(f"file:{folder / '.omniactors' / 'omniactors.db'}?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return []
    try:
        return [json.loads(row[0]) for row in connection.execute("SELECT record FROM result WHERE agent = ?", (agent,))]
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def test_the_pipeline_refuses_what_is_no_folder(tmp_path: Path) -> None:
    done = run("file_pipeline.py", tmp_path / "nope", folder=tmp_path)
    assert (done.code, done.stdout) == (2, "")
    assert "must be a folder" in done.stderr


def test_the_embedded_supervisor_restarts_what_crashes_and_the_app_goes_on(tmp_path: Path) -> None:
    done = run("embedded.py", folder=tmp_path)
    assert (done.code, done.stderr) == (0, "")
    replies = [line for line in done.stdout.splitlines() if ": " in line and not line.startswith("--")]
    assert [reply.rpartition(": ")[2] for reply in replies if reply.startswith("tea: ")] == ["1", "2", "3", "1", "2"]
    assert "c0ffee: 'c0ffee' is no word" in replies
    assert "ended: crash: ValueError" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("after 2 lives")


async def test_the_greeter_answers_other_processes(tmp_path: Path) -> None:
    publish = ("task", "publish", "--topic", "greet.user", "--wait", "30")
    async with running(tmp_path, str(EXAMPLES / "greeter.py")) as runner:
        assert runner.document["agents"] == ["greeter", "shouter"]
        done = await command(tmp_path, *publish, "--content", '{"name": "Alice"}')
        assert (done.code, json.loads(done.stdout)) == (0, {"greeting": "Hello Alice"})
        for content, sentence in (('{"name": "A", "language": "xx"}', "no greeting in 'xx'"), ("{}", "name")):
            done = await command(tmp_path, *publish, "--content", content)
            assert done.code == 1
            assert sentence in done.stderr
        reply = ("--reply-to", "greet.shout", "--content", '{"name": "Bob", "language": "de"}')
        assert (await command(tmp_path, *publish, *reply)).code == 0
        with trio.fail_after(20):
            while not (records := stored_results(tmp_path, "shouter")):  # noqa: ASYNC110 -- another process writes it
                await trio.sleep(0.02)
    assert [record["result"] for record in records] == ["HALLO BOB!"]
