"""The wire protocol of `/ws`, as values: frames of watchers are read, frames to them are written. Pure.

One frame is one JSON object with its type in `t`. Unknown keys are ignored.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from omniactors.events.event import GAP, Event
from omniactors.events.queue import Overflow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

VERSION = 1
JSON_SUBPROTOCOL = "omniactors.v1.json"
MSGPACK_SUBPROTOCOL = "omniactors.v1.msgpack"

STOPPING = 4000
BAD_TOKEN = 4401
NO_HELLO = 4408
"""Close codes: after 4000 to 4099 come back after a while, after 4400 to 4499 do not."""

MAX_EVENT = 512 * 1024
"""Bytes of one event. WebSocket clients commonly end the connection at a message of more than 1 MiB."""

CACHED = 200
"""Bytes that an event in the cache takes beside its text: small ones would be many."""

LONGEST_SHOWN = 100
"""Characters of a client's name in an error."""

EQUALITY = 8
"""Patterns that an equality of `where` counts as: each publish may look at it, while patterns are looked up at once."""

QUERY_SUBSCRIPTION = 0
"""The `s` of the subscription that the query of the URL makes."""

Id = int | str
"""What a client chooses to tell its requests (`id`) and subscriptions (`s`) apart."""


class FrameError(ValueError):
    """A frame, or a query, that cannot be understood; `id` is its request id when that could be read."""

    def __init__(self, why: str, *, id: Id | None = None) -> None:
        super().__init__(why)
        self.id = id


# -- from watchers ------------------------------------------------------------------------------


class ClientFrame(msgspec.Struct, frozen=True, kw_only=True, tag_field="t"):
    """Base of what a watcher may send."""


class Hello(ClientFrame, frozen=True, tag="hello"):
    """The first frame, needed only when a token is set and did not come with the request."""

    token: str | None = None
    client: str | None = None


class Sub(ClientFrame, frozen=True, tag="sub"):
    """Ask for events; the arguments are those of `EventBus.subscribe`, `queue` is its capacity."""

    s: Id
    id: Id | None = None
    types: list[str] | None = None
    topics: list[str] | None = None
    run: str | None = None
    since: str | None = None
    where: dict[str, str | int | float | bool | None] | None = None
    queue: int | None = None
    overflow: Overflow = "drop_newest"


class Unsub(ClientFrame, frozen=True, tag="unsub"):
    """Give up subscription `s`."""

    s: Id
    id: Id | None = None


class ClientPing(ClientFrame, frozen=True, tag="ping"):
    """Ask for a `pong`."""

    id: Id | None = None


class ClientPong(ClientFrame, frozen=True, tag="pong"):
    """An answer to `ping`. Nothing depends on it: the pongs of the WebSocket itself count."""


def price(frame: Sub) -> tuple[int, int]:
    """What a subscription asks for: patterns, which equalities count as, and characters in all."""
    where = frame.where or {}
    patterns = [*(frame.types or ()), *(frame.topics or ())]
    texts = [*patterns, *where, *where.values(), frame.run, frame.since, frame.s]
    return len(patterns) + EQUALITY * len(where), sum(len(str(text)) for text in texts if text is not None)


FromClient = Hello | Sub | Unsub | ClientPing | ClientPong


class _OnlyId(msgspec.Struct):
    id: Id | None = None


_decoder: msgspec.json.Decoder[FromClient] = msgspec.json.Decoder(FromClient)
_id_decoder = msgspec.json.Decoder(_OnlyId)


def parse_frame(message: str | bytes) -> FromClient:
    """Read one message of a watcher; raises FrameError."""
    if isinstance(message, bytes):
        raise FrameError("frames are JSON text; binary frames are not supported yet")
    try:
        return _decoder.decode(message)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise FrameError(f"not a frame of this protocol: {error}", id=_readable_id(message)) from None


def parse_query(query: str) -> Sub | None:
    """The subscription that a URL asks for with types (or topics), run or since; None when it does not.

    Lists are separated by commas or repeated. Raises FrameError.
    """
    values = {key: _split(texts) for key, texts in parse_qs(query).items()}
    if not values.keys() & {"types", "topics", "run", "since"}:
        return None
    arguments: dict[str, object] = {key: values[key] for key in ("types", "topics") if key in values}
    for key in ("run", "since", "overflow", "queue"):
        if key in values:
            if len(values[key]) != 1:
                raise FrameError(f"the query names {key!r} more than once")
            arguments[key] = values[key][0]
    try:
        return msgspec.convert({"t": "sub", "s": QUERY_SUBSCRIPTION, **arguments}, Sub, strict=False)
    except msgspec.ValidationError as error:
        raise FrameError(f"the query cannot be understood: {error}") from None


def shown(name: Id) -> str:
    """A client's name for something, as an answer may show it: not of any length."""
    text = repr(name)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def choose_subprotocol(offered: Sequence[str]) -> str | None:
    """The subprotocol to speak, None when the client names none; raises FrameError when ours is not among them."""
    if not offered or JSON_SUBPROTOCOL in offered:
        return JSON_SUBPROTOCOL if offered else None
    if MSGPACK_SUBPROTOCOL in offered:
        raise FrameError(f"{MSGPACK_SUBPROTOCOL} is not supported yet; use {JSON_SUBPROTOCOL}")
    raise FrameError(f"none of the subprotocols is known here; use {JSON_SUBPROTOCOL}, or name none")


# -- to watchers --------------------------------------------------------------------------------


class ServerFrame(msgspec.Struct, frozen=True, kw_only=True, tag_field="t"):
    """Base of what a watcher may get, `ev` aside: that one is spliced from events written once."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway takes: bytes of a message, subscriptions, events in a batch, events in a queue.

    `patterns` (an equality counts as 8) and `text` (characters) are for all subscriptions of a connection together.
    """

    message: int
    subscriptions: int
    patterns: int
    text: int
    batch: int
    queue: int


class Welcome(ServerFrame, frozen=True, tag="welcome"):
    """The first frame: protocol version, the bus's epoch and newest offset, the time, seconds between pings."""

    epoch: str
    head: int
    now: float
    ping: float
    limits: Limits
    v: int = VERSION


class Ok(ServerFrame, frozen=True, tag="ok"):
    """Request `id` is done."""

    id: Id | None


class Err(ServerFrame, frozen=True, tag="err"):
    """Request `id` was refused; `retry` is whether the same may work later."""

    id: Id | None
    code: str
    msg: str
    retry: bool = False


class Subbed(ServerFrame, frozen=True, tag="subbed"):
    """Subscription `s` counts from offset `from`; `replay` offsets of the past are read before it is live."""

    id: Id | None
    s: Id
    epoch: str
    start: int = msgspec.field(name="from")
    asked: str | None
    resumed: bool
    replay: int


class Gap(ServerFrame, frozen=True, tag="gap"):
    """`lost` events (null: unknown) are missing between offsets `o0` and `o1`; `total` so far in this subscription."""

    s: Id
    lost: int | None
    o0: int | None
    o1: int | None
    why: str
    total: int


class Live(ServerFrame, frozen=True, tag="live"):
    """Everything up to offset `o` was told; from here it is now."""

    s: Id
    o: int


class End(ServerFrame, frozen=True, tag="end"):
    """Nothing follows in `s`, which told everything up to offset `o` but `lost` events."""

    s: Id
    why: str
    o: int
    lost: int


class Ping(ServerFrame, frozen=True, tag="ping"):
    """A sign of life: the newest offset and, per subscription, where to resume, what was lost, what waits."""

    head: int
    pos: dict[str, int]
    lost: dict[str, int]
    q: dict[str, int]


class Pong(ServerFrame, frozen=True, tag="pong"):
    """The answer to a watcher's `ping`."""

    id: Id | None


class Bye(ServerFrame, frozen=True, tag="bye"):
    """The last frame; the close frame follows. `retry` is in how many seconds to come back, null for never."""

    code: int
    why: str
    retry: float | None


_encoder = msgspec.json.Encoder()


def write_frame(frame: ServerFrame) -> str:
    """The frame as text."""
    return _encoder.encode(frame).decode()


def gap_frame(s: Id, event: Event, *, total: int) -> Gap:
    """The frame that tells a `bus.gap`."""
    data = event.data
    return Gap(s=s, lost=data["lost"], o0=data["first"], o1=data["last"], why=data["why"], total=total)


# -- events -------------------------------------------------------------------------------------


class _WireEvent(msgspec.Struct, frozen=True):
    o: int
    ts: float
    run_id: str
    event_type: str
    source: str
    data: Any


def encode_event(event: Event) -> bytes:
    """One event as JSON, whatever its data is.

    A value that JSON has no form for is named by its type; data that cannot be written, or that
    takes more than `MAX_EVENT`, is replaced by `{"unreadable": why}`.
    """
    wire = _WireEvent(event.offset, event.timestamp, event.run_id, event.event_type, event.source, event.data)
    try:
        written = _event_encoder.encode(wire)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return _without_data(event, f"{type(error).__name__}: {error}")
    if len(written) > MAX_EVENT:
        return _without_data(event, f"{len(written)} bytes are too many for a frame")
    return written


def _without_data(event: Event, why: str) -> bytes:
    run_id, event_type, source = (_printable(text) for text in (event.run_id, event.event_type, event.source))
    data = {"unreadable": _printable(why)}
    return _event_encoder.encode(_WireEvent(event.offset, event.timestamp, run_id, event_type, source, data))


class EventCache:
    """Events as JSON, each written once however many watch; the newest are kept, at most `max_bytes` of them."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        # Not a plain dict: finding the first key of one that loses its first keys takes longer each time.
        self._written: OrderedDict[int, bytes] = OrderedDict()

    def encode(self, event: Event) -> bytes:
        """As `encode_event`, remembered by offset: for the events of one bus."""
        written = self._written.get(event.offset)
        if written is None:
            written = self._written[event.offset] = encode_event(event)
            self._size += len(written) + CACHED
            while self._size > self._max_bytes:
                _, oldest = self._written.popitem(last=False)
                self._size -= len(oldest) + CACHED
        return written


def batches(s: Id, events: Iterable[bytes], *, max_bytes: int) -> Iterator[str]:
    """`ev` frames with all the events in order, each at most `max_bytes` long unless one event alone is more."""
    part: list[bytes] = []
    size = 0
    for event in events:
        if part and size + len(event) > max_bytes:
            yield _splice(s, part)
            part, size = [], 0
        part.append(event)
        size += len(event) + 1
    if part:
        yield _splice(s, part)


def is_gap(event: Event) -> bool:
    """Whether the event tells a loss, and so becomes a `gap`."""
    return event.event_type == GAP and event.data.keys() >= {"lost", "first", "last", "why"}


def _splice(s: Id, events: list[bytes]) -> str:
    head = b'{"t":"ev","s":%b,"n":%d,"e":[' % (_encoder.encode(s), len(events))
    return b"".join((head, b",".join(events), b"]}")).decode()


def _split(texts: Sequence[str]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _readable_id(message: str) -> Id | None:
    try:
        return _id_decoder.decode(message).id
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None


def _name_type(value: object) -> str:
    return f"<{type(value).__name__}>"


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


_event_encoder = msgspec.json.Encoder(enc_hook=_name_type)
