"""The registry: names of services, and which actors of one tree stand behind them now.

There is one for each tree, reached from its supervisors and actors; nothing is global. A name is
freed before anybody hears of the end that freed it, so whoever hears may take the name at once. An
end after which the actor is started again frees nothing: callers wait, as with a reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import trio

from omniactors.actors.home import check_thread, this_thread
from omniactors.actors.refs import ActorRef
from omniactors.errors import ActorStopped, NameTaken, ServiceNotFound, SupervisorClosed

if TYPE_CHECKING:
    from omniactors.actors.refs import ChildRef

M = TypeVar("M")


@dataclass(frozen=True)
class ServiceKey(Generic[M]):
    """The name of a service, and the type of the messages it takes: `ADDERS = ServiceKey[Add]("adders")`.

    Two keys of one name are the same key. A `unique` one lets a single actor hold the name.
    """

    name: str
    unique: bool = field(default=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for what is no name."""
        if not isinstance(self.name, str):
            raise TypeError(f"the name of a service is a string, not {self.name!r}")
        if not self.name:
            raise ValueError("the name of a service must not be empty")


@dataclass(frozen=True)
class _Holding:
    """How one actor holds one name."""

    is_exclusive: bool
    incarnation: int | None
    """Which incarnation took the name for itself; None when it was registered by somebody else."""


class Names:
    """Who holds which names: the registry as the runtime sees it. Never waits, but for an arrival."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._holders: dict[ServiceKey[Any], dict[ActorRef[Any], _Holding]] = {}
        self._keys_of: dict[ChildRef, dict[ServiceKey[Any], None]] = {}
        self._waiting: dict[ServiceKey[Any], trio.lowlevel.ParkingLot] = {}
        self._is_closed = False
        self._thread = this_thread()

    def check_thread(self) -> None:
        """Raise RuntimeError in any thread but that of the tree's run."""
        if not self._is_closed:
            check_thread(self._thread, self._path, "trio.from_thread.run_sync() with the token of its trio run")

    def open(self) -> None:
        """The tree runs (again)."""
        self._is_closed = False
        self._thread = this_thread()

    def close(self) -> None:
        """The tree has ended: nobody is going to register any more."""
        self._is_closed = True
        for lot in self._waiting.values():
            lot.unpark_all()

    def add(self, key: ServiceKey[Any], ref: ActorRef[Any], holding: _Holding) -> None:
        """Note one registration; raises NameTaken. Repeating it is harmless, and the longer one counts."""
        holders = self._holders.get(key, {})
        # Who holds a name exclusively is alone, so any one of the others tells.
        other = next((other for other in holders if other is not ref), None)
        if other is not None and (holding.is_exclusive or holders[other].is_exclusive):
            raise NameTaken(key, other)
        before = holders.get(ref)
        if before is not None:
            of_somebody_else = holding.incarnation is None or before.incarnation is None
            holding = _Holding(holding.is_exclusive, None if of_somebody_else else holding.incarnation)
        holders[ref] = holding
        self._holders[key] = holders
        self._keys_of.setdefault(ref, {})[key] = None
        lot = self._waiting.get(key)
        if lot is not None:
            lot.unpark_all()

    def remove(self, key: ServiceKey[Any], ref: ChildRef) -> None:
        """Forget one registration; harmless when there is none."""
        keys = self._keys_of.get(ref)
        if keys is None or key not in keys:
            return
        del keys[key]
        if not keys:
            del self._keys_of[ref]
        holders = self._holders[key]
        del holders[cast("ActorRef[Any]", ref)]
        if not holders:
            del self._holders[key]

    def run_ready(self, ref: ChildRef) -> None:
        """Free the names that an earlier incarnation took, and this one did not."""
        for key in tuple(self._keys_of.get(ref, ())):
            taken_in = self._holders[key][cast("ActorRef[Any]", ref)].incarnation
            if taken_in is not None and taken_in < ref.incarnation:
                self.remove(key, ref)

    def slot_closed(self, ref: ChildRef) -> None:
        """Free all names of a child that is down for good; idempotent."""
        for key in tuple(self._keys_of.get(ref, ())):
            self.remove(key, ref)

    def held(self, key: ServiceKey[M]) -> list[ActorRef[M]]:
        """Who holds the name, in the order in which they took it."""
        return list(self._holders.get(key, ()))

    def first(self, key: ServiceKey[M]) -> ActorRef[M] | None:
        """Who has held the name longest."""
        return next(iter(self._holders.get(key, ())), None)

    def keys(self) -> list[ServiceKey[Any]]:
        """The names that are held."""
        return list(self._holders)

    async def arrival(self, key: ServiceKey[Any]) -> None:
        """Wait for the next registration under `key`; cancellable. Raises SupervisorClosed when the tree ends."""
        lot = self._waiting.setdefault(key, trio.lowlevel.ParkingLot())
        try:
            if not self._is_closed:
                await lot.park()
        finally:
            if not lot and self._waiting.get(key) is lot:
                del self._waiting[key]
        if self._is_closed:
            raise SupervisorClosed(self._path)


class Registry:
    """Finds the actors of a tree by the name of what they do; `supervisor.registry` and `actor.registry`.

    All supervisors, pools and actors of a tree share the names; two trees never see each other's.
    Several actors may hold one name, unless the key is unique. A name lasts until its actor is down for
    good, and is free before anybody is told of that; over a restart it stays, and who looks it up
    gets the reference and waits. What the actor took for itself the next incarnation takes anew until
    it is ready, or it is free then.
    """

    __slots__ = ("_me", "names")

    def __init__(self, names: Names, me: ActorRef[Any] | None = None) -> None:
        self.names = names
        """The registry as the runtime sees it."""
        self._me = me

    def seen_by(self, me: ActorRef[Any]) -> Registry:
        """The same registry, as the actor `me` has it: what names nobody else is about itself."""
        return Registry(self.names, me)

    def register(self, key: ServiceKey[M], ref: ActorRef[M] | None = None) -> None:
        """Let `ref` be found under `key`; an actor that names nobody registers itself.

        It lasts until that actor is down for good. An actor that has registered itself registers anew
        after a restart, until it is ready. Raises NameTaken, which
        carries the holder, if the key is unique (here or where the holder used it), ActorStopped
        when the actor has ended, and ValueError for an actor of another tree.
        """
        self.names.check_thread()
        who = self._who(ref)
        if who.registry != self:
            raise ValueError(f"{who.path} belongs to another tree, and each tree has a registry of its own")
        if who.status == "stopped":
            raise ActorStopped(who.path, key)
        self.names.add(key, who, _Holding(key.unique, who.incarnation if who is self._me else None))

    def unregister(self, key: ServiceKey[M], ref: ActorRef[M] | None = None) -> None:
        """Let `ref`, or the actor itself, no longer be found under `key`; harmless when it was not."""
        self.names.check_thread()
        self.names.remove(key, self._who(ref))

    def lookup(self, key: ServiceKey[M]) -> ActorRef[M]:
        """Who holds `key`; of several the one that has held it longest. Raises ServiceNotFound."""
        ref = self.find(key)
        if ref is None:
            raise ServiceNotFound(key)
        return ref

    def find(self, key: ServiceKey[M]) -> ActorRef[M] | None:
        """As `lookup`, but None when there is nobody."""
        return self.names.first(key)

    async def wait_for(self, key: ServiceKey[M]) -> ActorRef[M]:
        """As `lookup`, but waits until there is somebody; cancellable.

        Raises SupervisorClosed when the tree ends meanwhile. Children start one after the other:
        waiting while one starts for one that starts later never ends by itself.
        """
        self.names.check_thread()
        await trio.lowlevel.checkpoint()
        while True:
            ref = self.find(key)
            if ref is not None:
                return ref
            await self.names.arrival(key)

    def members(self, key: ServiceKey[M]) -> list[ActorRef[M]]:
        """All who hold `key`, the one that has held it longest first."""
        return self.names.held(key)

    def keys(self) -> list[ServiceKey[Any]]:
        """The keys that somebody holds."""
        return self.names.keys()

    def __eq__(self, other: object) -> bool:
        return self.names is other.names if isinstance(other, Registry) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        names = ", ".join(sorted(key.name for key in self.keys())) or "no names"
        return f"<Registry [{names}]>"

    def _who(self, ref: ActorRef[Any] | None) -> ActorRef[Any]:
        who = self._me if ref is None else ref
        if who is None:
            raise TypeError("say whom to register: only an actor's own registry knows an actor to begin with")
        if not isinstance(who, ActorRef):
            raise TypeError(f"only what takes messages can be registered, and {who!r} does not")
        return who
