"""The real OmniDaemon in a process of its own: `python omnidaemon_program.py publish|serve|fail URL TOPIC`.

`publish` reads one JSON object a line from stdin, the fields of a task, and publishes each. `serve` is an
agent: it writes a line when it is ready, and every message that its callback gets as one line; it ends
with its stdin. `fail` is such an agent whose callback raises, impatient enough to give up within seconds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from typing import Any

from omnidaemon import AgentConfig, EventEnvelope, OmniDaemonSDK, PayloadBase, SubscriptionConfig
from omnidaemon.event_bus import RedisStreamEventBus
from omnidaemon.storage import RedisStore

AGENT = "theirs"
RECLAIM_INTERVAL = 0.2
IMPATIENT = SubscriptionConfig(consumer_count=1, reclaim_idle_ms=100, dlq_retry_limit=1)


def tell(line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def sdk(url: str) -> OmniDaemonSDK:
    bus = RedisStreamEventBus(url, reclaim_interval=RECLAIM_INTERVAL)
    return OmniDaemonSDK(event_bus=bus, store=RedisStore(url))


async def publish(omni: OmniDaemonSDK, topic: str) -> None:
    for line in sys.stdin:
        fields = json.loads(line)
        payload = PayloadBase(**fields.pop("payload"))
        tell(await omni.publish_task(EventEnvelope(topic=topic, payload=payload, **fields)))


async def serve(omni: OmniDaemonSDK, topic: str, config: SubscriptionConfig | None) -> None:
    async def handle(message: dict[str, Any]) -> dict[str, Any]:
        tell(message)
        if config is not None:
            raise ValueError("never")
        return {"echo": message["content"]}

    await omni.register_agent(
        AgentConfig(name=AGENT, topic=topic, callback=handle, config=config or SubscriptionConfig(consumer_count=1))
    )
    await omni.start()
    tell("ready")
    await asyncio.to_thread(sys.stdin.read)


async def main(work: str, url: str, topic: str) -> None:
    omni = sdk(url)
    if work == "publish":
        await publish(omni, topic)
    else:
        await serve(omni, topic, IMPATIENT if work == "fail" else None)
    sys.stdout = sys.stderr  # its shutdown prints
    await omni.shutdown()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(main(*sys.argv[1:]))
    os._exit(0)  # its consumers may still be blocked in a read
