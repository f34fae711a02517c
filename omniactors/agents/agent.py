"""The agent: an actor whose work comes from durable streams."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import trio

from omniactors.actors.actor import Actor
from omniactors.actors.messages import owner_of
from omniactors.agents.annotations import content_type
from omniactors.agents.attempt import attempt
from omniactors.agents.current import event_in_hand
from omniactors.agents.options import AgentConfig, AgentKeywords, AgentOptions, is_async
from omniactors.agents.publishing import check_size, schedule
from omniactors.agents.signals import HandlerTimeout
from omniactors.errors import AgentError
from omniactors.streams.envelope import EventEnvelope, PayloadBase, check_topic
from omniactors.streams.settlement import follow_up, to_publication

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import datetime

    from omniactors.agents.lane import Delivery, EventLane
    from omniactors.agents.subscription import Subscription


class Agent(Actor[Any]):
    """Base of all agents: `class Greeter(Agent, topic="greet.user")` with a `handle` method.

    The class keywords are those of `AgentOptions`; each can be overridden where the agent is added.
    The type in `EventEnvelope[Content]` of `handle` decodes and checks the content. An event whose
    handler raises is tried again, then dead-lettered; the actor itself goes on. A failure outside
    an event (in `lifespan`, in a message handler) crashes the actor, and it is restarted.
    """

    __options__: ClassVar[AgentOptions] = AgentOptions()
    __content_type__: ClassVar[Any] = Any

    def __init_subclass__(cls, **keywords: Unpack[AgentKeywords]) -> None:
        """Check the keywords and the annotation of `handle`; raises AgentError."""
        super().__init_subclass__()
        try:
            cls.__options__ = cls.__options__.override(keywords)
        except AgentError as error:
            raise AgentError(f"{cls.__name__}: {error}") from None
        owner = owner_of(cls, cls.handle)
        if owner is cls or not issubclass(owner, Agent):
            cls.__content_type__ = content_type(cls, owner)
        else:
            cls.__content_type__ = owner.__content_type__

    async def handle(self, event: EventEnvelope[Any]) -> Any:  # noqa: ANN401 -- any JSON value
        """Handle one event; what it returns, any JSON value, is the result of the task.

        `raise Reject(reason)` dead-letters the event at once, `raise RetryAfter(seconds)` sets when
        it comes back, `return Reply(content, reply_to=topic)` names the next stage. Handling is at
        least once: after a crash of the process the event is handled again.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a handle() method")

    async def publish(
        self,
        topic: str,
        content: object,
        *,
        webhook: str | None = None,
        reply_to: str | None = None,
        delay: float | None = None,
        at: float | datetime | None = None,
    ) -> str:
        """Publish an event as part of the settlement of the event in hand; returns its task id.

        It becomes visible when the event in hand commits (or `delay` seconds later, or at the time
        `at`), and never if this try fails. It carries the correlation, causation and tenant ids
        along. Raises EnvelopeError, and AgentError outside of `handle`, where there is nothing to
        be part of: `OmniActors.publish` is for that.
        """
        current = event_in_hand()
        if current is None:
            raise AgentError("self.publish belongs to an event, and none is being handled; use omni.publish")
        payload: PayloadBase[Any] = PayloadBase(content=content, webhook=webhook, reply_to=reply_to)
        event = follow_up(current.event, check_topic(topic), payload)
        publication = check_size(to_publication(event), self._subscription.services.entry_limit)
        publication = schedule(publication, delay=delay, at=at)
        await trio.lowlevel.checkpoint()
        current.add(publication)
        return publication.task_id

    @property
    def __keeps_time__(self) -> bool:
        """Whether it applies the timeout itself."""
        return False

    def __subscribe__(self, subscription: Subscription) -> None:
        """Called once by the runtime, after `__init__`."""
        self._subscription = subscription

    def __lane__(self) -> EventLane:
        """Where the router puts this agent's events."""
        return self._subscription.lane

    def __work__(self, item: Delivery) -> Coroutine[Any, Any, None]:
        """Handle one event and have it settled."""
        return attempt(self, item, self._subscription)


class CallbackAgent(Agent):
    """An agent made of a function; see `AgentConfig`."""

    def __init__(self, config: AgentConfig) -> None:
        self._callback = config.callback
        self._is_async = is_async(config.callback)
        self._limiter = trio.CapacityLimiter(1)

    async def handle(self, event: EventEnvelope[Any]) -> Any:  # noqa: ANN401 -- any JSON value
        """Call the function with the event as a dict, a plain function in a worker thread."""
        message = callback_message(event, self._subscription.name)
        if self._is_async:
            return await self._callback(message)
        limit = self._subscription.options.timeout or math.inf
        began = trio.current_time()
        # In a list, since trio refuses a bare coroutine: a plain function may well return one.
        (value,) = await trio.to_thread.run_sync(
            lambda: [self._callback(message)], abandon_on_cancel=True, limiter=self._limiter
        )
        with trio.move_on_at(began + limit) as scope:
            if inspect.isawaitable(value):
                value = await value
        if scope.cancelled_caught or trio.current_time() - began > limit:
            raise HandlerTimeout(limit)
        return value

    @property
    def __keeps_time__(self) -> bool:
        """Whether it applies the timeout itself.

        A thread cannot be cancelled: its result is dropped when it is late, and the next try waits
        for its end. Only the end of the grace time leaves it behind.
        """
        return not self._is_async


def callback_message(event: EventEnvelope[Any], agent: str) -> dict[str, Any]:
    """What a callback gets: the names are OmniDaemon's."""
    return {
        "content": event.payload.content,
        "topic": event.topic,
        "task_id": event.id,
        "agent": agent,
        "webhook": event.payload.webhook,
        "reply_to": event.payload.reply_to,
        "correlation_id": event.correlation_id,
        "causation_id": event.causation_id,
        "source": event.source,
        "tenant_id": event.tenant_id,
        "delivery_attempts": event.delivery_attempts,
        "created_at": event.created_at,
    }
