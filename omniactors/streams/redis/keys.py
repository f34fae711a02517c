"""Keys: the name of everything that is kept in Redis. docs/delivery.md has the table."""

from __future__ import annotations

from typing import Final

GROUP: Final = "group:"
STREAM: Final = "omni-stream:"
WAITING_CONSUMER: Final = "omni:waiting"
"""The consumer in whose name a group keeps entries that nobody holds: released ones and retries."""


class Keys:
    """All names, with the prefix in front; a prefix with a hash tag keeps them in one slot."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.control = f"{prefix}omni-ctl"
        """The stream of bells, that wake whoever waits for something else than a new entry."""
        self.groups = f"{prefix}omni-groups"
        self.consumers = f"{prefix}omni-consumers"
        self.paused = f"{prefix}omni-paused"
        self.config = f"{prefix}omni-config"
        self.agents = f"{prefix}omni-agents"
        self.agents_since = f"{prefix}omni-agents-since"
        self.scheduled = f"{prefix}omni-scheduled"

    def stream(self, topic: str) -> str:
        """The stream of a topic."""
        return f"{self.prefix}{STREAM}{topic}"

    def later(self, topic: str) -> str:
        """The delayed publications of a topic."""
        return f"{self.prefix}omni-later:{topic}"

    def calls(self, client: str) -> str:
        """The last replies to the calls of a client."""
        return f"{self.prefix}omni-calls:{client}"

    def dead(self, group: str) -> str:
        """The dead letters of a group."""
        return f"{self.prefix}omni-dlq:{group}"

    def counts(self, group: str) -> str:
        """The counters of a group."""
        return f"{self.prefix}omni-counts:{group}"

    def lease(self, consumer: str) -> str:
        """What lives as long as a consumer renews it."""
        return f"{self.prefix}omni-lease:{consumer}"

    def result(self, task_id: str) -> str:
        """The results of a task."""
        return f"{self.prefix}omni-result:{task_id}"

    def wanted(self, consumer: str) -> str:
        """The agents of a consumer that gave up, and that somebody wants to be tried again."""
        return f"{self.prefix}omni-wanted:{consumer}"

    def done(self, task_id: str) -> str:
        """The channel on which the results of a task are announced."""
        return f"{self.prefix}omni-done:{task_id}"


def group_name(topic: str, agent: str) -> str:
    """The name of an agent's group on a topic."""
    return f"{GROUP}{topic}:{agent}"


def group_parts(group: str) -> tuple[str, str]:
    """Topic and agent of a group's name; an agent's name holds no colon."""
    topic, _, agent = group.removeprefix(GROUP).rpartition(":")
    return topic, agent


def clean(text: str) -> str:
    """The text without lone surrogates, which UTF-8 cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def has_hash_tag(prefix: str) -> bool:
    """Whether all keys with this prefix are in one slot of a cluster (Redis Cluster Specification, hash tags)."""
    start = prefix.find("{")
    return start >= 0 and prefix.find("}", start + 1) > start + 1
