"""Webhooks: an ordinary agent on an internal topic, so there is one retry machine for everything.

An answer outside 2xx, a timeout and a refused connection each fail the try; the event is tried
again for about ten hours, then dead-lettered. Headers follow the Standard Webhooks specification; the
signature is not built yet.
"""

from __future__ import annotations

import functools
import math
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from omniactors.agents.agent import Agent
from omniactors.agents.options import AgentOptions
from omniactors.agents.signals import Reject
from omniactors.backoff import Backoff
from omniactors.errors import OmniActorsError
from omniactors.events.event import Event
from omniactors.streams.envelope import EventEnvelope  # noqa: TC001 -- the annotation of handle() is read at run time
from omniactors.streams.settlement import WEBHOOK_TOPIC, RetryPolicy

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

WEBHOOK_AGENT = "webhooks"
"""The name of the agent that posts them."""

TIMEOUT = 10.0
"""Seconds for one POST, as OmniDaemon has it."""


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """What is trusted: reading it takes as long as starting a whole system, so it is read once, and late."""
    return httpx.create_ssl_context()


class WebhookCall(msgspec.Struct, frozen=True):
    """What to post, and where."""

    url: str
    body: dict[str, Any]


class WebhookFailed(OmniActorsError):
    """The receiver answered with a status outside 2xx, or not at all."""


class WebhookAgent(Agent):
    """Posts results to the URLs that their publishers named."""

    __options__ = AgentOptions(
        topics=(WEBHOOK_TOPIC,),
        name=WEBHOOK_AGENT,
        concurrency=16,
        retry=RetryPolicy(max_attempts=12, backoff=Backoff(initial=2.0, factor=3.0, maximum=14_400.0)),
        description="posts results to webhooks",
    )

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Keep the HTTP client, which is made when the first webhook comes."""
        self._client: httpx.AsyncClient | None = None
        async with AsyncExitStack() as self._resources:
            yield

    async def _open_client(self) -> httpx.AsyncClient:
        """One client for each instance; redirects are not followed, their target was not named by anyone."""
        if self._client is None:
            client = httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False, verify=_tls_context())
            self._client = await self._resources.enter_async_context(client)
        return self._client

    async def handle(self, event: EventEnvelope[WebhookCall]) -> dict[str, Any]:
        """One POST; raises WebhookFailed for anything but an answer in 2xx."""
        call = event.payload.content
        headers = {
            "content-type": "application/json",
            "user-agent": "omniactors",
            "webhook-id": event.id,
            "webhook-timestamp": str(math.floor(time.time())),
        }
        client = await self._open_client()
        try:
            response = await client.post(call.url, content=msgspec.json.encode(call.body), headers=headers)
        except httpx.InvalidURL as error:
            raise Reject(f"the webhook {call.url} is no URL: {error}") from error
        except httpx.HTTPError as error:
            raise self._failed(event, call, f"{type(error).__name__}: {error}") from error
        if not response.is_success:
            raise self._failed(event, call, f"it answered {response.status_code}")
        self._tell("webhook.delivered", event, call, status=response.status_code)
        return {"url": call.url, "status": response.status_code}

    def _failed(self, event: EventEnvelope[WebhookCall], call: WebhookCall, why: str) -> WebhookFailed:
        self._tell("webhook.failed", event, call, error=why)
        return WebhookFailed(f"the webhook {call.url} failed: {why}")

    def _tell(self, event_type: str, event: EventEnvelope[WebhookCall], call: WebhookCall, **data: object) -> None:
        self._subscription.services.bus.publish(
            Event(
                run_id=event.correlation_id or event.causation_id or event.id,
                event_type=event_type,
                data={"task_id": event.causation_id, "url": call.url, "attempt": event.delivery_attempts, **data},
            )
        )
