"""Ordering keys as text, the same in every process; how many events an agent may hold."""

from __future__ import annotations

import datetime as dt
import enum
import subprocess
import sys
import uuid
from typing import Any

import msgspec
import pytest

from omniactors import EventEnvelope, Mailbox, PayloadBase
from omniactors.agents.options import AgentOptions


class Colour(enum.Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: int


def ordering(key: Any, content: Any = None) -> str | None:
    return AgentOptions(key=key).ordering_of(EventEnvelope(topic="t", payload=PayloadBase(content=content)))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (1, "1"),
        (1.0, "1.0"),
        ("1", '"1"'),
        (True, "true"),
        (("a", 1, None), '["a",1,null]'),
        (["a", 1, None], '["a",1,null]'),
        ({"b": 1, "a": 2}, '{"a":2,"b":1}'),
        (Colour.RED, '"red"'),
        (Point(3), '{"x":3}'),
        (uuid.UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
        (dt.date(2027, 1, 2), '"2027-01-02"'),
        (frozenset({"b", "a"}), '["a","b"]'),
    ],
)
def test_a_key_is_its_json_text(key: object, text: str) -> None:
    assert ordering(lambda event: key) == text
    assert ordering("at.last", {"at": {"last": key}}) == text


def test_no_key_is_no_text() -> None:
    assert ordering(lambda event: None) is None
    assert ordering("missing", {"at": 1}) is None
    assert ordering(None, 1) is None


@pytest.mark.parametrize("key", [object(), "\ud800", lambda: None])
def test_a_key_without_a_form_in_json_is_an_error(key: object) -> None:
    with pytest.raises((TypeError, UnicodeEncodeError)):
        ordering(lambda event: key)


def test_a_set_has_the_same_text_in_every_process() -> None:
    code = "import msgspec; print(msgspec.json.encode({str(n) for n in range(20)}, order='deterministic').decode())"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, timeout=60
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("options", "capacity"),
    [
        ({}, 512),
        ({"concurrency": 400}, 800),
        ({"mailbox": Mailbox(7)}, 7),
        ({"limit": 50, "concurrency": 8}, 8),
        ({"limit": 50, "concurrency": 8, "mailbox": Mailbox(3)}, 3),
    ],
)
def test_how_many_events_an_agent_may_hold(options: dict[str, Any], capacity: int) -> None:
    assert AgentOptions(**options).capacity == capacity
