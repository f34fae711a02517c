"""Taking: wants as the fetch script reads them, and what it answers as entries."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from omniactors.streams.backend import Entry, Want
from omniactors.streams.redis.keys import clean
from omniactors.streams.settlement import EntryKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = logging.getLogger("omniactors.streams")

_ENTRY_ID: Final = re.compile(r"\d{1,20}-\d{1,20}")


def is_entry_id(text: str) -> bool:
    """Whether Redis can read it as the id of an entry."""
    return _ENTRY_ID.fullmatch(text) is not None


def merge_wants(wants: Sequence[Want]) -> list[Want]:
    """One want per group, with the sum of its credits."""
    merged: dict[tuple[str, str], Want] = {}
    for want in wants:
        group = (clean(want.topic), clean(want.agent))
        credit = max(want.credit, 0)
        if group in merged:
            credit += merged[group].credit
        merged[group] = msgspec.structs.replace(want, topic=group[0], agent=group[1], credit=credit)
    return list(merged.values())


def want_arguments(want: Want) -> list[Any]:
    """[topic, agent, credit, limit or -1, 1 when it is ordered]."""
    limit = -1 if want.limit is None else want.limit
    return [want.topic, want.agent, want.credit, limit, int(want.is_ordered)]


class Taken(msgspec.Struct, frozen=True):
    """What the script answered for one want.

    `due` is in seconds, None when nothing is delayed; `lost` is -1 where the key holds no stream.
    """

    want: Want
    is_paused: bool
    is_created: bool
    top: bytes
    due: float | None
    entries: list[Entry]
    lost: int


def read_answer(want: Want, answer: list[Any], consumer: str) -> Taken:
    """The answer to one want."""
    is_paused, is_created, top, due, retried, new, lost = answer
    return Taken(
        want=want,
        is_paused=bool(is_paused),
        is_created=bool(is_created),
        top=top,
        due=None if due < 0 else due / 1000,
        entries=[*_retried(want, retried, consumer), *_new(want, new, consumer)],
        lost=lost,
    )


def _retried(want: Want, rows: list[Any], consumer: str) -> Iterator[Entry]:
    for entry_id, fields, tries in rows:
        attempts, crashes, deliveries = map(int, tries.split())
        key = EntryKey(want.topic, want.agent, entry_id.decode(), consumer)
        yield Entry(key=key, body=body_of(fields), attempts=attempts, crashes=crashes, deliveries=deliveries)


def _new(want: Want, rows: list[Any], consumer: str) -> Iterator[Entry]:
    topic, agent = want.topic, want.agent
    for entry_id, found in zip(rows[::2], rows[1::2], strict=True):
        body = found if type(found) is bytes else body_of(found)
        yield Entry(key=EntryKey(topic, agent, entry_id.decode(), consumer), body=body)


def body_of(fields: list[bytes]) -> bytes:
    """The event in an entry's fields; without a field `data`, which every event has, all of them as JSON."""
    pairs = dict(zip(fields[::2], fields[1::2], strict=True))
    if b"data" in pairs:
        return pairs[b"data"]
    readable = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in pairs.items()}
    return msgspec.json.encode(readable)
