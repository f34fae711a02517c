"""The roster: a supervisor's children in start order, by id, and how many of them live."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import trio

from omniactors.actors.slot import Slot
from omniactors.errors import ChildNotFound, ChildRestarting, ChildRunning, DuplicateChildId, TooManyChildren

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from omniactors.actors.slot import SlotOwner
    from omniactors.actors.specs import ChildSpec, Flags


class Roster:
    """The slots of one supervisor. Nothing here starts or stops anything."""

    def __init__(self, owner: SlotOwner, flags: Flags, specs: Sequence[ChildSpec]) -> None:
        self._owner = owner
        self._flags = flags
        self._slots: dict[Hashable, Slot] = {}
        self._names: Counter[str] = Counter()
        self._live = 0
        self._significant_live = 0
        self._idle: trio.Event | None = None
        # Ids that count up make way for those that somebody chose, wherever they stand.
        self._chosen = {spec.id for spec in specs}
        for spec in specs:
            self.add(spec).place.hold(owner.place)  # until then nobody but the supervisor starts it

    def __len__(self) -> int:
        return len(self._slots)

    def in_order(self) -> list[Slot]:
        """All slots, in start order."""
        return list(self._slots.values())

    def holds(self, slot: Slot) -> bool:
        """Whether the slot is on the roster still."""
        return self._slots.get(slot.id) is slot

    def find(self, child_id: Hashable) -> Slot | None:
        """The slot with this id, if there is one."""
        return self._slots.get(child_id)

    def get(self, child_id: Hashable) -> Slot:
        """The slot with this id; raises ChildNotFound."""
        try:
            return self._slots[child_id]
        except (KeyError, TypeError):
            raise ChildNotFound(child_id) from None

    def get_stopped(self, slot: Slot) -> Slot:
        """`slot`, if it may be started or dropped; raises ChildNotFound, ChildRestarting or ChildRunning."""
        if not self.holds(slot):
            raise ChildNotFound(slot.id)
        if slot.state == "restarting":
            raise ChildRestarting(slot.id)
        if slot.run is not None:
            raise ChildRunning(slot.id)
        return slot

    def add(self, spec: ChildSpec) -> Slot:
        """A slot for the spec, behind the others; raises DuplicateChildId, TooManyChildren, or ValueError."""
        self._flags.check_spec(spec)
        if len(self._slots) >= self._flags.max_children:
            raise TooManyChildren(int(self._flags.max_children))
        child_id = spec.id if spec.id is not None else self._next_id(spec.name)
        if child_id in self._slots:
            raise DuplicateChildId(child_id)
        slot = self._slots[child_id] = Slot(spec, child_id, self._owner)
        return slot

    def drop(self, slot: Slot) -> None:
        """Forget the slot; harmless when it is not on the roster."""
        if self.holds(slot):
            del self._slots[slot.id]

    def opened(self, slot: Slot) -> None:
        """A slot that was stopped is started."""
        self._live += 1
        self._significant_live += slot.spec.significant

    def closed(self, slot: Slot) -> None:
        """A slot that was not stopped is so now."""
        self._live -= 1
        self._significant_live -= slot.spec.significant
        if not self._live and self._idle is not None:
            self._idle.set()
            self._idle = None

    def ends_all(self, slot: Slot) -> bool:
        """Whether the supervisor ends with this child, which has just ended by itself for good."""
        if not slot.spec.significant:
            return False
        rule = self._flags.auto_shutdown
        return rule == "any_significant" or (rule == "all_significant" and not self._significant_live)

    async def wait_idle(self) -> None:
        """Wait until no child is alive or about to be restarted; cancellable."""
        while self._live:
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()
        await trio.lowlevel.checkpoint()

    def _next_id(self, name: str) -> str:
        while True:
            self._names[name] += 1
            child_id = f"{name}-{self._names[name]}"
            if child_id not in self._slots and child_id not in self._chosen:
                return child_id
