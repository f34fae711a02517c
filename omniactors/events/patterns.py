"""Patterns and selections: which events a subscriber asked for.

Pure. Patterns are those of NATS subjects: tokens between dots, `*` for exactly one token, `>` at
the end for one or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from omniactors.events.event import GAP, Event, ReadOnlyDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_EVENT_FIELDS = ("run_id", "event_type", "offset", "event_id", "timestamp", "source")


MAX_PATTERNS = 8192
"""So many patterns one subscription may have: what one watcher asks for is kept, and must not fill the memory."""
MAX_LENGTH = 256
"""Characters of a pattern, or of a path in `where`."""
MAX_TOKENS = 8
"""Tokens of a pattern with `*`: each may double the ways in which an event type is looked up, so 256 at most."""
MAX_EQUALITIES = 16
"""Equalities of one `where`: each is looked at with every event."""
MAX_KEYS = 10_000
"""Keys of an object that `where` looks into: that all of them are texts is checked, once for each event."""

_END = ""
"""Marks a node of the tree at which a pattern ends; no token is empty."""
_TAIL = ">"

_Node: TypeAlias = "dict[str, _Node]"


class Patterns:
    """The patterns of one subscription, put together so that their number does not matter to who publishes.

    Those without wildcards are a set; the others are a tree of tokens. Raises ValueError for a text
    that is no pattern, for too many of them, and for none.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(dict.fromkeys(str.__str__(text) if isinstance(text, str) else text for text in texts))
        if not self.texts:
            raise ValueError("types is empty: no event could ever match; leave it out to get every type")
        if len(self.texts) > MAX_PATTERNS:
            raise ValueError(f"types has {len(self.texts):,} patterns, and {MAX_PATTERNS:,} are allowed")
        self._tree: _Node = {}
        literal = set()
        for text in self.texts:
            tokens = _tokens(text)
            if "*" not in tokens and tokens[-1] != _TAIL:
                literal.add(text)
                continue
            node = self._tree
            for token in tokens:
                node = node.setdefault(token, {})
            node[_END] = {}
        self._literal = frozenset(literal)

    def __repr__(self) -> str:
        return f"<Patterns {', '.join(map(repr, self.texts[:3]))}{', ...' if len(self.texts) > 3 else ''}>"  # noqa: PLR2004

    def matches(self, event_type: str) -> bool:
        """Whether an event of this type is meant."""
        if event_type in self._literal:
            return True
        nodes = [self._tree] if self._tree else []
        for token in event_type.split("."):
            if not nodes:
                return False
            if any(_TAIL in node for node in nodes):
                return True
            nodes = [node[wanted] for node in nodes for wanted in {token, "*"} if wanted in node]
        return any(_END in node for node in nodes)


def _tokens(text: object) -> list[str]:
    if not isinstance(text, str):
        raise ValueError(f"a pattern is a text, not {type(text).__name__}")  # noqa: TRY004 -- as for any bad pattern
    if len(text) > MAX_LENGTH:
        raise ValueError(f"pattern {text[:20]!r}... has {len(text):,} characters, and {MAX_LENGTH} are allowed")
    tokens = str.split(text, ".")
    if not all(tokens):
        raise ValueError(f"pattern {text!r} has an empty token")
    if _TAIL in tokens[:-1]:
        raise ValueError(f"pattern {text!r}: '>' stands for the whole tail, so nothing may follow it")
    for token in tokens:
        if len(token) > 1 and ("*" in token or ">" in token):
            raise ValueError(f"pattern {text!r}: '*' and '>' stand for whole tokens, as in 'task.*'")
    if "*" in tokens and len(tokens) > MAX_TOKENS:
        raise ValueError(f"pattern {text!r}: one with '*' may have {MAX_TOKENS} tokens, not {len(tokens)}")
    return tokens


Scalar: TypeAlias = str | int | float | bool | None

Objects: TypeAlias = dict[int, bool]
"""By id, what in one event was looked into, and whether it may be: to find that out takes longer than to look."""


@dataclass(frozen=True)
class Where:
    """Equalities over fields, such as `data.agent` or `source`; a path that leads nowhere is not equal.

    Values are compared as JSON's are: texts, numbers, true and false, null. Whatever else an event
    holds is equal to nothing: no code of a value or a key ever runs here, where events are published.
    """

    equalities: tuple[tuple[tuple[str, ...], Scalar], ...]

    @classmethod
    def of(cls, where: Mapping[str, Any]) -> Where:
        """Read a map of dotted path to value; raises ValueError for a path that no event has, and for other values."""
        if len(where) > MAX_EQUALITIES:
            raise ValueError(f"where has {len(where):,} equalities, and {MAX_EQUALITIES} are allowed")
        return cls(tuple((_path(path), _scalar(path, value)) for path, value in where.items()))

    def matches(self, event: Event, objects: Objects | None = None) -> bool:
        """Whether every equality holds. `objects` is for one event, and for all who look at it."""
        objects = {} if objects is None else objects
        return all(_holds(event, path, value, objects) for path, value in self.equalities)


def _path(path: object) -> tuple[str, ...]:
    if not isinstance(path, str) or len(path) > MAX_LENGTH:
        raise ValueError(f"where: a path is a text of at most {MAX_LENGTH} characters, such as 'data.agent'")
    head, *tail = steps = tuple(str.split(path, "."))
    if not all(steps) or (head != "data" and (head not in _EVENT_FIELDS or tail)):
        known = ", ".join((*_EVENT_FIELDS, "data.<key>"))
        raise ValueError(f"where: {path!r} is no field of an event; the fields are {known}")
    return steps


def _scalar(path: str, value: object) -> Scalar:
    """The value as a plain JSON value: a member of an enum of texts or numbers is what it stands for."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(getattr(value, "value", value)) if isinstance(value, Enum) else kind(value)
    raise ValueError(f"where: {path!r} can equal a text, a number, true, false or null, and no {type(value).__name__}")


@dataclass(frozen=True)
class Selection:
    """Everything that an event must fulfil to reach one subscriber; None asks for nothing.

    A gap always matches: what is lost before it could be matched is told to everybody.
    """

    run_id: str | None = None
    types: Patterns | None = None
    where: Where | None = None

    def wants_type(self, event_type: str) -> bool:
        """Whether events of this type are meant, the rest aside."""
        return self.types is None or event_type == GAP or self.types.matches(event_type)

    def matches(self, event: Event, objects: Objects | None = None) -> bool:
        """Whether the event is meant; `objects` as for `Where.matches`."""
        if event.event_type == GAP:
            return True
        return (
            (self.run_id is None or event.run_id == self.run_id)
            and self.wants_type(event.event_type)
            and (self.where is None or self.where.matches(event, objects))
        )


def parse_patterns(types: Iterable[str] | str) -> Patterns:
    """Patterns from their texts; a single text stands for itself. Raises ValueError, also when there are none."""
    return Patterns((types,) if isinstance(types, str) else types)


def _holds(event: Event, path: tuple[str, ...], value: Scalar, objects: Objects) -> bool:
    head, *tail = path
    found: Any = getattr(event, head)
    for step in tail:
        is_object = objects.get(id(found))
        if is_object is None:
            is_object = objects[id(found)] = _is_object(found)
        if not is_object or step not in found:
            return False
        found = found[step]
    return _is_equal(found, value)


def _is_object(value: Any) -> bool:  # noqa: ANN401 -- any value is fine
    """Whether it is a dict whose keys are plain texts: others may answer `in` with code of their own."""
    kind = type(value)
    return (kind is dict or kind is ReadOnlyDict) and len(value) <= MAX_KEYS and all(type(key) is str for key in value)


def _is_equal(found: Any, value: Scalar) -> bool:  # noqa: ANN401 -- any value is fine
    kind = type(found)
    if kind is int or kind is float:
        return (type(value) is int or type(value) is float) and bool(found == value)
    if issubclass(kind, str):
        return type(value) is str and str.__eq__(found, value)  # whatever the subclass thinks of ==
    return kind is type(value) and bool(found == value)
