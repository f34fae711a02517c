"""The envelope: what an event is, how it is written to a stream, and how it is read back.

Pure. The wire form is one flat JSON object; it is what OmniDaemon writes and reads, so that both
can work on one stream. Fields that we do not know stay in the stored body, which is never
re-encoded: only settling an event removes it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import math
import os
import re
import time
from datetime import date, datetime, timedelta
from datetime import time as dt_time
from decimal import Decimal
from enum import Enum
from ipaddress import ip_address
from itertools import islice
from types import NoneType
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import msgspec

from omniactors.errors import ContentError, EntryError, EnvelopeError
from omniactors.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Content = TypeVar("Content")

INTERNAL_PREFIX = "omni."
"""Topics that begin so belong to the runtime itself, as the webhooks' one."""


MAX_HOST = 253
"""Characters of a host's name, as DNS has it."""

MAX_DEPTH = 500
"""How deeply content may be nested: below what every reader of it bears, Python's stack of 1,000 frames among them."""

_WRAPPING = 8
"""How much deeper the runtime's own events may be, which carry results inside."""

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
    """A UUID of version 7 (RFC 9562): the time, then chance, so that an id tells when it was made.

    By hand: it is made once for each event, and the `uuid` module takes four times as long.
    """
    digits, when = _draw(), "%012x" % (time.time_ns() // 1_000_000)
    # Of the variant's digit two bits are fixed; the others may as well be, with 72 bits of chance beside them.
    return f"{when[:8]}-{when[8:]}-7{digits[:3]}-8{digits[3:6]}-{digits[6:18]}"


def made_at(task_id: str) -> float | None:
    """When an id of `new_id` was made, in Unix seconds; None for any other id."""
    match = re.fullmatch(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", task_id)
    return None if match is None else int(match[1] + match[2], 16) / 1000


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

    `id` is the task id everywhere. `created_at` is in Unix seconds. `delivery_attempts` is the number
    of this try, from 1: those before it ended with an outcome. `deliveries` counts how often the
    event was handed to a process, this time included; so it is never less, and more when it was given
    back, or its process died. Raises EnvelopeError (a ValueError) when made with an empty or reserved topic.
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
    deliveries: int = 1

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
    """Raise EnvelopeError unless a result can be posted to `url`: http or https, a host, and a port if it names one."""
    why = "it is no text" if not isinstance(url, str) else _trouble_of(url)
    if why is not None:
        shown = f"{url!r}"
        if "@" in shown:  # what stands before it may be a password, in whatever form
            shown = f"***@{shown.rpartition('@')[2]}"
        raise EnvelopeError(f"webhook must be an http:// or https:// URL, not {redact(shown)}: {why}")


# Few receivers get many results.
@functools.lru_cache(maxsize=4096)
def _trouble_of(url: str) -> str | None:
    """Why nothing can be posted to this URL, or None."""
    if not url.isprintable() or " " in url:
        return "it holds blanks or control characters"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return str(error) if "@" not in url else "its host or its port is none"
    if parts.scheme not in ("http", "https"):
        return "it begins with neither"
    if port == 0:
        return "its port is 0"
    return "it names no host" if not host else None if _is_host(host) else "its host is none"


_LABEL = re.compile(r"(?!-)[\w-]{1,63}(?<!-)")


def _is_host(host: str) -> bool:
    """Whether it is an IP address, or a name of labels as DNS has them (and `_`, which containers use)."""
    labels = host.removesuffix(".").split(".")
    try:
        if ":" in host or labels[-1].isdecimal():
            ip_address(host.partition("%")[0])
            return True
        return len(host.encode("idna")) <= MAX_HOST and all(_LABEL.fullmatch(label) for label in labels)
    except ValueError:
        return False


def check_content(value: object, room: int = MAX_DEPTH) -> None:
    """Raise ContentError, with the path, where `value` has no form in JSON, or is nested more deeply than `room`.

    It has one when it is str, int, float, bool, None, a dict with string keys, a list or a tuple; and
    when msgspec gives it one: dataclasses, its own structs, attrs classes, enums, sets, dates and
    times, UUIDs, decimals, bytes. A model that can `model_dump(mode="json")`, as pydantic's, has the form
    that it dumps. NaN and the infinities have none (RFC 8259, section 6).
    """
    if type(value) in _PLAIN:
        return
    try:
        _check(value, "$", room)
    except ContentError:
        raise
    except RecursionError:
        raise ContentError("$", "it is nested too deeply, or holds itself") from None
    except (Exception, SystemExit) as error:  # what is looked at may run code of its own
        raise ContentError("$", f"it cannot be read: {type(error).__name__}: {error}") from error


_PLAIN = frozenset({str, bool, int, type(None)})
"""Types whose every value is a JSON value; looked for by exact type, before a path is spelled out."""


def _check(value: object, path: str, room: int) -> None:
    kind = type(value)
    if kind is dict or isinstance(value, dict):
        room = _deeper(room, path)
        for key, item in value.items():  # type: ignore[attr-defined]
            if not isinstance(key, str) and not (isinstance(key, Enum) and isinstance(key.value, str)):
                raise ContentError(path, f"the key {key!r} is a {type(key).__name__}, and keys are strings")
            if type(item) not in _PLAIN:
                _check(item, f"{path}.{key}", room)
    elif kind is list or kind is tuple:
        room = _deeper(room, path)
        for index, item in enumerate(value):  # type: ignore[arg-type]
            if type(item) not in _PLAIN:
                _check(item, f"{path}[{index}]", room)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ContentError(path, f"{value!r} has no form in JSON")
    else:
        _check_other(value, path, room)


def _deeper(room: int, path: str) -> int:
    if room <= 0:
        raise ContentError(path, f"it is nested more than {MAX_DEPTH} deep, or holds itself")
    return room - 1


def _check_other(value: object, path: str, room: int) -> None:
    """What is no JSON value itself: subclasses, and what has a form in JSON all the same."""
    if isinstance(value, list | tuple | set | frozenset):
        _check(list(value), path, room)
    elif isinstance(value, Enum):
        _check(value.value, path, room)
    elif isinstance(value, Decimal):
        if not value.is_finite():
            raise ContentError(path, f"{value!r} has no form in JSON")
    elif not isinstance(value, _LEAVES):
        fields = _fields_of(value)
        if fields is not None:
            room = _deeper(room, path)
            for name in fields:
                item = getattr(value, name, msgspec.UNSET)
                if item is not msgspec.UNSET:
                    _check(item, f"{path}.{name}", room)
        elif _can_dump(value):
            _check(_dumped(value, path), path, room)
        else:
            hint = "; it was not awaited" if inspect.isawaitable(value) else ""
            raise ContentError(path, f"{kind_name(value)} is no JSON value{hint}")


_LEAVES = (str, int, NoneType, date, dt_time, timedelta, UUID, bytes, bytearray, memoryview)


def _fields_of(value: object) -> Iterable[str] | None:
    """The names of the fields of a struct, a dataclass or an attrs class."""
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    attributes = getattr(type(value), "__attrs_attrs__", None)
    return None if attributes is None else [attribute.name for attribute in attributes]


def _can_dump(value: object) -> bool:
    """Whether it is a model of pydantic's, or of one that does as they do."""
    return not isinstance(value, type) and callable(getattr(type(value), "model_dump", None))


def _dumped(model: Any, path: str) -> object:  # noqa: ANN401 -- any model
    try:
        return model.model_dump(mode="json", by_alias=True)
    except (Exception, SystemExit) as error:
        raise ContentError(path, f"{kind_name(model)} does not become JSON: {type(error).__name__}: {error}") from error


def kind_name(value: object) -> str:
    """The name of the value's type, with an article."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def encode_json(value: object, encoder: msgspec.json.Encoder | None = None) -> bytes:
    """`value` as JSON; raises ContentError for what only shows when it is written (lone surrogates)."""
    try:
        return (encoder or _encoder).encode(value)
    except (UnicodeEncodeError, OverflowError, RecursionError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise ContentError("$", str(error)) from None


def _plain(value: Any) -> object:  # noqa: ANN401 -- whatever msgspec does not write itself
    """A model as what it dumps; a subclass of something plain, as numpy's floats are one, as what it is one of."""
    if _can_dump(value):
        return _dumped(value, "$")
    for kind, make in _MADE_PLAIN.items():
        if isinstance(value, kind):
            return make(value)
    raise TypeError(f"{kind_name(value)} is no JSON value")


_MADE_PLAIN: dict[type, Callable[[Any], object]] = {
    str: str.__str__,
    float: float,
    int: int,
    datetime: lambda value: datetime.combine(date(value.year, value.month, value.day), value.timetz()),
    date: lambda value: date(value.year, value.month, value.day),
    dt_time: lambda value: dt_time(value.hour, value.minute, value.second, value.microsecond, value.tzinfo),
    timedelta: lambda value: timedelta(value.days, value.seconds, value.microseconds),
    Decimal: Decimal,
    bytes: bytes,
}


def _read_other(kind: Any, value: object) -> object:  # noqa: ANN401 -- any type that msgspec does not read itself
    """A pydantic model, or one that does as they do; msgspec refuses what is no instance of the type then."""
    validate = getattr(kind, "model_validate", None)
    return validate(value) if callable(validate) else value


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
    is_internal = event.topic is not None and event.topic.startswith(INTERNAL_PREFIX)
    check_content(event.content, MAX_DEPTH + _WRAPPING if is_internal else MAX_DEPTH)
    return encode_json(event)


def digest_of(event: WireEvent[Any]) -> str:
    """What says whether two publishes are the same: all that the event holds but its id and its times.

    Raises ContentError when its content is no JSON.
    """
    check_content(event.content)
    alike = msgspec.structs.replace(event, task_id=None, created_at=0.0)
    try:
        text = encode_json(alike, _sorted)
    except ContentError:  # a set of things that have no order among themselves
        text = encode_json(alike)
    return hashlib.blake2b(text, digest_size=16).hexdigest()


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
        self._decoder = msgspec.json.Decoder(WireEvent[content_type], dec_hook=_read_other)

    def decode(
        self, body: bytes, *, topic: str, entry_id: str, attempts: int, deliveries: int = 1
    ) -> EventEnvelope[Content]:
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
                deliveries=max(attempts, deliveries),
            )
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- the type of the content may run code of users
            kind = "" if isinstance(error, msgspec.MsgspecError | EnvelopeError) else f"{type(error).__name__}: "
            cause = error if kind else error.__cause__  # it tells all that is to be told itself
            raise EntryError(f"the entry is no event that this agent can read: {kind}{error}") from cause


_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{}:,]')

_MOST_TOKENS = 1_000_000
"""After so many nothing more is looked for: it would hold up everybody."""

_GLIMPSED = frozenset({"task_id", "correlation_id", "causation_id", "tenant_id", "webhook"})


def glimpse(body: bytes, *, topic: str, attempts: int) -> EventEnvelope[Any] | None:
    """What can be told of an entry that is no event: whose it is, without its content; None without a task id.

    It may be cut off, nested too deeply or of wrong types: only texts at its top level are looked at.
    """
    found = {name: text for name, text in _top_level_texts(body) if name in _GLIMPSED and text}
    task_id, webhook = found.pop("task_id", ""), found.pop("webhook", None)
    try:
        if webhook is not None:
            check_webhook(webhook)
    except EnvelopeError:
        webhook = None
    if not task_id.strip():
        return None
    payload = PayloadBase(content=None, webhook=webhook)
    return EventEnvelope(
        topic=topic,
        payload=payload,
        id=task_id,
        tenant_id=found.get("tenant_id"),
        correlation_id=found.get("correlation_id"),
        causation_id=found.get("causation_id"),
        delivery_attempts=attempts,
    )


def _top_level_texts(body: bytes) -> Iterator[tuple[str, str]]:
    """The members of an object whose values are texts, by name."""
    depth, before, name = 0, b"", ""
    for match in islice(_TOKEN.finditer(body), _MOST_TOKENS):
        token = match[0]
        if token in b"[{":
            depth += 1
        elif token in b"]}":
            depth -= 1
        elif depth == 1 and token[:1] == b'"':
            try:
                text = msgspec.json.decode(token, type=str)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                text = ""
            if before == b":" and name:
                yield name, text
            name = text if before in (b"{", b",") else ""
        before = token
