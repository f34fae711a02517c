"""What is accepted can be read, and who waits for what cannot be read is told, on both stores."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import Agent, ContentError, EventEnvelope, TaskFailed
from omniactors.streams.envelope import MAX_DEPTH
from omniactors.streams.settlement import Publication
from omniactors.system import open_backend
from tests.agents.support import eventually

if TYPE_CHECKING:
    from omniactors import OmniActors


class Echo(Agent, topic="echo", name="echo"):
    async def handle(self, event: EventEnvelope[Any]) -> Any:
        return event.payload.content


def nested(levels: int, innermost: object = 1.5, *, keys: bool = False) -> object:
    value = innermost
    for _ in range(levels):
        value = {"k": value} if keys else [value]
    return value


async def has_letter(omni: OmniActors) -> bool:
    return bool(await omni.streams.dlq("echo"))


@pytest.mark.parametrize(
    "content",
    [
        nested(MAX_DEPTH),
        nested(MAX_DEPTH, keys=True),
        [nested(3)] * 1000,
        10**4299,
        -(2**63) - 1,
        5e-324,
        "\0",
        {"k" * 1_000_000: 1},
        {"": {"": [[]]}},
    ],
    ids=lambda content: type(content).__name__,
)
async def test_whatever_is_accepted_comes_back(omni: OmniActors, content: object) -> None:
    omni.add(Echo)
    with trio.fail_after(20):
        async with omni:
            task = await omni.publish("echo", content, webhook="http://127.0.0.1:1/deep", reply_to="echoes")
            assert await omni.wait_result(task) == content
            assert await omni.streams.dlq("echo") == []


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ({"a": nested(MAX_DEPTH)}, "$.a" + "[0]" * (MAX_DEPTH - 1)),
        (nested(100_000), "$" + "[0]" * MAX_DEPTH),
        ([10**4300], "$"),
        ({"a": [math.inf]}, "$.a[0]"),
        ({"a": "\ud800"}, "$"),
        ({"\udfff": 1}, "$"),
    ],
)
async def test_what_no_reader_could_read_is_refused_when_it_is_published(
    omni: OmniActors, content: object, path: str
) -> None:
    with pytest.raises(ContentError) as caught:
        await omni.publish("echo", content)
    assert caught.value.path == path
    await omni.shutdown()


async def test_what_holds_itself_is_refused(omni: OmniActors) -> None:
    content: list[object] = []
    content.append(content)
    with pytest.raises(ContentError, match="or holds itself"):
        await omni.publish("echo", content)
    await omni.shutdown()


UNREADABLE = [
    b'{"content":' + b"[" * 3000 + b"]" * 3000 + b',"task_id":"%s"}',
    b'{"content":{"task_id":"another"},"task_id":"%s","created_at":"yesterday"}',
    b'{"task_id":"%s","webhook":17,"content":1}',
    b'{"task_id":"%s","content":{"cut off',
    b'{"task_id":"%s","content":1,"topic":"\\u0000"}',
    b'{"task_id":"%s","content":"\xff\xfe"}',
]


@pytest.mark.parametrize("body", UNREADABLE)
async def test_who_waits_for_an_event_that_cannot_be_read_is_told(omni: OmniActors, body: bytes) -> None:
    omni.add(Echo)
    body = body.replace(b"%s", b"t-1")
    backend = open_backend(omni.settings)
    with trio.fail_after(20):
        async with omni:
            await backend.publish([Publication(topic="echo", task_id="t-1", body=body)])
            with pytest.raises(TaskFailed, match="no event that this agent can read"):
                await omni.wait_result("t-1")
            (letter,) = await omni.streams.dlq("echo")
            assert letter.reason == "decode"
    await backend.close()


async def test_an_event_without_any_id_is_a_dead_letter_all_the_same(omni: OmniActors) -> None:
    omni.add(Echo)
    backend = open_backend(omni.settings)
    with trio.fail_after(20):
        async with omni:
            await backend.publish([Publication(topic="echo", task_id="t-1", body=b'{"content":{"task_id":"another"')])
            await eventually(lambda: has_letter(omni))
            assert await omni.results.of_task("another") == []
    await backend.close()
