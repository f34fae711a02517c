"""One attempt: an event goes to a handler, and its outcome becomes a settlement."""

from __future__ import annotations

import inspect
import os
import time
import traceback
from typing import TYPE_CHECKING, Any, Protocol

import trio

from omniactors.actors.rules import crash_part
from omniactors.agents.current import CurrentEvent, current_event
from omniactors.agents.publishing import check_outcome
from omniactors.agents.reports import started_draft
from omniactors.agents.settler import Job
from omniactors.agents.signals import HandlerTimeout, Reject, Reply, RetryAfter
from omniactors.errors import EnvelopeError
from omniactors.events.context import enter_run, leave_run
from omniactors.redaction import redact
from omniactors.streams.settlement import ErrorInfo, Failed, Outcome, Settlement, Succeeded, settle
from omniactors.tracebacks import user_traceback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omniactors.agents.lane import Delivery
    from omniactors.agents.subscription import Subscription
    from omniactors.streams.envelope import EventEnvelope

MAX_TRACEBACK = 16_384
"""Characters of a traceback that are kept, its end: that is where the error is."""

MAX_MESSAGE = 16_384
"""Characters of an error's message that are kept, its beginning."""


_NOWHERE: frozenset[str] = frozenset()


class Handler(Protocol):
    """What an attempt needs of an agent."""

    @property
    def __keeps_time__(self) -> bool:
        """Whether it applies the timeout itself."""
        ...

    def handle(self, event: EventEnvelope[Any]) -> Awaitable[object]:
        """Handle one event."""
        ...


async def attempt(agent: Handler, delivery: Delivery, subscription: Subscription) -> None:
    """Let `agent` handle the event and hand the settlement to the settler.

    Raises the handler's error when the agent is to be restarted after it. Cancelled, the event is
    given back, attempts unchanged; unless its handler is why the process ends, which counts as a crash.
    """
    services, options, event = subscription.services, subscription.options, delivery.event
    in_hand = services.backend.in_hand
    row = in_hand.begin(delivery.key)
    current = CurrentEvent(event, subscription.name, in_hand, row, store=services.backend.location)
    token, run = current_event.set(current), enter_run(event.correlation_id or event.id)
    error: Exception | None = None
    succeeded_in: float | None = None
    began, seconds = time.perf_counter(), 0.0
    try:
        services.bus.publish_draft(started_draft(event, subscription.name))
        # Not a function of its own: each frame between the actor and its handler costs every event.
        try:
            outcome = _success(await _handling(agent, event, options.timeout), current)
            succeeded_in = time.perf_counter() - began
        except Exception as failure:  # noqa: BLE001 -- a handler may raise anything
            error, outcome = failure, _failure(failure)
        except BaseException as failure:
            # SystemExit from a library, asyncio's cancellation: they end the handler, not the runtime.
            if crash_part(failure) is None or is_interrupt(failure):
                raise
            outcome = _failure(failure)
    except BaseException as failure:
        if current.ends_process or (is_interrupt(failure) and not is_from_terminal(failure)):
            in_hand.blame(row)
        else:
            in_hand.end(row)
            services.settler.give_back(subscription.lane, [delivery.key])
        raise
    finally:
        seconds = time.perf_counter() - began
        current.is_over = True
        leave_run(run)
        current_event.reset(token)
        subscription.lane.handled(delivery, succeeded_in)
    settlement = _settlement(delivery, outcome, subscription, seconds=seconds)
    in_hand.end(row)
    services.settler.submit(Job(subscription.lane, settlement, event, _error_of(outcome)))
    try:
        if error is not None and options.on_error == "restart" and not _is_signal(error):
            raise error
    finally:
        error = None  # its traceback holds this frame: together they would wait for the garbage collector


def _success(value: object, current: CurrentEvent) -> Outcome:
    published = tuple(current.publications) if current.publications else ()
    topics = frozenset(current.topics) if current.topics else _NOWHERE
    if isinstance(value, Reply):
        return Succeeded(value=value.content, reply_to=value.reply_to, published=published, topics=topics)
    return Succeeded(value=value, published=published, topics=topics)


def _handling(agent: Handler, event: EventEnvelope[Any], limit: float | None) -> Awaitable[object]:
    return agent.handle(event) if limit is None else _handle_within(limit, agent, event)


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
    try:
        settlement = _decide(delivery, outcome, subscription, seconds)
        return check_outcome(settlement, subscription.services.entry_limit)
    except EnvelopeError as error:
        if isinstance(outcome, Succeeded) and inspect.iscoroutine(outcome.value):
            outcome.value.close()  # returned without an await: the error says so, and no warning has to
        # The handler has done its work, and would return the same again: trying again helps nobody.
        refused = Failed(error=error_info(error), final=True)
        return _decide(delivery, refused, subscription, seconds)


def _decide(delivery: Delivery, outcome: Outcome, subscription: Subscription, seconds: float) -> Settlement:
    options, services = subscription.options, subscription.services
    return settle(
        delivery.key,
        delivery.event,
        outcome,
        options.retry,
        now=services.clock.now(),
        random=services.clock.random(),
        reply_to=options.reply_to,
        result_ttl=services.result_ttl,
        seconds=seconds,
    )


def _is_signal(error: Exception) -> bool:
    """Whether the handler only said what is to become of the event."""
    return isinstance(lone_error(error), Reject | RetryAfter)


def is_interrupt(error: BaseException) -> bool:
    """Whether a KeyboardInterrupt is in it: that ends everything."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)


def is_from_terminal(error: BaseException) -> bool:
    """Whether a KeyboardInterrupt may be Ctrl-C at a terminal that happened to reach a handler: no doing of its own.

    Then trio's signal handler has raised it, and a terminal has this process in its foreground.
    """
    while isinstance(error, BaseExceptionGroup):
        error = (error.subgroup(KeyboardInterrupt) or error).exceptions[0]
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or not str(frames[-1].f_globals.get("__name__")).startswith("trio."):
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    except (OSError, AttributeError):  # no terminal, or a system that has none of this kind
        return False


def lone_error(error: BaseException) -> BaseException:
    """The one error inside nested groups of one, or `error` itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def error_info(error: BaseException) -> ErrorInfo:
    """An exception as data that can be written as JSON, whatever its texts hold."""
    # Cut twice: a URL that is cut within its password is not known as one.
    message = redact(_told(lambda: str(error))[: 2 * MAX_MESSAGE])[:MAX_MESSAGE]
    trace = _told(lambda: user_traceback(error))[-2 * MAX_TRACEBACK :]
    return ErrorInfo(type=type(error).__name__, message=message, traceback=redact(trace)[-MAX_TRACEBACK:])


def _told(tell: Callable[[], str]) -> str:
    """The text without lone surrogates, which file names bring into messages and UTF-8 cannot hold."""
    try:
        return tell().encode("utf-8", "backslashreplace").decode()
    except (Exception, SystemExit) as broken:  # noqa: BLE001 -- an exception's own __str__ may raise anything
        return f"its message cannot be read: {type(broken).__name__}"
