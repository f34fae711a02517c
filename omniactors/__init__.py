"""The one public door: every name that users import, resolved on first use (PEP 562).

`import omniactors` loads nothing; `omniactors.Actor` loads what an actor needs and no more. A
public class or function says that it lives here (`omniactors.Actor`), wherever its file is.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omniactors.actors.actor import Actor
    from omniactors.actors.dynamic import DynamicSupervisor
    from omniactors.actors.inspection import ChildInfo, MailboxInfo, PastExit
    from omniactors.actors.mailbox import Mailbox
    from omniactors.actors.messages import Request, on
    from omniactors.actors.notices import (
        ChildExited,
        ChildRestartScheduled,
        ChildStarted,
        ChildStartFailed,
        ChildStopped,
        ChildStuck,
        MessagesLost,
        SupervisorGaveUp,
        TreeReport,
    )
    from omniactors.actors.pool import pool
    from omniactors.actors.poolrefs import BroadcastRef, MemberStatistics, PoolRef, PoolStatistics
    from omniactors.actors.refs import ActorRef, ActorStatistics, ChildRef
    from omniactors.actors.registry import Registry, ServiceKey
    from omniactors.actors.replies import NoReply, ReplyHandle
    from omniactors.actors.rules import ExitReason, Ignore, Intensity, Shutdown
    from omniactors.actors.specs import ChildSpec
    from omniactors.actors.supervisor import ChildCounts, Supervisor
    from omniactors.actors.threads import ThreadRef
    from omniactors.actors.timers import Timers
    from omniactors.actors.trees import open_supervisor, run_supervisor, subtree
    from omniactors.actors.watching import Down
    from omniactors.agents.agent import Agent
    from omniactors.agents.options import AgentConfig, SubscriptionConfig
    from omniactors.agents.signals import HandlerTimeout, Reject, Reply, RetryAfter
    from omniactors.backoff import Backoff
    from omniactors.errors import (
        ActorStopped,
        AgentError,
        AskFailed,
        BackendBusy,
        BackendClosed,
        BackendError,
        BackendRefused,
        BackendUnusable,
        BatchFailed,
        ChildAlreadyPresent,
        ChildAlreadyStarted,
        ChildError,
        ChildNotFound,
        ChildRestarting,
        ChildRunning,
        ChildStartError,
        ContentError,
        DeadlockError,
        DuplicateChildId,
        EntryError,
        EnvelopeError,
        EventTooLarge,
        GatewayError,
        GaveUp,
        MailboxFull,
        NameTaken,
        OmniActorsError,
        ServiceNotFound,
        SettingsError,
        StreamFull,
        SupervisionError,
        SupervisorClosed,
        TaskFailed,
        TooManyChildren,
        TooManySubscribers,
        UnhandledMessage,
    )
    from omniactors.events.bus import EventBus
    from omniactors.events.context import run_context
    from omniactors.events.event import Event
    from omniactors.events.subscription import Subscription
    from omniactors.operations.health import Health
    from omniactors.operations.results import TaskStatus
    from omniactors.settings import Settings
    from omniactors.streams.backend import (
        AgentRecord,
        DeadLetter,
        Finding,
        GroupInfo,
        RuntimeRecord,
        StreamInfo,
        Whereabouts,
    )
    from omniactors.streams.envelope import EventEnvelope, PayloadBase
    from omniactors.streams.redis.client import TrioRedis
    from omniactors.streams.redis.errors import ConnectionLost
    from omniactors.streams.settlement import ResultRecord, RetryPolicy
    from omniactors.system import OmniActors

__version__ = "0.1.0"

__all__ = [
    "Actor",
    "ActorRef",
    "ActorStatistics",
    "ActorStopped",
    "Agent",
    "AgentConfig",
    "AgentError",
    "AgentRecord",
    "AskFailed",
    "BackendBusy",
    "BackendClosed",
    "BackendError",
    "BackendRefused",
    "BackendUnusable",
    "Backoff",
    "BatchFailed",
    "BroadcastRef",
    "ChildAlreadyPresent",
    "ChildAlreadyStarted",
    "ChildCounts",
    "ChildError",
    "ChildExited",
    "ChildInfo",
    "ChildNotFound",
    "ChildRef",
    "ChildRestartScheduled",
    "ChildRestarting",
    "ChildRunning",
    "ChildSpec",
    "ChildStartError",
    "ChildStartFailed",
    "ChildStarted",
    "ChildStopped",
    "ChildStuck",
    "ConnectionLost",
    "ContentError",
    "DeadLetter",
    "DeadlockError",
    "Down",
    "DuplicateChildId",
    "DynamicSupervisor",
    "EntryError",
    "EnvelopeError",
    "Event",
    "EventBus",
    "EventEnvelope",
    "EventTooLarge",
    "ExitReason",
    "Finding",
    "GatewayError",
    "GaveUp",
    "GroupInfo",
    "HandlerTimeout",
    "Health",
    "Ignore",
    "Intensity",
    "Mailbox",
    "MailboxFull",
    "MailboxInfo",
    "MemberStatistics",
    "MessagesLost",
    "NameTaken",
    "NoReply",
    "OmniActors",
    "OmniActorsError",
    "PastExit",
    "PayloadBase",
    "PoolRef",
    "PoolStatistics",
    "Registry",
    "Reject",
    "Reply",
    "ReplyHandle",
    "Request",
    "ResultRecord",
    "RetryAfter",
    "RetryPolicy",
    "RuntimeRecord",
    "ServiceKey",
    "ServiceNotFound",
    "Settings",
    "SettingsError",
    "Shutdown",
    "StreamFull",
    "StreamInfo",
    "Subscription",
    "SubscriptionConfig",
    "SupervisionError",
    "Supervisor",
    "SupervisorClosed",
    "SupervisorGaveUp",
    "TaskFailed",
    "TaskStatus",
    "ThreadRef",
    "Timers",
    "TooManyChildren",
    "TooManySubscribers",
    "TreeReport",
    "TrioRedis",
    "UnhandledMessage",
    "Whereabouts",
    "on",
    "open_supervisor",
    "pool",
    "run_context",
    "run_supervisor",
    "subtree",
]

# A name is public when it stands three times: imported above for type checkers, in `__all__`, and
# here with its home. `tests/test_exports.py` holds the three together.
_NAMES_BY_HOME = {
    "omniactors.actors.actor": "Actor",
    "omniactors.actors.dynamic": "DynamicSupervisor",
    "omniactors.actors.inspection": "ChildInfo MailboxInfo PastExit",
    "omniactors.actors.mailbox": "Mailbox",
    "omniactors.actors.messages": "Request on",
    "omniactors.actors.notices": (
        "ChildExited ChildRestartScheduled ChildStartFailed ChildStarted ChildStopped ChildStuck MessagesLost "
        "SupervisorGaveUp TreeReport"
    ),
    "omniactors.actors.pool": "pool",
    "omniactors.actors.poolrefs": "BroadcastRef MemberStatistics PoolRef PoolStatistics",
    "omniactors.actors.refs": "ActorRef ActorStatistics ChildRef",
    "omniactors.actors.registry": "Registry ServiceKey",
    "omniactors.actors.replies": "NoReply ReplyHandle",
    "omniactors.actors.rules": "ExitReason Ignore Intensity Shutdown",
    "omniactors.actors.specs": "ChildSpec",
    "omniactors.actors.supervisor": "ChildCounts Supervisor",
    "omniactors.actors.threads": "ThreadRef",
    "omniactors.actors.timers": "Timers",
    "omniactors.actors.trees": "open_supervisor run_supervisor subtree",
    "omniactors.actors.watching": "Down",
    "omniactors.agents.agent": "Agent",
    "omniactors.agents.options": "AgentConfig SubscriptionConfig",
    "omniactors.agents.signals": "HandlerTimeout Reject Reply RetryAfter",
    "omniactors.backoff": "Backoff",
    "omniactors.errors": (
        "ActorStopped AgentError AskFailed BackendBusy BackendClosed BackendError BackendRefused BackendUnusable "
        "BatchFailed ChildAlreadyPresent ChildAlreadyStarted ChildError ChildNotFound ChildRestarting ChildRunning "
        "ChildStartError ContentError DeadlockError DuplicateChildId EntryError EnvelopeError EventTooLarge "
        "GatewayError GaveUp MailboxFull NameTaken OmniActorsError ServiceNotFound SettingsError StreamFull "
        "SupervisionError SupervisorClosed TaskFailed TooManyChildren TooManySubscribers UnhandledMessage"
    ),
    "omniactors.events.bus": "EventBus",
    "omniactors.events.context": "run_context",
    "omniactors.events.event": "Event",
    "omniactors.events.subscription": "Subscription",
    "omniactors.settings": "Settings",
    "omniactors.operations.health": "Health",
    "omniactors.operations.results": "TaskStatus",
    "omniactors.streams.backend": "AgentRecord DeadLetter Finding GroupInfo RuntimeRecord StreamInfo Whereabouts",
    "omniactors.streams.envelope": "EventEnvelope PayloadBase",
    "omniactors.streams.redis.client": "TrioRedis",
    "omniactors.streams.redis.errors": "ConnectionLost",
    "omniactors.streams.settlement": "ResultRecord RetryPolicy",
    "omniactors.system": "OmniActors",
}
_HOMES = {name: home for home, names in _NAMES_BY_HOME.items() for name in names.split()}


def _adopt(home: str) -> None:
    """Make the public classes and functions of a loaded module say that they live here.

    String annotations of a class are looked up in the module that its `__module__` names (by
    msgspec and `typing.get_type_hints`), so they are resolved before that name changes.
    """
    module = sys.modules[home]
    for name in _NAMES_BY_HOME[home].split():
        value = vars(module).get(name)
        if isinstance(value, type | FunctionType) and value.__module__ == home:
            if isinstance(value, type):
                _resolve_annotations(value, vars(module))
            value.__module__ = __name__


def _resolve_annotations(cls: type, namespace: dict[str, object]) -> None:
    """Evaluate the annotations that `cls` itself declares; what only type checkers import stays text."""
    annotations = inspect.get_annotations(cls)
    for field, annotation in annotations.items():
        if isinstance(annotation, str):
            try:
                annotations[field] = eval(annotation, namespace, dict(vars(cls)))  # noqa: S307 -- our own source
            except NameError:
                continue
    cls.__annotations__ = annotations


if not TYPE_CHECKING:  # a checker that saw it would take every misspelt name for a public one

    def __getattr__(name: str) -> object:
        """The public `name`, loaded from its home; raises AttributeError for any other."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(home), name)
        for loaded in _NAMES_BY_HOME.keys() & sys.modules.keys():
            _adopt(loaded)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
