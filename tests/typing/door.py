"""The door: its late names have their real types."""

from __future__ import annotations

from typing import assert_type

from omniactors import Backoff, EventEnvelope, PayloadBase

assert_type(Backoff().delay(1, 0.5), float)

envelope = EventEnvelope(topic="greet.user", payload=PayloadBase(content={"name": "Alice"}))
assert_type(envelope, EventEnvelope[dict[str, str]])
assert_type(envelope.payload.content, dict[str, str])
