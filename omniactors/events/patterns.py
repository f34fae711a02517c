"""Patterns and selections: which events a subscriber asked for.

Pure. Patterns are those of NATS subjects: tokens between dots, `*` for exactly one token, `>` at
the end for one or more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omniactors.events.event import GAP, Event

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_EVENT_FIELDS = ("run_id", "event_type", "offset", "event_id", "timestamp", "source")


@dataclass(frozen=True)
class Pattern:
    """One pattern; raises ValueError when it is made from a text that is none."""

    text: str
    _tokens: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Split the text and check its tokens."""
        if not isinstance(self.text, str):
            raise TypeError(f"a pattern is a string, not {type(self.text).__name__}")
        tokens = tuple(self.text.split("."))
        if not all(tokens):
            raise ValueError(f"pattern {self.text!r} has an empty token")
        if ">" in tokens[:-1]:
            raise ValueError(f"pattern {self.text!r}: '>' stands for the whole tail, so nothing may follow it")
        for token in tokens:
            if len(token) > 1 and ("*" in token or ">" in token):
                raise ValueError(f"pattern {self.text!r}: '*' and '>' stand for whole tokens, as in 'task.*'")
        object.__setattr__(self, "_tokens", tokens)

    def matches(self, event_type: str) -> bool:
        """Whether an event of this type is meant."""
        tokens = event_type.split(".")
        wanted = self._tokens
        if wanted[-1] == ">":
            wanted = wanted[:-1]
            if len(tokens) <= len(wanted):
                return False
        elif len(tokens) != len(wanted):
            return False
        return all(want in {"*", token} for want, token in zip(wanted, tokens, strict=False))


@dataclass(frozen=True)
class Where:
    """Equalities over fields, such as `data.agent` or `source`; a path that leads nowhere is not equal."""

    equalities: tuple[tuple[tuple[str, ...], Any], ...]

    @classmethod
    def of(cls, where: Mapping[str, Any]) -> Where:
        """Read a map of dotted path to value; raises ValueError for a path that no event has."""
        equalities = []
        for path, value in where.items():
            head, *tail = steps = tuple(path.split("."))
            if not all(steps) or (head != "data" and (head not in _EVENT_FIELDS or tail)):
                known = ", ".join((*_EVENT_FIELDS, "data.<key>"))
                raise ValueError(f"where: {path!r} is no field of an event; the fields are {known}")
            equalities.append((steps, value))
        return cls(tuple(equalities))

    def matches(self, event: Event) -> bool:
        """Whether every equality holds."""
        return all(_holds(event, path, value) for path, value in self.equalities)


@dataclass(frozen=True)
class Selection:
    """Everything that an event must fulfil to reach one subscriber; None asks for nothing.

    A gap always matches: what is lost before it could be matched is told to everybody.
    """

    run_id: str | None = None
    types: tuple[Pattern, ...] | None = None
    where: Where | None = None

    def wants_type(self, event_type: str) -> bool:
        """Whether events of this type are meant, the rest aside."""
        return self.types is None or event_type == GAP or any(pattern.matches(event_type) for pattern in self.types)

    def matches(self, event: Event) -> bool:
        """Whether the event is meant."""
        if event.event_type == GAP:
            return True
        return (
            (self.run_id is None or event.run_id == self.run_id)
            and self.wants_type(event.event_type)
            and (self.where is None or self.where.matches(event))
        )


def parse_patterns(types: Iterable[str] | str) -> tuple[Pattern, ...]:
    """Patterns from their texts; a single text stands for itself. Raises ValueError, also when there are none."""
    texts = (types,) if isinstance(types, str) else tuple(types)
    if not texts:
        raise ValueError("types is empty: no event could ever match; leave it out to get every type")
    return tuple(Pattern(text) for text in dict.fromkeys(texts))


def _holds(event: Event, path: tuple[str, ...], value: object) -> bool:
    head, *tail = path
    found: Any = getattr(event, head)
    for step in tail:
        if not isinstance(found, dict) or step not in found:
            return False
        found = found[step]
    return bool(found == value)
