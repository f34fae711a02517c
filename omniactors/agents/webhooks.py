"""Webhooks: an ordinary agent on an internal topic, so there is one retry machine for everything.

An answer outside 2xx, a timeout and a refused connection each fail the try; the event is tried
again for about ten hours, then dead-lettered. Headers follow the Standard Webhooks specification; the
signature is not built yet.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import trio

from omniactors.agents.agent import Agent
from omniactors.agents.options import AgentOptions
from omniactors.agents.signals import Reject
from omniactors.backoff import Backoff
from omniactors.errors import OmniActorsError
from omniactors.events.event import Event
from omniactors.redaction import redact
from omniactors.streams.envelope import EventEnvelope  # noqa: TC001 -- the annotation of handle() is read at run time
from omniactors.streams.settlement import WEBHOOK_TOPIC, RetryPolicy

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

WEBHOOK_AGENT = "webhooks"
"""The name of the agent that posts them."""

TIMEOUT = 10.0
"""Seconds for one POST until the head of its answer is there, as OmniDaemon has it: however slowly it comes."""

BODY_TIME = 1.0
"""Seconds for the answer's body."""

ANSWER_LIMIT = 64 << 10
"""Bytes of the answer's body that are read. Nobody needs them, but a connection whose answer was read can be used
again; beyond these limits it is closed."""


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


def _redacting(record: logging.LogRecord) -> bool:
    """A filter for lines that may hold a token; lets all of them pass."""
    record.msg, record.args = redact(record.getMessage()), ()
    return True


async def _post(client: httpx.AsyncClient, call: WebhookCall, headers: dict[str, str]) -> int:
    """The status of the answer. Of its body no more is read than it takes to go on with the connection."""
    url = httpx.URL(call.url)
    # Not as a part of the URL, which httpx logs.
    login = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
    request = client.build_request(
        "POST", url.copy_with(userinfo=b""), content=msgspec.json.encode(call.body), headers=headers
    )
    with trio.fail_after(TIMEOUT):
        response = await client.send(request, auth=login, stream=True)
    try:
        # The status has come, and that is the answer, whatever else comes or does not.
        with trio.move_on_after(BODY_TIME) as scope, suppress(httpx.HTTPError):
            async for _ in response.aiter_raw():
                if response.num_bytes_downloaded > ANSWER_LIMIT:
                    scope.cancel("the answer is too long")  # not a break: it would leave generators behind
    finally:
        with trio.move_on_after(BODY_TIME, shield=True):
            await response.aclose()
    return response.status_code


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
            logging.getLogger("httpx").addFilter(_redacting)  # it logs each URL; to add it again does nothing
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
            status = await _post(client, call, headers)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise Reject(f"the webhook {redact(call.url)} is no URL: {error}") from None
        except trio.TooSlowError:
            raise self._failed(event, call, f"it did not answer within {TIMEOUT:g} s") from None
        except httpx.HTTPError as error:
            raise self._failed(event, call, f"{type(error).__name__}: {error}") from error
        if not httpx.codes.is_success(status):
            raise self._failed(event, call, f"it answered {status}")
        self._tell("webhook.delivered", event, call, status=status)
        return {"url": redact(call.url), "status": status}

    def _failed(self, event: EventEnvelope[WebhookCall], call: WebhookCall, why: str) -> WebhookFailed:
        self._tell("webhook.failed", event, call, error=redact(why))
        return WebhookFailed(f"the webhook {call.url} failed: {why}")

    def _tell(self, event_type: str, event: EventEnvelope[WebhookCall], call: WebhookCall, **data: object) -> None:
        self._subscription.services.bus.publish(
            Event(
                run_id=event.correlation_id or event.causation_id or event.id,
                event_type=event_type,
                data={
                    "task_id": event.causation_id,
                    "url": redact(call.url),
                    "attempt": event.delivery_attempts,
                    **data,
                },
            )
        )
