"""The event that watchers see: a frozen value, and the one string that names its place on a bus.

`Draft` is an event that is written out only when somebody reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec
from msgspec.structs import force_setattr

GAP = "bus.gap"
"""The type of the event that stands where others were lost; its data is `lost, first, last, why`."""

MAX_DIGITS = 18
"""An offset of more digits is no offset: it would not fit into 64 bits."""


class ReadOnlyDict(dict[str, Any]):
    """A dict that refuses to change: many watchers hold the same one."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("the data of an event cannot be changed; use dict(event.data) for a copy")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[ReadOnlyDict], tuple[dict[str, Any]]]:
        return ReadOnlyDict, (dict(self),)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened: its type, its data, and the run that it belongs to ("" for none).

    `event_type` is a dotted name such as `task.completed`; `data` is copied, with the dicts and lists
    in it, and read-only. The bus fills in the rest when the event is published: `offset` (1, 2, 3 ...
    over the whole bus), `event_id` (the position, `epoch-offset`), `timestamp` (Unix seconds),
    `source` (which process), and `run_id` from `run_context` when it is "". Raises TypeError or
    ValueError when it is made with an empty type, data that is no mapping, or a field of another
    type, so that publishing it cannot fail.
    """

    run_id: str = ""
    event_type: str
    data: Mapping[str, Any] = ReadOnlyDict()
    offset: int = 0
    event_id: str = ""
    timestamp: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        """Check what callers write, and make the data read-only."""
        if not (
            type(self.event_type) is type(self.run_id) is type(self.event_id) is type(self.source) is str
            and type(self.timestamp) is float
            and self.event_type
        ):
            _check_fields(self)
        data = self.data
        if type(data) is not ReadOnlyDict:
            if type(data) is not dict and not isinstance(data, Mapping):
                raise TypeError(f"data must be a mapping, not {type(data).__name__}")
            force_setattr(self, "data", _read_only(data))


def _check_fields(event: Event) -> None:
    """Have plain texts and numbers alone: what a subclass thinks of == or of its hash would run where it is published.

    Raises TypeError and ValueError for what is neither.
    """
    if not isinstance(event.event_type, str) or not event.event_type:
        raise ValueError(f"event_type must be a non-empty string, not {event.event_type!r}")
    for name in ("event_type", "run_id", "event_id", "source"):
        value = getattr(event, name)
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a string, not {type(value).__name__}")
        force_setattr(event, name, str.__str__(value))
    if isinstance(event.timestamp, bool) or not isinstance(event.timestamp, int | float):
        raise TypeError(f"timestamp must be a number of seconds, not {type(event.timestamp).__name__}")
    force_setattr(event, "timestamp", float(event.timestamp))


def _read_only(data: Mapping[str, Any]) -> ReadOnlyDict:
    """A copy that its maker cannot change, of the dicts and lists in it too. Other values are what they are."""
    copy = ReadOnlyDict(data)
    for value in copy.values():
        kind = type(value)
        if kind is dict or kind is list:
            try:
                return ReadOnlyDict({key: _copied(item) for key, item in copy.items()})
            except RecursionError:  # it holds itself, or is nested deeper than JSON's readers go: not guarded inside
                return copy
    return copy


def _copied(value: Any) -> Any:  # noqa: ANN401 -- any value is fine
    kind = type(value)
    if kind is dict:
        return ReadOnlyDict({key: _copied(item) for key, item in value.items()})
    return [_copied(item) for item in value] if kind is list else value


class Draft(msgspec.Struct, gc=False):
    """An event whose data is put together when somebody reads it, each time anew, of `names` and `values`.

    For what happens with every task: mostly nobody watches, and to write it out took four times as
    long. The values do not change; `weight` is about how many bytes they keep alive. With `ends_run`
    its run is closed behind it.
    """

    run_id: str
    event_type: str
    names: tuple[str, ...]
    values: tuple[Any, ...]
    weight: int
    timestamp: float
    ends_run: bool = False
    offset: int = 0

    def write_out(self, epoch: str, source: str) -> Event:
        """The event, as the bus of this epoch and source has admitted it."""
        return Event(
            run_id=self.run_id,
            event_type=self.event_type,
            data=ReadOnlyDict(zip(self.names, self.values, strict=True)),
            offset=self.offset,
            event_id=position(epoch, self.offset),
            timestamp=self.timestamp,
            source=source,
        )


def position(epoch: str, offset: int) -> str:
    """The place of an event as one string; `epoch` names one bus object in one process."""
    return f"{epoch}-{offset}"


def plain_text(what: str, value: object) -> str:
    """The text without what a subclass of `str` adds, such as a `==` that raises; TypeError for what is no text."""
    if not isinstance(value, str):
        raise TypeError(f"{what} is a text, not {type(value).__name__}")
    return str.__str__(value)


def parse_position(text: str) -> tuple[str, int]:
    """Epoch and offset of a position; raises ValueError when the text is none."""
    text = plain_text("a position", text)
    epoch, dash, digits = text.rpartition("-")
    if not dash or not epoch or not (digits.isascii() and digits.isdigit()) or len(digits) > MAX_DIGITS:
        raise ValueError(f"a position looks like 'epoch-offset', not {text!r}")
    return epoch, int(digits)
