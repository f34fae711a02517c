"""Quickstart: an agent answers a durable event, on the embedded store, without any server.

Run it twice: the events are in .omniactors/omniactors.db, and each is answered once.
"""

from __future__ import annotations

import trio

from omniactors import Agent, EventEnvelope, OmniActors


class Greeter(Agent, topic="greet.user"):
    """Greets whoever an event names."""

    async def handle(self, event: EventEnvelope[dict[str, str]]) -> dict[str, str]:
        """The result of the task: stored, and sent on wherever the event says."""
        return {"greeting": f"Hello {event.payload.content['name']}"}


async def main() -> None:
    """Run the agent, publish one event, and wait for what the agent made of it."""
    omni = OmniActors()
    omni.add(Greeter)
    async with omni:
        task_id = await omni.publish("greet.user", {"name": "Alice"})
        with trio.fail_after(10):
            result = await omni.wait_result(task_id)
        print(result["greeting"])
        if omni.gateway_url is not None:  # there is one when OMNIACTORS_LISTEN says where
            print(f"Watched at {omni.gateway_url}")


if __name__ == "__main__":
    trio.run(main)
