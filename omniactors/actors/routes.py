"""Routes: which member of a pool gets the next message. No trio and no clock; chance comes in as an argument."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

Route = Literal["shared", "round_robin", "least_loaded", "random", "consistent_hash", "broadcast"]

Key = str | Callable[[Any], Hashable]
"""What decides where a message goes: an attribute of it, or a function of it."""

_MASK = (1 << 64) - 1
_PROBES = 64
"""Members to try for a key whose own is missing, before any other will do."""


class Candidate(Protocol):
    """A member, as a route sees it."""

    @property
    def number(self) -> int:
        """Counted from 1; stays with the member for its life."""
        ...

    @property
    def load(self) -> int:
        """How many messages it has: queued, in hand, and of senders that wait."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether its mailbox has no room."""
        ...


C = TypeVar("C", bound=Candidate)


class Chooser(Protocol):
    """One route of one pool."""

    has_choice: bool
    """Whether another member would do as well; else the message decides."""

    def choose(self, message: Any, members: Sequence[C]) -> C:  # noqa: ANN401 -- a message is whatever is sent
        """The member for `message`, of one or more that are sorted by number."""
        ...


class RoundRobin:
    """Each member in turn; one that is full is passed over, unless all are."""

    has_choice = True

    def __init__(self) -> None:
        self._next = 0

    def choose(self, _message: object, members: Sequence[C]) -> C:
        """The next one."""
        count = len(members)
        first = self._next % count
        for step in range(count):
            index = (first + step) % count
            if not members[index].is_full:
                break
        else:
            index = first
        self._next = index + 1
        return members[index]


class LeastLoaded:
    """The member with the fewest messages; of equals each in turn."""

    has_choice = True

    def __init__(self) -> None:
        self._next = 0

    def choose(self, _message: object, members: Sequence[C]) -> C:
        """The one that has the least to do."""
        count = len(members)
        best = first = self._next % count
        least = members[first].load
        for step in range(1, count):
            if least == 0:
                break
            index = (first + step) % count
            load = members[index].load
            if load < least:
                best, least = index, load
        self._next = best + 1
        return members[best]


class Random:
    """Any member; one that is full is passed over, unless all are."""

    has_choice = True

    def __init__(self, below: Callable[[int], int]) -> None:
        self._below = below
        """A random integer of at least 0 and below its argument."""

    def choose(self, _message: object, members: Sequence[C]) -> C:
        """Anyone."""
        member = members[self._below(len(members))]
        if member.is_full:
            others = [other for other in members if not other.is_full]
            if others:
                return others[self._below(len(others))]
        return member


class ConsistentHash:
    """The member that the message's key belongs to, full or not.

    When a pool of n grows by one, about one key in n + 1 moves, each of them to the new member;
    when it shrinks, those of the last member move. Jump consistent hash (Lamping and Veach, 2014).
    """

    has_choice = False

    def __init__(self, key: Key) -> None:
        self._key_of: Callable[[Any], Hashable] = operator.attrgetter(key) if isinstance(key, str) else key

    def choose(self, message: object, members: Sequence[C]) -> C:
        """The one for this key."""
        seed = key_hash(self._key_of(message))
        highest = members[-1].number
        if highest == len(members):
            return members[jump(seed, highest)]
        present = {member.number: member for member in members}
        for _ in range(_PROBES):  # so that only the keys of the missing member go elsewhere
            member = present.get(jump(seed, highest) + 1)
            if member is not None:
                return member
            seed = _mix(seed)
        return members[seed % len(members)]


def chooser(route: Route, key: Key | None, below: Callable[[int], int]) -> Chooser:
    """A new chooser for a route that has one ("shared" and "broadcast" choose nobody)."""
    if route == "consistent_hash" and key is not None:
        return ConsistentHash(key)
    if route == "least_loaded":
        return LeastLoaded()
    return Random(below) if route == "random" else RoundRobin()


def key_hash(key: Hashable) -> int:
    """64 bits of `key`; for str, bytes and int the same in every process. Raises TypeError when it has no hash.

    Equal keys have equal hashes: a str that has another idea of `==`, and so of its hash, goes by that.
    """
    hashed, by = hash(key), type(key).__hash__
    if isinstance(key, str) and by is str.__hash__:
        return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    if (isinstance(key, bytes) and by is bytes.__hash__) or isinstance(key, memoryview):
        return int.from_bytes(blake2b(key, digest_size=8, key=b"bytes").digest(), "big")
    return _mix(hashed & _MASK)


def jump(seed: int, buckets: int) -> int:
    """The bucket of a 64-bit seed, from 0 and below `buckets`."""
    bucket, following = -1, 0
    while following < buckets:
        bucket = following
        seed = (seed * 2862933555777941757 + 1) & _MASK
        following = int((bucket + 1) * ((1 << 31) / ((seed >> 33) + 1)))
    return bucket


def _mix(value: int) -> int:
    """Splitmix64: neighbours end up far apart."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
