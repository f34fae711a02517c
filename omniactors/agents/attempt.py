"""One attempt: an event goes to a handler, and its outcome becomes a settlement."""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any, Protocol

import trio

from omniactors.actors.rules import crash_part
from omniactors.agents.current import CurrentEvent, current_event
from omniactors.agents.publishing import check_outcome
from omniactors.agents.reports import task_draft
from omniactors.agents.settler import Job
from omniactors.agents.signals import HandlerTimeout, Reject, Reply, RetryAfter
from omniactors.errors import EnvelopeError
from omniactors.events.context import run_context
from omniactors.streams.settlement import ErrorInfo, Failed, Outcome, Settlement, Succeeded, settle

if TYPE_CHECKING:
    from omniactors.agents.lane import Delivery
    from omniactors.agents.subscription import Subscription
    from omniactors.streams.envelope import EventEnvelope

MAX_TRACEBACK = 16_384
"""Characters of a traceback that are kept, its end: that is where the error is."""

MAX_MESSAGE = 16_384
"""Characters of an error's message that are kept, its beginning."""


class Handler(Protocol):
    """What an attempt needs of an agent."""

    @property
    def __keeps_time__(self) -> bool:
        """Whether it applies the timeout itself."""
        ...

    async def handle(self, event: EventEnvelope[Any]) -> object:
        """Handle one event."""
        ...


async def attempt(agent: Handler, delivery: Delivery, subscription: Subscription) -> None:
    """Let `agent` handle the event and hand the settlement to the settler.

    Raises the handler's error when the agent is to be restarted after it. Cancelled, the event is
    given back, attempts unchanged.
    """
    services, event = subscription.services, delivery.event
    current = CurrentEvent(event, subscription.name)
    token = current_event.set(current)
    began = time.perf_counter()
    try:
        with run_context(event.correlation_id or event.id):
            services.bus.publish_draft(task_draft("task.started", event, subscription.name))
            outcome, error = await _outcome(agent, event, current, limit=subscription.options.timeout)
    except BaseException:
        services.settler.give_back(subscription.lane, [delivery.key])
        raise
    finally:
        current.is_over = True
        current_event.reset(token)
        subscription.lane.handled(delivery)
    settlement = _settlement(delivery, outcome, subscription, seconds=time.perf_counter() - began)
    services.settler.submit(Job(subscription.lane, settlement, event, _error_of(outcome)))
    if error is not None and subscription.options.on_error == "restart" and not _is_signal(error):
        raise error


async def _outcome(
    agent: Handler, event: EventEnvelope[Any], current: CurrentEvent, *, limit: float | None
) -> tuple[Outcome, Exception | None]:
    """What became of the event, and the error to restart for, if any."""
    try:
        value = await (agent.handle(event) if limit is None else _handle_within(limit, agent, event))
    except Exception as error:  # noqa: BLE001 -- a handler may raise anything
        return _failure(error), error
    except BaseException as error:
        # SystemExit from a library, asyncio's cancellation: they end the handler, not the runtime.
        if crash_part(error) is None or is_interrupt(error):
            raise
        return _failure(error), None
    if isinstance(value, Reply):
        return Succeeded(value=value.content, reply_to=value.reply_to, published=tuple(current.publications)), None
    return Succeeded(value=value, published=tuple(current.publications)), None


async def _handle_within(limit: float, agent: Handler, event: EventEnvelope[Any]) -> object:
    if agent.__keeps_time__:
        return await agent.handle(event)
    with trio.move_on_after(limit) as scope:
        return await agent.handle(event)
    if scope.cancelled_caught:
        raise HandlerTimeout(limit)
    return None


def _failure(error: BaseException) -> Failed:
    lone = lone_error(error)
    info = error_info(lone)
    if isinstance(lone, Reject):
        return Failed(error=info, reason="rejected", final=True)
    if isinstance(lone, RetryAfter):
        return Failed(error=info, retry_after=lone.seconds)
    return Failed(error=info, reason="timeout" if isinstance(lone, HandlerTimeout) else "handler-error")


def _error_of(outcome: Outcome) -> ErrorInfo | None:
    return outcome.error if isinstance(outcome, Failed) else None


def _settlement(delivery: Delivery, outcome: Outcome, subscription: Subscription, *, seconds: float) -> Settlement:
    options, services = subscription.options, subscription.services

    def decide(ended: Outcome) -> Settlement:
        return settle(
            delivery.key,
            delivery.event,
            ended,
            options.retry,
            now=services.clock.now(),
            random=services.clock.random(),
            reply_to=options.reply_to,
            result_ttl=services.result_ttl,
            seconds=seconds,
        )

    try:
        return check_outcome(decide(outcome), services.entry_limit)
    except EnvelopeError as error:
        # The handler has done its work, and would return the same again: trying again helps nobody.
        return decide(Failed(error=error_info(error), final=True))


def _is_signal(error: Exception) -> bool:
    """Whether the handler only said what is to become of the event."""
    return isinstance(lone_error(error), Reject | RetryAfter)


def is_interrupt(error: BaseException) -> bool:
    """Whether a KeyboardInterrupt is in it: that is the user's, and ends everything."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)


def lone_error(error: BaseException) -> BaseException:
    """The one error inside nested groups of one, or `error` itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def error_info(error: BaseException) -> ErrorInfo:
    """An exception as data that can be written as JSON, whatever its texts hold."""
    try:
        message = str(error) or type(error).__name__
        trace = "".join(traceback.format_exception(error))
    except Exception as broken:  # noqa: BLE001 -- an exception's own __str__ may raise anything
        message, trace = f"its message cannot be read: {type(broken).__name__}", ""
    return ErrorInfo(
        type=type(error).__name__, message=_text(message[:MAX_MESSAGE]), traceback=_text(trace[-MAX_TRACEBACK:])
    )


def _text(text: str) -> str:
    """The text without lone surrogates, which file names bring into messages and UTF-8 cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()
