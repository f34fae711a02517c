"""The envelope: what an event is, how it is written to a stream, and how it is read back.

Pure. The wire form is one flat JSON object; it is what OmniDaemon writes and reads, so that both
can work on one stream. Fields that we do not know stay in the stored body, which is never
re-encoded: only settling an event removes it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import time
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import msgspec

from omniactors.errors import ContentError, EntryError, EnvelopeError

Content = TypeVar("Content")

INTERNAL_PREFIX = "omni."
"""Topics that begin so belong to the runtime itself, as the webhooks' one."""


IDS_AT_ONCE = 64

_digits: list[str] = []
"""Random digits for ids to come: to ask the system for each cost as much as the rest of an id."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_digits.clear)  # or the child would give the ids of its parent


def _draw() -> str:
    """32 random hexadecimal digits; from any thread."""
    try:
        return _digits.pop()
    except IndexError:
        fresh = os.urandom(16 * IDS_AT_ONCE).hex()
        _digits.extend([fresh[start : start + 32] for start in range(32, len(fresh), 32)])
        return fresh[:32]


def new_id() -> str:
    """A random UUID, version 4; made by hand since `uuid.uuid4` takes four times as long, once for each event."""
    digits = _draw()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


class PayloadBase(msgspec.Struct, Generic[Content], frozen=True, kw_only=True):
    """What is to be done: `content`, any JSON value, and where its result goes.

    `webhook` is a URL that gets the result by POST, `reply_to` the topic of the reply.
    """

    content: Content
    webhook: str | None = None
    reply_to: str | None = None

    def __post_init__(self) -> None:
        """Strip `reply_to`; raises EnvelopeError when it is no topic, or `webhook` no HTTP address."""
        if self.webhook is not None:
            check_webhook(self.webhook)
        if self.reply_to is not None:
            msgspec.structs.force_setattr(self, "reply_to", check_topic(self.reply_to))


class EventEnvelope(msgspec.Struct, Generic[Content], frozen=True, kw_only=True):
    """One event: a payload on its way to a topic, with the ids that tie it to others.

    `id` is the task id everywhere. `created_at` is in Unix seconds. `delivery_attempts` counts
    from 1. Raises EnvelopeError (a ValueError) when made with an empty or reserved topic.
    """

    topic: str
    payload: PayloadBase[Content]
    id: str = msgspec.field(default_factory=new_id)
    tenant_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    source: str | None = None
    created_at: float = msgspec.field(default_factory=time.time)
    delivery_attempts: int = 1

    def __post_init__(self) -> None:
        """Strip the topic and check what a type cannot say; raises EnvelopeError."""
        topic = check_topic(self.topic, internal=True)
        if topic is not self.topic:
            msgspec.structs.force_setattr(self, "topic", topic)
        if not isinstance(self.payload, PayloadBase):
            raise EnvelopeError(f"payload must be a PayloadBase, not {type(self.payload).__name__}")
        if not isinstance(self.id, str) or not self.id.strip():
            raise EnvelopeError(f"id must be a non-empty string, not {self.id!r}")
        if not (self.tenant_id is self.correlation_id is self.causation_id is self.source is None):
            _check_ids(self)
        created, attempts = self.created_at, self.delivery_attempts
        # Nearly every event passes here; finite is what lies between the infinities.
        if type(created) is float and -math.inf < created < math.inf and type(attempts) is int and attempts >= 1:
            return
        if isinstance(created, bool) or not isinstance(created, int | float) or not math.isfinite(created):
            raise EnvelopeError(f"created_at must be a number of Unix seconds, not {created!r}")
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise EnvelopeError(f"delivery_attempts must be at least 1, not {self.delivery_attempts!r}")


def _check_ids(event: EventEnvelope[Any] | WireEvent[Any]) -> None:
    for name in ("tenant_id", "correlation_id", "causation_id", "source"):
        value = getattr(event, name)
        if value is not None and not isinstance(value, str):
            raise EnvelopeError(f"{name} must be a string or None, not {value!r}")


class WireEvent(msgspec.Struct, Generic[Content], kw_only=True, gc=False):
    """An event as it stands in a stream. The field names and their order are fixed."""

    content: Content
    webhook: str | None = None
    reply_to: str | None = None
    topic: str | None = None
    task_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    source: str | None = None
    tenant_id: str | None = None
    delivery_attempts: int = 1
    created_at: float = 0.0


def check_topic(topic: object, *, internal: bool = False) -> str:
    """The topic without blanks around it; raises EnvelopeError when it is empty or reserved.

    `internal=True` admits the runtime's own topics.
    """
    if not isinstance(topic, str):
        raise EnvelopeError(f"Topic must be a non-empty string, not {topic!r}")
    return _internal_topic(topic) if internal else _public_topic(topic)


# Topics are few and met several times in each event's life: remembered, a check is ten times cheaper.
@functools.lru_cache(maxsize=4096)
def _internal_topic(topic: str) -> str:
    topic = topic.strip()
    if not topic:
        raise EnvelopeError("Topic must be a non-empty string, not a blank one")
    if topic.startswith("omni-dlq:") or ":dlq" in topic:
        raise EnvelopeError(f"Topic must not contain 'dlq' (reserved for dead letters): {topic!r}")
    if any(ord(char) < ord(" ") for char in topic):
        raise EnvelopeError(f"Topic must not hold control characters: {topic!r}")
    return topic


@functools.lru_cache(maxsize=4096)
def _public_topic(topic: str) -> str:
    topic = _internal_topic(topic)
    if topic.startswith(INTERNAL_PREFIX):
        raise EnvelopeError(f"Topic must not begin with {INTERNAL_PREFIX!r} (reserved): {topic!r}")
    return topic


def check_webhook(url: object) -> None:
    """Raise EnvelopeError unless `url` is an http or https URL with a host."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
    except ValueError:
        parts = None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise EnvelopeError(f"webhook must be an http:// or https:// URL, not {url!r}")


def check_content(value: object, path: str = "$") -> None:
    """Raise ContentError, with the path, where `value` is not a JSON value.

    JSON here is str, int, float, bool, None, dict with string keys, list and tuple. NaN and the
    infinities are none (RFC 8259, section 6).
    """
    if type(value) in _PLAIN:
        return
    try:
        _check(value, path)
    except RecursionError:
        raise ContentError(path, "it is nested too deeply, or holds itself") from None


_PLAIN = frozenset({str, bool, int, type(None)})
"""Types whose every value is a JSON value; looked for by exact type, before a path is spelled out."""


def _check(value: object, path: str) -> None:
    kind = type(value)
    if kind is dict or isinstance(value, dict):
        for key, item in value.items():  # type: ignore[attr-defined]
            if not isinstance(key, str):
                raise ContentError(path, f"the key {key!r} is a {type(key).__name__}, and keys are strings")
            if type(item) not in _PLAIN:
                _check(item, f"{path}.{key}")
    elif kind is list or kind is tuple:
        for index, item in enumerate(value):  # type: ignore[arg-type]
            if type(item) not in _PLAIN:
                _check(item, f"{path}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ContentError(path, f"{value!r} has no form in JSON")
    else:
        _check_subclass(value, path)


def _check_subclass(value: object, path: str) -> None:
    if isinstance(value, str | int):
        return
    if isinstance(value, list | tuple):
        _check(list(value), path)
        return
    raise ContentError(path, f"{kind_name(value)} is no JSON value (msgspec.to_builtins makes one of a struct)")


def kind_name(value: object) -> str:
    """The name of the value's type, with an article."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def encode_json(value: object, encoder: msgspec.json.Encoder | None = None) -> bytes:
    """`value` as JSON; raises ContentError for what only shows when it is written (lone surrogates)."""
    try:
        return (encoder or _encoder).encode(value)
    except (UnicodeEncodeError, OverflowError, RecursionError, TypeError, msgspec.MsgspecError) as error:
        raise ContentError("$", str(error)) from None


def _plain(value: object) -> object:
    """A subclass of a JSON scalar, as numpy's floats are one, as the scalar that it is."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"{kind_name(value)} is no JSON value")


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_sorted = msgspec.json.Encoder(enc_hook=_plain, order="deterministic")


def check_event(event: WireEvent[Any]) -> None:
    """Raise EnvelopeError for what an EventEnvelope would refuse; topic, time and attempts are checked elsewhere."""
    if event.webhook is not None:
        check_webhook(event.webhook)
    if event.reply_to is not None:
        event.reply_to = check_topic(event.reply_to)
    if not isinstance(event.task_id, str) or not event.task_id.strip():
        raise EnvelopeError(f"id must be a non-empty string, not {event.task_id!r}")
    if not (event.tenant_id is event.correlation_id is event.causation_id is event.source is None):
        _check_ids(event)


def write_event(event: WireEvent[Any]) -> bytes:
    """An event that was checked, as it is written to a stream; raises ContentError when its content is no JSON."""
    check_content(event.content)
    return encode_json(event)


def digest_of(event: WireEvent[Any]) -> str:
    """What says whether two publishes are the same: all that the event holds but its id and its times.

    Raises ContentError when its content is no JSON.
    """
    check_content(event.content)
    alike = encode_json(msgspec.structs.replace(event, task_id=None, created_at=0.0), _sorted)
    return hashlib.blake2b(alike, digest_size=16).hexdigest()


def wire_event(envelope: EventEnvelope[Any]) -> WireEvent[Any]:
    """The envelope in the form of the wire."""
    payload = envelope.payload
    return WireEvent(
        content=payload.content,
        webhook=payload.webhook,
        reply_to=payload.reply_to,
        topic=envelope.topic,
        task_id=envelope.id,
        correlation_id=envelope.correlation_id,
        causation_id=envelope.causation_id,
        source=envelope.source,
        tenant_id=envelope.tenant_id,
        delivery_attempts=envelope.delivery_attempts,
        created_at=envelope.created_at,
    )


def encode_event(envelope: EventEnvelope[Any]) -> bytes:
    """The envelope as it is written to a stream; raises ContentError when its content is no JSON."""
    return write_event(wire_event(envelope))


class EventDecoder(Generic[Content]):
    """Reads stored bodies whose content has one type; made once per agent, used per event."""

    def __init__(self, content_type: Any = Any) -> None:  # noqa: ANN401 -- any type form that msgspec reads
        self._decoder = msgspec.json.Decoder(WireEvent[content_type])

    def decode(self, body: bytes, *, topic: str, entry_id: str, attempts: int) -> EventEnvelope[Content]:
        """The event in `body`, for its try number `attempts`; raises EntryError with the reason.

        What the body leaves out is filled in: the topic of its stream, and an id made from the
        entry's, so that it is the same at every delivery.
        """
        try:
            wire: WireEvent[Content] = self._decoder.decode(body)
            return EventEnvelope(
                topic=wire.topic or topic,
                payload=PayloadBase(content=wire.content, webhook=wire.webhook or None, reply_to=wire.reply_to or None),
                id=wire.task_id or f"{topic}:{entry_id}",
                tenant_id=wire.tenant_id,
                correlation_id=wire.correlation_id,
                causation_id=wire.causation_id,
                source=wire.source,
                created_at=wire.created_at,
                delivery_attempts=attempts,
            )
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, EnvelopeError) as error:
            raise EntryError(f"the entry is no event that this agent can read: {error}") from error
