"""Two agents to run and to talk to: `omniactors run examples/greeter.py`, then publish from elsewhere."""

from __future__ import annotations

import msgspec

from omniactors import Agent, EventEnvelope, Reject


class Person(msgspec.Struct, frozen=True):
    """Whom to greet, and in which language."""

    name: str
    language: str = "en"


class Greeter(Agent, topic="greet.user", name="greeter", description="greets people"):
    """Greets whoever an event names; content without a name never reaches it."""

    async def handle(self, event: EventEnvelope[Person]) -> dict[str, str]:
        """The greeting; it is the result of the task."""
        person = event.payload.content
        words = {"en": "Hello", "de": "Hallo", "fr": "Bonjour"}
        if person.language not in words:
            raise Reject(f"no greeting in {person.language!r}; there is {', '.join(words)}")
        return {"greeting": f"{words[person.language]} {person.name}"}


class Shouter(Agent, topic="greet.shout", name="shouter", description="makes a greeting louder"):
    """Takes what the greeter replies, when an event's `reply_to` says so."""

    async def handle(self, event: EventEnvelope[dict[str, str]]) -> str:
        """The greeting in capitals."""
        return event.payload.content["greeting"].upper() + "!"
