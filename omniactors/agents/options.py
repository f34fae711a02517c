"""What can be said about an agent: checked here, before anything runs."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import sys
import types
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import msgspec

from omniactors.actors.mailbox import Mailbox
from omniactors.agents.annotations import check_returned
from omniactors.backoff import Backoff
from omniactors.errors import AgentError, ContentError, EnvelopeError
from omniactors.streams.envelope import EventEnvelope, check_content, check_topic
from omniactors.streams.settlement import RetryPolicy

OnError = Literal["resume", "restart"]
Isolation = Literal["task", "process"]
EventKey = Callable[[EventEnvelope[Any]], Hashable]

LOADED_SCRIPT = "__omniactors_script__"
"""The module name of a script that is loaded beside another module with the name of its file."""


EVENTS_HELD = 512
"""Events an agent may hold in memory; it holds no more than 0.1 s of its work, so only quick agents come near."""


class AgentKeywords(TypedDict, total=False):
    """The keywords of an Agent class, which `OmniActors.add` takes too; `AgentOptions` explains each."""

    topic: str
    topics: Sequence[str]
    name: str
    concurrency: int
    limit: int | None
    mailbox: Mailbox
    retry: RetryPolicy
    timeout: float
    key: EventKey | str
    reply_to: str
    on_error: OnError
    isolation: Isolation
    tools: Sequence[Any]
    description: str


@dataclass(frozen=True)
class AgentOptions:
    """How an agent is run. Raises AgentError, with the keyword, for what is not allowed.

    `topics` it subscribes to. `name`: agents of one name share the work of a topic, agents of
    different names each get everything; no ':' in it. `concurrency`: how many instances handle
    events in this process, each one at a time. `limit`: how many events all processes together may
    have in hand; none is taken ahead then. `mailbox`: how many events are held in memory, at most
    (512, or twice the concurrency if that is more). `retry`: how often and when a failed event
    comes back. `timeout`: seconds for one `handle`. `key`: events with one key are handled in
    order, a function of the event or the name of a field of its content; two keys are one when they
    are the same as JSON.
    `reply_to`: the topic of replies when the event names none. `on_error`: "restart" restarts the
    actor after each event that failed. `isolation`: "task". `tools` and `description` are told to
    whoever lists agents.
    """

    topics: tuple[str, ...] = ()
    name: str | None = None
    concurrency: int = 1
    limit: int | None = None
    mailbox: Mailbox | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    key: EventKey | str | None = None
    reply_to: str | None = None
    on_error: OnError = "resume"
    isolation: Isolation = "task"
    tools: tuple[str, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        """Check every part."""
        if self.name is not None:
            check_name(self.name)
        if isinstance(self.concurrency, bool) or not isinstance(self.concurrency, int) or self.concurrency < 1:
            raise AgentError(f"concurrency must be an integer of at least 1, not {self.concurrency!r}")
        limit = self.limit
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise AgentError(f"limit must be an integer of at least 1, not {limit!r}")
        if self.mailbox is not None and not isinstance(self.mailbox, Mailbox):
            raise AgentError(f"mailbox must be a Mailbox, not {self.mailbox!r}")
        if self.mailbox is not None and self.mailbox.overflow != "wait":
            raise AgentError(f"events are durable: an agent's mailbox cannot have overflow={self.mailbox.overflow!r}")
        if not isinstance(self.retry, RetryPolicy):
            raise AgentError(f"retry must be a RetryPolicy, not {self.retry!r}")
        if self.timeout is not None and not (isinstance(self.timeout, int | float) and 0 < self.timeout < math.inf):
            raise AgentError(f"timeout must be a number of seconds above 0, not {self.timeout!r}")
        if self.key is not None and not isinstance(self.key, str) and not callable(self.key):
            raise AgentError(f"key must be a function of the event or the name of a field, not {self.key!r}")
        _check_choice("on_error", self.on_error, OnError)
        _check_choice("isolation", self.isolation, Isolation)
        if self.isolation == "process":
            raise AgentError("isolation='process' is not built yet; use isolation='task'")

    def override(self, keywords: AgentKeywords) -> AgentOptions:
        """These options with some replaced; raises AgentError, also for a keyword that does not exist."""
        unknown = set(keywords) - set(AgentKeywords.__annotations__)
        if unknown:
            allowed = ", ".join(AgentKeywords.__annotations__)
            raise AgentError(f"unknown agent keyword {', '.join(sorted(unknown))}; allowed are {allowed}")
        changes: dict[str, Any] = dict(keywords)
        topics = _topics(changes.pop("topic", None), changes.pop("topics", None))
        if topics:
            changes["topics"] = topics
        if changes.get("reply_to") is not None:
            changes["reply_to"] = _topic(changes["reply_to"])
        if "tools" in changes:
            changes["tools"] = tuple(tool_name(tool) for tool in changes["tools"])
        return replace(self, **changes)

    @property
    def capacity(self) -> int:
        """How many events may be held in memory.

        With a limit nothing is taken ahead of the instances: it would be missing where another process could begin it.
        """
        room = max(EVENTS_HELD, 2 * self.concurrency) if self.mailbox is None else self.mailbox.capacity
        return room if self.limit is None else min(room, self.concurrency)

    def ordering_of(self, event: EventEnvelope[Any]) -> str | None:
        """The ordering key of an event as JSON text, the same in every process; None when it has none.

        Raises whatever the key function raises, and TypeError for a key that has no form in JSON.
        """
        if self.key is None:
            return None
        value = field_of(event.payload.content, self.key) if isinstance(self.key, str) else self.key(event)
        return None if value is None else msgspec.json.encode(value, order="deterministic").decode()


class SubscriptionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the events of one agent are consumed, as OmniDaemon has it.

    `consumer_count` is the concurrency, `dlq_retry_limit` the number of retries after the first
    try. `reclaim_idle_ms` has no meaning here: work is taken over when its owner's lease ends.
    """

    reclaim_idle_ms: int | None = None
    dlq_retry_limit: int | None = None
    consumer_count: int | None = 1

    def __post_init__(self) -> None:
        """Raises AgentError for counts that are too small."""
        for name, least in (("consumer_count", 1), ("dlq_retry_limit", 0), ("reclaim_idle_ms", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise AgentError(f"{name} must be an integer of at least {least}, not {value!r}")


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An agent made of a callback, as OmniDaemon has it. Raises AgentError when made wrongly.

    `callback` is async, or a plain function, which runs in a worker thread. It gets a dict:
    `content, topic, task_id, agent, webhook, reply_to, correlation_id, causation_id, source,
    tenant_id, delivery_attempts, created_at`; what it returns is the result.
    """

    topic: str
    callback: Callable[[dict[str, Any]], Any]
    name: str | None = None
    tools: Sequence[Any] = ()
    description: str = ""
    config: SubscriptionConfig = msgspec.field(default_factory=SubscriptionConfig)

    def __post_init__(self) -> None:
        """Check the topic, the name and the callback."""
        msgspec.structs.force_setattr(self, "topic", _topic(self.topic))
        if not callable(self.callback):
            raise AgentError(f"callback must be a function, not {self.callback!r}")
        if inspect.isgeneratorfunction(self.callback) or inspect.isasyncgenfunction(self.callback):
            raise AgentError(f"callback must return its result, and {self.callback!r} is a generator: it yields")
        check_returned(self.callback, f"callback {tool_name(self.callback)}")
        if not isinstance(self.config, SubscriptionConfig):
            raise AgentError(f"config must be a SubscriptionConfig, not {self.config!r}")
        if isinstance(self.tools, str) or not isinstance(self.tools, Sequence):
            raise AgentError(f"tools must be a list, not {self.tools!r}")
        if self.name is not None:
            check_name(self.name)

    def options(self) -> AgentOptions:
        """The same, as options."""
        retries = self.config.dlq_retry_limit
        retry = RetryPolicy() if retries is None else RetryPolicy(max_attempts=retries + 1, backoff=Backoff())
        return AgentOptions(
            topics=(self.topic,),
            name=self.name,
            concurrency=self.config.consumer_count or 1,
            retry=retry,
            tools=tuple(tool_name(tool) for tool in self.tools),
            description=self.description,
        )


def check_name(name: object) -> str:
    """The name; raises AgentError when it is empty or holds a ':' or a control character."""
    if not isinstance(name, str) or not name.strip():
        raise AgentError(f"an agent's name must be a non-empty string, not {name!r}")
    if ":" in name or any(ord(char) < ord(" ") for char in name):
        raise AgentError(f"an agent's name must not hold ':' or control characters: {name!r}")
    return name


def stable_name(what: object, topics: Sequence[str]) -> str:
    """A name for an agent that has none: the same at every start of the same program.

    Made of module, qualified name and topics; a script's module is named after its file, and a
    `functools.partial` after its function, with a digest of its arguments. Raises AgentError for what
    has no name of its own, as a lambda, an instance, or arguments that have no form in JSON: two programs
    would share the work that each is to get.
    """
    on = f"{'+'.join(topics)}"
    digest = ""
    while isinstance(what, functools.partial):
        digest = f"-{_digest(what, on)}{digest}" if what.args or what.keywords else digest
        what = what.func
    qualified = getattr(what, "__qualname__", None)
    module = getattr(what, "__module__", None) or type(what).__module__
    if not isinstance(qualified, str) or qualified.endswith("<lambda>") or module == "builtins":
        raise _nameless("lambda" if isinstance(what, types.FunctionType) else type(what).__name__, on)
    if module in {"__main__", LOADED_SCRIPT}:
        file = getattr(sys.modules.get(module), "__file__", None)
        module = Path(file).stem if file else "main"
    qualified = qualified.replace("<", "").replace(">", "").replace(".locals.", ".")
    return f"{module}.{qualified}{digest}@{on}".replace(":", "_")


def _digest(what: functools.partial[Any], on: str) -> str:
    """A few letters that tell these arguments from others."""
    given = [list(what.args), what.keywords]
    try:
        check_content(given)
        return hashlib.blake2b(msgspec.json.encode(given, order="deterministic"), digest_size=4).hexdigest()
    except (ContentError, TypeError) as error:
        raise _nameless("partial with such arguments", on) from error


def _nameless(kind: str, on: str) -> AgentError:
    return AgentError(f"an agent made of a {kind} cannot be told from others on {on}: give it a name=")


def is_lone(what: object) -> bool:
    """Whether there is one of its name at a time: what a module defines, neither inside a function nor a method."""
    while isinstance(what, functools.partial):
        what = what.func
    return "<locals>" not in getattr(what, "__qualname__", "<locals>") and not inspect.ismethod(what)


def tool_name(tool: object) -> str:
    """How a tool is listed: a string as it is, anything else by its name."""
    return tool if isinstance(tool, str) else getattr(tool, "__name__", repr(tool))


def field_of(content: object, path: str) -> object:
    """The value at a dotted path inside the content, None when there is none."""
    for part in path.split("."):
        content = content.get(part) if isinstance(content, dict) else getattr(content, part, None)
    return content


def is_async(callback: Callable[..., Any]) -> bool:
    """Whether it is written as async, so that calling it only gives a coroutine.

    Whatever else returns an awaitable may do anything before: a plain function that wraps an async
    one is plain.
    """
    while isinstance(callback, functools.partial):
        callback = callback.func
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(
        getattr(type(callback), "__call__", None)  # noqa: B004 -- its kind is asked for
    )


def _topics(topic: str | None, topics: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(topics, str):
        raise AgentError(f"topics is a list of topics; for one, use topic={topics!r}")
    given = [*(() if topic is None else (topic,)), *(topics or ())]
    return tuple(dict.fromkeys(_topic(name) for name in given))


def _topic(topic: object) -> str:
    try:
        return check_topic(topic)
    except EnvelopeError as error:
        raise AgentError(str(error)) from None


def _check_choice(name: str, value: object, choices: object) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise AgentError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
