"""How one run of a child is ended: asked, given its time, cancelled, and then waited for.

There is no kill inside one process: a task that shields itself or never lets go cannot be ended,
and is never abandoned either. It is named, with the place where it hangs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from omniactors.actors.notices import ChildStuck

if TYPE_CHECKING:
    from omniactors.actors.incarnation import Incarnation
    from omniactors.actors.slot import Slot

STUCK_AFTER = 5.0
"""Seconds between the reports on a child that was cancelled and does not end."""


async def stop_run(slot: Slot, run: Incarnation, grace: float) -> None:
    """End `run` and return when it has ended; `grace` is in seconds, 0 cancels at once.

    Cancelling this call leaves the child asked or cancelled, and not waited for.
    """
    run.expected = True
    if grace > 0 and run.is_started:
        run.ask_to_stop()
        with trio.move_on_after(grace):
            await run.wait_ended()
    if run.reason is None:
        run.kill()
        await _wait_for_end(slot, run)


async def _wait_for_end(slot: Slot, run: Incarnation) -> None:
    waited = 0.0
    while run.reason is None:
        with trio.move_on_after(STUCK_AFTER):
            await run.wait_ended()
            return
        waited += STUCK_AFTER
        slot.supervisor.emit(ChildStuck(slot.path, waited, run.stack()))
