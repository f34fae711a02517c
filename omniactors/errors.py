"""Errors: everything omniactors raises on purpose, each with the facts that a caller can act on.

Trio's words are kept where trio has one: a full mailbox is a `trio.WouldBlock`, a late answer is
the `trio.TooSlowError` of the caller's own scope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping


LONGEST = 1000
"""Characters of a foreign value in a sentence of ours."""


def shown(value: object) -> str:
    """The value's `repr`, cut where it is very long; of a value that cannot be shown, its type."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 -- a foreign repr may raise anything
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


class OmniActorsError(Exception):
    """Base of every error that is omniactors' own."""


# -- actors and supervision ---------------------------------------------------------------------


class ActorStopped(OmniActorsError):
    """The target has ended, or is about to: the message was not handled.

    `path` names the target, `message` is what was not delivered, `reason` says how it ended
    (None while it is still stopping).
    """

    def __init__(self, path: str, message: object = None, reason: object = None) -> None:
        super().__init__(path, message, reason)
        self.path = path
        self.message = message
        self.reason = reason

    def __str__(self) -> str:
        how = f" ({self.reason})" if self.reason is not None else ""
        return f"{self.path} has stopped{how}; {type(self.message).__name__} was not delivered"


class AskFailed(OmniActorsError):
    """The handler of an ask raised; its exception is the `__cause__`."""

    def __init__(self, path: str, message: object) -> None:
        super().__init__(path, message)
        self.path = path
        self.message = message

    def __str__(self) -> str:
        return f"{self.path} failed while it handled {type(self.message).__name__}: {shown(self.__cause__)}"


class MailboxFull(OmniActorsError, trio.WouldBlock):
    """The mailbox has no room for `message` and its overflow rule does not wait."""

    def __init__(self, path: str, message: object, capacity: int) -> None:
        super().__init__(path, message, capacity)
        self.path = path
        self.message = message
        self.capacity = capacity

    def __str__(self) -> str:
        return f"the mailbox of {self.path} is full ({self.capacity}); {type(self.message).__name__} was not taken"


class DeadlockError(OmniActorsError):
    """Waiting would never end, because the target waits for the caller; `path` is the ring of names."""

    def __init__(self, path: tuple[str, ...]) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return "this would wait for ever: " + " -> ".join(self.path)


class UnhandledMessage(OmniActorsError, TypeError):
    """The target has no handler for a message of this type; `handled` are the types that it takes."""

    def __init__(self, path: str, message: object, handled: tuple[str, ...]) -> None:
        super().__init__(path, message, handled)
        self.path = path
        self.message = message
        self.handled = handled

    def __str__(self) -> str:
        known = ", ".join(self.handled) or "no message at all"
        return f"{self.path} has no handler for {type(self.message).__name__}; it handles {known}"


class SupervisionError(OmniActorsError):
    """Base of what a supervisor refuses or reports."""


class ChildStartError(SupervisionError):
    """Child `child_id` did not start; the reason is the `__cause__`."""

    def __init__(self, child_id: Hashable) -> None:
        super().__init__(child_id)
        self.child_id = child_id

    def __str__(self) -> str:
        lowest, below = self, ""
        while isinstance(lowest.__cause__, ChildStartError):  # of each level one, and there may be a thousand
            lowest = lowest.__cause__
            below = f", since {shown(lowest.child_id)} below it did not"
        return f"child {shown(self.child_id)} did not start{below}: {shown(lowest.__cause__)}"


class GaveUp(SupervisionError):
    """More restarts than the intensity allows; the last crash, of `child_id`, is the `__cause__`."""

    def __init__(self, supervisor: str, child_id: Hashable, intensity: str) -> None:
        super().__init__(supervisor, child_id, intensity)
        self.supervisor = supervisor
        self.child_id = child_id
        self.intensity = intensity

    def __str__(self) -> str:
        return f"supervisor {self.supervisor!r} gave up on child {shown(self.child_id)}: more than {self.intensity}"


class ChildError(SupervisionError):
    """Base of the refusals that concern one child id."""

    _sentence = "child {!r} cannot be used so"

    def __init__(self, child_id: Hashable) -> None:
        super().__init__(child_id)
        self.child_id = child_id

    def __str__(self) -> str:
        return self._sentence.format(self.child_id)


class DuplicateChildId(ChildError, ValueError):
    """Two specs of one supervisor carry the same id."""

    _sentence = "child id {!r} is used twice"


class ChildAlreadyStarted(ChildError):
    """A child with this id is running; `ref` points at it."""

    _sentence = "child {!r} is already started"

    def __init__(self, child_id: Hashable, ref: object) -> None:
        super().__init__(child_id)
        self.ref = ref


class ChildAlreadyPresent(ChildError):
    """A spec with this id exists, but its child is not running."""

    _sentence = "child {!r} is already present; restart_child or delete_child it"


class ChildNotFound(ChildError, LookupError):
    """The supervisor has no child with this id."""

    _sentence = "there is no child {!r}"


class ChildRunning(ChildError):
    """The operation needs a stopped child, and this one is running."""

    _sentence = "child {!r} is running; stop_child it first"


class ChildRestarting(ChildError):
    """The operation needs a stopped child, and this one is waiting for its restart."""

    _sentence = "child {!r} is restarting; stop_child it first"


class TooManyChildren(SupervisionError):
    """A `DynamicSupervisor` has reached its `max_children`."""

    def __init__(self, max_children: int) -> None:
        super().__init__(max_children)
        self.max_children = max_children

    def __str__(self) -> str:
        return f"the supervisor already has its {self.max_children} children"


class NameTaken(OmniActorsError):
    """A name that one actor alone may hold is held; `ref` points at the holder, `key` is the ServiceKey."""

    def __init__(self, key: object, ref: object) -> None:
        super().__init__(key, ref)
        self.key = key
        self.ref = ref

    def __str__(self) -> str:
        return f"{self.key!r} is taken by {self.ref!r}"


class ServiceNotFound(OmniActorsError, LookupError):
    """No actor is registered under `key`, a ServiceKey."""

    def __init__(self, key: object) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"nobody is registered under {self.key!r}"


class SupervisorClosed(SupervisionError):
    """The supervisor has ended or is stopping and takes no more requests."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"supervisor {self.name!r} is stopping or has ended"


# -- durable work -------------------------------------------------------------------------------


class EnvelopeError(OmniActorsError, ValueError):
    """An event that cannot be published: empty topic, reserved name, bad field."""


_PATH = 120
"""Characters of a path that a sentence has room for."""


class ContentError(EnvelopeError):
    """The content is no JSON value; `path` says where, as in `$.items[2]`."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        path = self.path if len(self.path) <= _PATH else f"{self.path[: _PATH // 2]}...{self.path[-_PATH // 2 :]}"
        return f"content is not JSON at {path}: {self.why}"


class EventTooLarge(EnvelopeError):
    """The event is `size` bytes of JSON, and `limit` are allowed."""

    def __init__(self, topic: str, size: int, limit: int) -> None:
        super().__init__(f"the event for {topic!r} has {size:,} bytes, and {limit:,} are allowed")
        self.topic = topic
        self.size = size
        self.limit = limit


class EntryError(OmniActorsError, ValueError):
    """A stored entry that cannot be read as an event; it goes to the dead letters with its bytes."""


class BackendError(OmniActorsError):
    """The durable store failed or refused; whether the operation took place is said by `outcome_known`."""

    def __init__(self, message: str, *, outcome_known: bool = True) -> None:
        super().__init__(message)
        self.outcome_known = outcome_known


class BackendUnusable(BackendError):
    """The durable store cannot be used at all (no database, wrong version, no permission): do not retry."""


class BackendRefused(BackendError):
    """The durable store refuses this very operation, now and always, for what it holds: trying again is no use."""


class BackendBusy(BackendError):
    """Another process held the store for too long; nothing was written and a retry is right."""


class BackendClosed(BackendError):
    """The durable store was closed while the operation waited, or before it began."""


class StreamFull(BackendError):
    """The stream of `topic` holds `length` entries and may hold `limit`: nothing was published.

    `wanted` is how many were to be added. Publishing again is right once its agents have caught up.
    """

    def __init__(self, topic: str, length: int, limit: int, wanted: int = 1) -> None:
        trouble = "is full" if wanted == 1 else f"has no room for {wanted:,} more"
        super().__init__(f"the stream of {topic!r} {trouble}: it holds {length:,} events and may hold {limit:,}")
        self.topic = topic
        self.length = length
        self.limit = limit
        self.wanted = wanted


class TaskFailed(OmniActorsError):
    """The task was dead-lettered after `attempts` tries of `agent`.

    `error` is what its handler raised last, as `KeyError: 'nope'`; `error_type` is the name of the
    exception's class, `traceback` what Python prints of it. Both are empty when an older version wrote
    the result.
    """

    def __init__(
        self, task_id: str, agent: str, error: str, attempts: int, *, error_type: str = "", traceback: str = ""
    ) -> None:
        super().__init__(task_id, agent, error, attempts)
        self.task_id = task_id
        self.agent = agent
        self.error = error
        self.attempts = attempts
        self.error_type = error_type
        self.traceback = traceback

    def __str__(self) -> str:
        tries = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        return f"task {self.task_id} failed at agent {self.agent!r} after {tries}: {self.error}"


class BatchFailed(OmniActorsError):
    """A batch was published in part: `published` are the ids that are durable, `failed` maps index to error."""

    def __init__(self, published: tuple[str, ...], failed: Mapping[int, Exception]) -> None:
        super().__init__(published, failed)
        self.published = published
        self.failed = failed

    def __str__(self) -> str:
        first, error = next(iter(self.failed.items()))
        is_known = all(getattr(each, "outcome_known", True) for each in self.failed.values())
        fate = "were not published" if is_known else "are not known to be published"
        return (
            f"{len(self.failed)} of {len(self.failed) + len(self.published)} events {fate}; "
            f"the first is number {first}: {error}"
        )


class AgentError(OmniActorsError, ValueError):
    """An agent that is declared wrongly, or one that does not exist."""


class SettingsError(OmniActorsError, ValueError):
    """A setting with a value that is not allowed, or one that is not built yet."""


class GatewayError(OmniActorsError):
    """The gateway cannot serve: the port is busy or the address may not be bound."""


# -- events ------------------------------------------------------------------------------------


class TooManySubscribers(OmniActorsError):
    """The bus has reached `max_global_subscribers`."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"the bus already has its {self.limit} global subscribers"
