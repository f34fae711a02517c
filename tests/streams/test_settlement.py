"""The settlement rule: what is written for each way in which a try can end."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniactors.backoff import Backoff
from omniactors.errors import ContentError
from omniactors.streams.envelope import EventEnvelope, PayloadBase
from omniactors.streams.settlement import (
    RESULT_TTL,
    WEBHOOK_TOPIC,
    Dead,
    EntryKey,
    ErrorInfo,
    Failed,
    Outcome,
    Publication,
    Retry,
    RetryPolicy,
    Settlement,
    Succeeded,
    dead_letter,
    derived_id,
    settle,
)

KEY = EntryKey("greet", "greeter", "5-1")
ERROR = ErrorInfo(type="ValueError", message="no good", traceback="Traceback ...")
POLICY = RetryPolicy(max_attempts=3, backoff=Backoff(initial=2, factor=3, maximum=100, jitter=0.5))


def cause(attempts: int = 1, **payload: Any) -> EventEnvelope[Any]:
    return EventEnvelope(
        topic="greet",
        payload=PayloadBase(content={"n": 1}, **payload),
        id="task",
        tenant_id="tenant",
        correlation_id="correlation",
        source="test",
        delivery_attempts=attempts,
    )


def settled(envelope: EventEnvelope[Any], outcome: Outcome, **settings: Any) -> Settlement:
    return settle(KEY, envelope, outcome, POLICY, now=1000.0, random=0.5, **settings)


def read(publication: Publication) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(publication.body)
    return event


def test_a_success_leaves_its_result() -> None:
    settlement = settled(cause(2), Succeeded(value={"x": [1]}))
    assert settlement.key == KEY
    assert (settlement.dead, settlement.retry, settlement.publications) == (None, None, ())
    assert settlement.result_ttl == RESULT_TTL == 24 * 3600
    assert json.loads(msgspec.json.encode(settlement.result)) == {
        "task_id": "task",
        "topic": "greet",
        "agent": "greeter",
        "status": "success",
        "result": {"x": [1]},
        "error": None,
        "attempts": 2,
        "processed_at": 1000.0,
        "correlation_id": "correlation",
        "tenant_id": "tenant",
    }


@pytest.mark.parametrize(
    ("reply", "payload", "default", "target"),
    [
        (None, None, None, None),
        (None, None, "default", "default"),
        (None, "payload", "default", "payload"),
        ("handler", "payload", "default", "handler"),
    ],
)
def test_the_reply_goes_to_the_nearest_address(
    reply: str | None, payload: str | None, default: str | None, target: str | None
) -> None:
    settlement = settled(cause(reply_to=payload), Succeeded(value=7, reply_to=reply), reply_to=default)
    assert [publication.topic for publication in settlement.publications] == ([] if target is None else [target])


def test_a_reply_carries_correlation_causation_and_tenant() -> None:
    (reply,) = settled(cause(reply_to="next"), Succeeded(value={"y": 2})).publications
    assert not reply.dedupe
    event = read(reply)
    assert (event["content"], event["topic"], event["task_id"]) == ({"y": 2}, "next", reply.task_id)
    ids = (event["correlation_id"], event["causation_id"], event["tenant_id"], event["source"])
    assert ids == ("correlation", "task", "tenant", "test")
    assert (event["delivery_attempts"], event["webhook"], event["reply_to"]) == (1, None, None)


def test_what_a_settlement_publishes_has_ids_of_its_own_each_time() -> None:
    envelope = cause(reply_to="next", webhook="http://x")
    both = [settled(envelope, Succeeded(value=value)).publications for value in (1, 1)]
    assert len({publication.task_id for publications in both for publication in publications}) == 4


def test_a_derived_id_tells_its_parts_apart() -> None:
    assert derived_id("a", "b", "c") == derived_id("a", "b", "c")
    assert derived_id("a", "b", "c") != derived_id("ab", "", "c")


def test_a_reply_that_the_handler_names_is_sent_beside_what_it_published_there() -> None:
    own = Publication(topic="next", task_id="own", body=b"{}")
    settlement = settled(cause(), Succeeded(value=1, reply_to="next", published=(own,)))
    assert [publication.topic for publication in settlement.publications] == ["next", "next"]


def test_a_result_is_what_the_handler_returned_and_not_what_it_made_of_it_later() -> None:
    value = {"n": 1}
    settlement = settled(cause(), Succeeded(value=value))
    value["n"] = 2
    assert json.loads(msgspec.json.encode(settlement.result))["result"] == {"n": 1}


def test_a_result_is_kept_as_long_as_its_agent_says() -> None:
    assert settled(cause(), Succeeded(), result_ttl=5.0).result_ttl == 5.0
    assert settled(cause(9), Failed(error=ERROR), result_ttl=5.0).result_ttl == 5.0


def test_what_the_handler_published_comes_first_and_may_stand_for_the_reply() -> None:
    own = Publication(topic="next", task_id="own", body=b"{}")
    other = Publication(topic="other", task_id="other", body=b"{}")
    both = settled(cause(reply_to="next"), Succeeded(value=1, published=(other, own)))
    assert [publication.task_id for publication in both.publications] == ["other", "own"]
    one = settled(cause(reply_to="next"), Succeeded(value=1, published=(other,)))
    assert [publication.topic for publication in one.publications] == ["other", "next"]


def test_a_webhook_is_an_event_that_carries_the_result() -> None:
    settlement = settled(cause(webhook="http://x"), Succeeded(value=[1]))
    (webhook,) = settlement.publications
    assert webhook.topic == WEBHOOK_TOPIC
    assert not webhook.dedupe
    assert read(webhook)["content"] == {"url": "http://x", "body": json.loads(msgspec.json.encode(settlement.result))}


@pytest.mark.parametrize("value", [float("nan"), {1: 2}, object()])
@pytest.mark.parametrize("payload", [{}, {"reply_to": "next"}, {"webhook": "http://x"}])
def test_a_result_that_is_no_json_is_refused(value: object, payload: dict[str, Any]) -> None:
    with pytest.raises(ContentError):
        settled(cause(**payload), Succeeded(value=value))


def test_a_failure_with_tries_left_is_only_a_retry() -> None:
    settlement = settled(cause(2, reply_to="next", webhook="http://x"), Failed(error=ERROR))
    assert settlement == Settlement(key=KEY, retry=Retry(after=4.5, attempts=2))


def test_a_handler_may_set_the_delay() -> None:
    assert settled(cause(1), Failed(error=ERROR, retry_after=0.0)).retry == Retry(after=0.0, attempts=1)


@pytest.mark.parametrize(
    ("attempts", "outcome", "reason"),
    [
        (3, Failed(error=ERROR), "handler-error"),
        (9, Failed(error=ERROR, retry_after=1.0), "handler-error"),
        (1, Failed(error=ERROR, final=True, reason="rejected"), "rejected"),
        (3, Failed(error=ERROR, reason="timeout"), "timeout"),
    ],
)
def test_a_last_failure_is_a_dead_letter_and_its_watchers_are_told(attempts: int, outcome: Failed, reason: Any) -> None:
    settlement = settled(cause(attempts, reply_to="next", webhook="http://x"), outcome)
    assert settlement.retry is None
    assert settlement.dead == Dead(reason=reason, error=ERROR, attempts=attempts)
    assert settlement.result is not None
    assert (settlement.result.status, settlement.result.error) == ("failed", "ValueError: no good")
    assert (settlement.result.error_type, settlement.result.traceback) == ("ValueError", "Traceback ...")
    assert settlement.result.attempts == attempts
    (webhook,) = settlement.publications
    body = read(webhook)["content"]["body"]
    assert (body["status"], body["error"], "traceback" in body) == ("failed", "ValueError: no good", False)


def test_an_entry_that_could_not_be_read_is_a_dead_letter_and_no_more() -> None:
    dead = Dead(reason="decode", error=ERROR, attempts=0)
    assert dead_letter(KEY, dead, None, now=1.0) == Settlement(key=KEY, dead=dead)


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_a_policy_without_a_first_try_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="max_attempts"):
        RetryPolicy(max_attempts=value)


@given(st.integers(1, 20), st.integers(1, 20), st.booleans(), st.floats(0, 1, exclude_max=True))
def test_a_settlement_ends_an_event_or_retries_it_never_both(
    attempts: int, max_attempts: int, final: bool, chance: float
) -> None:
    policy = RetryPolicy(max_attempts=max_attempts)
    outcome = Failed(error=ERROR, final=final)
    settlement = settle(KEY, cause(attempts), outcome, policy, now=0.0, random=chance)
    assert (settlement.retry is None) == (final or attempts >= max_attempts)
    assert (settlement.dead is None) == (settlement.result is None) == (settlement.retry is not None)
    if settlement.retry is not None:
        assert settlement.retry.attempts == attempts
        assert settlement.retry.after >= 0
