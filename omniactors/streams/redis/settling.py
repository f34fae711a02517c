"""Settling: settlements as the script reads them, and dead letters as they are written and read."""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from omniactors.errors import BackendRefused
from omniactors.streams.backend import DeadLetter
from omniactors.streams.redis.calls import GeneralError
from omniactors.streams.redis.keys import STREAM, clean
from omniactors.streams.redis.publishing import milliseconds, publication_arguments
from omniactors.streams.redis.scripts import raw

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from omniactors.streams.backend import Settled
    from omniactors.streams.settlement import Dead, EntryKey, ResultRecord, Settlement

_object = msgspec.json.Decoder(dict[str, Any])


class Prepared(NamedTuple):
    """A settlement, and the same as the script takes it: `words` when it is plain, else `arguments`."""

    settlement: Settlement
    words: tuple[bytes | str, ...] | None
    arguments: list[Any]
    weight: int
    """Bytes, about."""


PART_BYTES = 4 << 20
"""About what goes to the server in one call; a larger settlement goes alone."""

WORD_BYTES = 512 * 1024
"""About what goes there in one word: half of the least that a server can be told to take (`proto-max-bulk-len`)."""


LARGE = 64 * 1024
"""Bytes of a body that a dead letter does not hold twice."""


def parts_of(settlements: Sequence[Settlement], bodies: Mapping[EntryKey, bytes]) -> Iterator[list[Prepared]]:
    """The settlements in their order, in parts of a bounded size, made one by one; `bodies` are those of the dead."""
    part: list[Prepared] = []
    size = packed = 0
    for settlement in settlements:
        prepared = _prepared(settlement, bodies)
        weight, packed_weight = prepared.weight, 0 if prepared.words else prepared.weight
        if part and (size + weight > PART_BYTES or packed + packed_weight > WORD_BYTES):
            yield part
            part = []
            size = packed = 0
        part.append(prepared)
        size += weight
        packed += packed_weight
    if part:
        yield part


def _prepared(settlement: Settlement, bodies: Mapping[EntryKey, bytes]) -> Prepared:
    record = settlement.result
    is_plain = settlement.dead is None and settlement.retry is None and not settlement.publications
    if is_plain and record is not None and record.status == "success":
        data = _to_json(_stamped(record))
        words = (settlement.key.entry_id, clean(record.task_id), data, f"{settlement.seconds:.6f}")
        return Prepared(settlement, words, [], len(data))
    body = bodies.get(settlement.key)
    arguments = settlement_arguments(settlement, body)
    weight = sum(len(publication.body) for publication in settlement.publications) + 2 * len(body or b"")
    weight += len(bytes(arguments[2][2])) if record is not None and settlement.retry is None else 0
    return Prepared(settlement, None, arguments, weight)


def _is_orderless(part: Sequence[Prepared]) -> bool:
    """Whether it makes no difference which comes first: each is about an entry and a result of its own."""
    settlements = [prepared.settlement for prepared in part]
    results = [
        (settlement.result.task_id, settlement.result.agent)
        for settlement in settlements
        if settlement.result is not None
    ]
    entries = {(settlement.key.topic, settlement.key.agent, settlement.key.entry_id) for settlement in settlements}
    return len(entries) == len(settlements) and len(set(results)) == len(results)


class Blocks:
    """What goes into one call, by group: as the script takes it, and in which order it answers."""

    def __init__(self, part: Sequence[Prepared]) -> None:
        self.arguments: list[list[Any]] = []
        self.words: list[bytes | str] = []
        self.places: list[int] = []
        """The place in the part of each flag of the answer."""
        groups: dict[tuple[str, str], tuple[float, list[int], list[int]]] = {}
        is_orderless = _is_orderless(part)
        for place, (settlement, words, _, _) in enumerate(part):
            key = settlement.key
            ttl, plain, others = groups.setdefault((key.topic, key.agent), (settlement.result_ttl, [], []))
            # The plain ones of a group go first, and share the time for which their results are kept.
            is_plain = words is not None and settlement.result_ttl == ttl and is_orderless
            (plain if is_plain else others).append(place)
        for (topic, agent), (ttl, plain, others) in groups.items():
            settlements = [
                part[place].arguments or settlement_arguments(part[place].settlement, None) for place in others
            ]
            self.arguments.append([clean(topic), clean(agent), settlements, len(plain), milliseconds(ttl)])
            for place in plain:
                self.words += part[place].words or ()
            self.places += plain + others


def blamed(outcomes: list[Settled]) -> list[Settled]:
    """The ends of settlements that were tried one by one: who failed beside others that were taken is at fault."""
    if True not in outcomes:
        return outcomes
    return [BackendRefused(str(end)) if isinstance(end, GeneralError) else end for end in outcomes]


def settlement_arguments(settlement: Settlement, body: bytes | None) -> list[Any]:
    """One settlement for the script; `body` is its entry's, needed for a dead letter."""
    entry_id, seconds = settlement.key.entry_id, f"{settlement.seconds:.6f}"
    if settlement.retry is not None:
        after = milliseconds(settlement.retry.after)
        return [entry_id, "retry", after, settlement.retry.attempts, seconds]
    result = _result_arguments(settlement.result, settlement.result_ttl)
    publications = [publication_arguments(publication) for publication in settlement.publications]
    if settlement.dead is None:
        return [entry_id, "done", result, publications, seconds]
    letter = encode_dead_letter(settlement.key, settlement.dead, body or b"", now=time.time())
    return [entry_id, "dead", result, publications, raw(letter), seconds]


def _result_arguments(record: ResultRecord | None, ttl: float) -> list[Any]:
    """[task id, status, record as JSON, time to live in ms], or nothing."""
    if record is None:
        return []
    return [clean(record.task_id), record.status, raw(_to_json(_stamped(record))), milliseconds(ttl)]


def _stamped(record: ResultRecord) -> ResultRecord:
    return record if record.processed_at else msgspec.structs.replace(record, processed_at=time.time())


_encoder = msgspec.json.Encoder()


def _to_json(value: Any) -> bytes:  # noqa: ANN401 -- any of our structs
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_cleaned(msgspec.to_builtins(value)))


def _cleaned(value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(name): _cleaned(item) for name, item in value.items()}
    return [_cleaned(item) for item in value] if isinstance(value, list) else value


def encode_dead_letter(key: EntryKey, dead: Dead, body: bytes, *, now: float) -> bytes:
    """A dead letter's field `data`: OmniDaemon's fields first, then ours.

    A large body is in it once, as `failed_message`: so the letter fits where the event did.
    """
    is_object = _is_object(body)
    text, encoding = (None, "utf-8") if is_object and len(body) > LARGE else _shown(body)
    return msgspec.json.encode(
        {
            "topic": clean(key.topic),
            "original_stream": f"{STREAM}{clean(key.topic)}",
            "original_id": key.entry_id,
            "failed_message": msgspec.Raw(body) if is_object else None,
            "error": clean(dead.error.text),
            "retry_count": max(dead.attempts - 1, 0),
            "failed_at": now,
            "reason": dead.reason,
            "error_type": clean(dead.error.type),
            "traceback": clean(dead.error.traceback),
            "attempts": dead.attempts,
            **({} if text is None else {"body": text, "body_encoding": encoding}),
        }
    )


class _WrittenLetter(msgspec.Struct):
    """A dead letter as it may be found; OmniDaemon writes the first seven fields, the event not always an object."""

    topic: str = ""
    original_stream: str = ""
    original_id: str = ""
    failed_message: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    retry_count: int = 0
    failed_at: float = 0.0
    reason: str = "handler-error"
    error_type: str = ""
    traceback: str = ""
    attempts: int | None = None
    body: str | None = None
    body_encoding: str = "utf-8"


_written = msgspec.json.Decoder(_WrittenLetter, strict=False)


def read_dead_letter(letter_id: str, fields: list[bytes], topic: str, agent: str) -> DeadLetter:
    """A dead letter from its fields, whoever wrote it; what is missing is filled in."""
    data = dict(zip(fields[::2], fields[1::2], strict=True)).get(b"data", b"{}")
    try:
        found = _written.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = _WrittenLetter(error="the dead letter itself cannot be read", body=data.decode("utf-8", "replace"))
    message = bytes(found.failed_message)
    return DeadLetter(
        id=letter_id,
        topic=topic,
        agent=agent,
        original_stream=found.original_stream or f"{STREAM}{topic}",
        original_id=found.original_id,
        failed_message=_object.decode(message) if _is_object(message) else None,
        error=found.error,
        reason=found.reason,  # type: ignore[arg-type]  # as it was written, perhaps by a newer version
        error_type=found.error_type,
        traceback=found.traceback,
        attempts=found.retry_count + 1 if found.attempts is None else found.attempts,
        retry_count=found.retry_count,
        failed_at=found.failed_at,
        body=message.decode("utf-8", "replace") if found.body is None else found.body,
        body_encoding=found.body_encoding,
    )


def body_of_letter(letter: DeadLetter) -> bytes:
    """The event's bytes, to be published again."""
    return base64.b64decode(letter.body) if letter.body_encoding == "base64" else letter.body.encode()


def _shown(body: bytes) -> tuple[str, str]:
    try:
        return body.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(body).decode(), "base64"


def _is_object(body: bytes) -> bool:
    try:
        _object.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True
