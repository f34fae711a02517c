"""The test kit's door: tools for people who test their own actors, agents and trees.

Needs no pytest; the fixtures are in `omniactors.testing.pytest_plugin`, which needs pytest-trio.
"""

from omniactors.testing.cancels import cancel_everywhere
from omniactors.testing.dead_letters import DeadLetters
from omniactors.testing.faults import (
    Crash,
    Delay,
    Fault,
    FaultPlan,
    Hang,
    InjectedFault,
    Injection,
    SwallowCancel,
    after_message,
    at_message,
    at_start,
    at_stop,
)
from omniactors.testing.faulty import faulty
from omniactors.testing.idle import busy_children, wait_idle
from omniactors.testing.leftovers import no_leftover_tasks
from omniactors.testing.notices import Notices
from omniactors.testing.probes import Probe, start_probe

__all__ = [
    "Crash",
    "DeadLetters",
    "Delay",
    "Fault",
    "FaultPlan",
    "Hang",
    "InjectedFault",
    "Injection",
    "Notices",
    "Probe",
    "SwallowCancel",
    "after_message",
    "at_message",
    "at_start",
    "at_stop",
    "busy_children",
    "cancel_everywhere",
    "faulty",
    "no_leftover_tasks",
    "start_probe",
    "wait_idle",
]
