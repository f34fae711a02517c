"""What is told of an error: its type everywhere, no password anywhere, and never so much or so little that it hurts."""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import Agent, EventEnvelope, OmniActors, Reject, RetryPolicy, TaskFailed
from omniactors.agents.attempt import MAX_MESSAGE, error_info
from omniactors.redaction import redact
from tests.agents.support import running, watching

if TYPE_CHECKING:
    from collections.abc import Callable


class Failing(Agent, topic="t", name="failing", retry=RetryPolicy(max_attempts=1)):
    error: BaseException

    async def handle(self, event: EventEnvelope[Any]) -> None:
        raise type(self).error


async def fate(omni: OmniActors, error: BaseException) -> TaskFailed:
    Failing.error = error
    with pytest.raises(TaskFailed) as failed:
        await omni.wait_result(await omni.publish("t", 1))
    return failed.value


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("nope"), "KeyError: 'nope'"),
        (ValueError(), "ValueError"),
        (TimeoutError("late"), "TimeoutError: late"),
        (Reject("not today"), "Reject: not today"),
        (ExceptionGroup("many", [OSError("a"), OSError("b")]), "ExceptionGroup: many (2 sub-exceptions)"),
        (ExceptionGroup("one", [OSError("a")]), "OSError: a"),
    ],
)
async def test_an_error_is_told_with_its_type_everywhere(omni: OmniActors, error: BaseException, text: str) -> None:
    omni.add(Failing)
    with trio.fail_after(20):
        async with omni, watching(omni, "task.*") as watcher:
            failed = await fate(omni, error)
            kind = text.partition(":")[0]
            assert (failed.error, failed.error_type, failed.attempts) == (text, kind, 1)
            assert text in str(failed)
            assert kind in failed.traceback
            (record,) = await omni.results.of_task(failed.task_id)
            assert (record.error, record.error_type, record.traceback) == (text, kind, failed.traceback)
            (letter,) = await omni.streams.dlq("t")
            assert (letter.error, letter.error_type) == (text, kind)
            (told,) = await watcher.wait_for("task.failed")
            (dead,) = await watcher.wait_for("task.dead_lettered")
            assert (told.data["error"], dead.data["error"]) == (text, text)
        await omni.shutdown()


async def test_content_that_cannot_be_read_is_told_with_its_type() -> None:
    class Strict(Agent, topic="t", name="strict"):
        async def handle(self, event: EventEnvelope[int]) -> None:
            pass

    async with running(Strict) as omni:
        with pytest.raises(TaskFailed, match=r"EntryError: the entry is no event .*Expected `int`, got `str`"):
            await omni.wait_result(await omni.publish("t", "x"))


def test_a_failed_task_survives_pickling() -> None:
    failed = TaskFailed("id", "agent", "KeyError: 'x'", 3, error_type="KeyError", traceback="Traceback")
    again = pickle.loads(pickle.dumps(failed))  # noqa: S301 -- our own
    assert vars(again) == vars(failed)
    assert str(again) == "task id failed at agent 'agent' after 3 attempts: KeyError: 'x'"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Exiting(Exception):
    def __str__(self) -> str:
        raise SystemExit


class Wrong(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307 -- the point


class Talker(Exception):
    def __str__(self) -> str:
        return "x" * 50_000_000


def deep(levels: int) -> BaseException:
    error: BaseException = ValueError("deepest")
    for _ in range(levels):
        outer = ValueError("outer")
        outer.__cause__, error = error, outer
    return error


def recursive() -> BaseException:
    try:
        return recursive()
    except RecursionError as error:
        return error


@pytest.mark.parametrize(
    "make", [Mute, Exiting, Wrong, Talker, lambda: deep(3_000), recursive], ids=lambda make: make.__name__
)
def test_an_error_that_cannot_be_told_well_is_told_as_well_as_it_can(make: Callable[[], BaseException]) -> None:
    info = error_info(make())
    assert info.text.startswith(f"{info.type}: ")
    assert len(info.text) + len(info.traceback) < 40_000


# -- passwords -----------------------------------------------------------------------------------

SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"cannot connect to redis://bob:{SECRET}@db:6379/0: refused",
        f"cannot connect to redis://:p@{SECRET}@db:6379/0",
        f"https://{SECRET}@host/hook answered 500",
        f"GET http://host/x?a=1&token={SECRET}&b=2",
        f"GET http://host/x?api_key={SECRET}#top",
        f"connect(host='db', password='{SECRET}')",
        f"client_secret={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"proxy-authorization: Basic {SECRET}",
        f"headers={{'Authorization': 'Bearer {SECRET}', 'Accept': '*/*'}}",
        f'{{"password": "{SECRET}", "user": "bob"}}',
        f"{{'x-api-key': b'{SECRET}'}}",
        f"Set-Cookie: session={SECRET}; Path=/",
        f"redis://:un/{SECRET}@db:6379/0",
        f"redis://bob:un#{SECRET}@db:6379/0",
        f"https://u:{SECRET}'x@h/",
        f"[('authorization', 'Bearer {SECRET}'), ('accept', '*/*')]",
        f"[(b'Authorization', b'Basic {SECRET}')]",
        f"X-Auth-Token: {SECRET}",
        f"secret: {SECRET}",
        f"connect(password=b'{SECRET}')",
        f'{{"password": "un\\"{SECRET}"}}',
        f'body: "{{\\"password\\": \\"{SECRET}\\"}}"',
        f"refused: Bearer {SECRET}.abc",
        f"httpx.get(url, auth=('bob', '{SECRET}'))",
    ],
)
def test_a_password_in_a_text_is_not_shown(text: str) -> None:
    assert SECRET not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'password'",
        "unexpected token: '}' at 5",
        "max_tokens=4096 is too many tokens",
        "https://host/path?page=2",
        "mail from bob@example.com",
        "compass=north",
        "http://host:8080/path?mail=a@b.c",
        "http://[::1]:8080/a@b",
        "https://host/@bob",
        "missing 'password', 'user'",
        "basic knowledge",
        "at $.content.token: Expected `str`",
        "",
    ],
)
def test_what_is_no_password_is_left_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_to_look_for_passwords_takes_no_time_that_grows_with_the_square() -> None:
    for text in (
        "a-" * 100_000,
        "://" * 60_000,
        "token" * 40_000,
        "'token'" * 20_000,
        "password:" * 20_000,
        "://a:" * 40_000,
        'password="\\' * 20_000,
        "\\" * 100_000 + "token",
        "('token" * 20_000,
    ):
        began = time.process_time()
        redact(text)
        assert time.process_time() - began < 2


def test_a_password_in_a_url_that_is_cut_is_not_shown() -> None:
    for room in range(MAX_MESSAGE - 60, MAX_MESSAGE):
        assert SECRET[:3] not in error_info(ValueError("x" * room + f" https://bob:{SECRET}@host/")).message


async def test_no_password_of_an_error_reaches_anybody(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Failing) as omni, watching(omni, "*.*") as watcher:
        url = f"postgres://bob:{SECRET}@db/x"
        error = ConnectionError(f"no route to {url}")
        error.__cause__ = OSError(url)
        failed = await fate(omni, error)
        (letter,) = await omni.streams.dlq("t")
        await watcher.wait_for("task.dead_lettered")
    shown = [str(failed), failed.traceback, letter.error, letter.traceback, caplog.text, repr(watcher.seen)]
    assert all("postgres://***@db/x" in text for text in shown[:5])
    assert not any(SECRET in text for text in shown)
