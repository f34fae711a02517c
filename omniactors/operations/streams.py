"""What one can ask about streams, and do with their dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from omniactors.agents.publishing import unix_seconds
from omniactors.streams.backend import DeadFilter
from omniactors.streams.envelope import INTERNAL_PREFIX, check_topic
from omniactors.streams.settlement import DeadReason

if TYPE_CHECKING:
    from builtins import list as List  # noqa: N812 -- inside the class, `list` is the operation
    from collections.abc import Sequence
    from datetime import datetime

    from omniactors.streams.backend import Backend, DeadLetter, StreamInfo

STREAM_PREFIX = "omni-stream:"

AT_ONCE = 1000
"""Dead letters that one replay or purge takes when it is not told how many: one write, some milliseconds."""


class StreamOperations:
    """`omni.streams`: what waits, what is being worked on, what is dead.

    The filters of dead letters narrow each other: `agent`, `reason` (one of `handler-error`,
    `timeout`, `rejected`, `decode`, `crash-loop`), `error_type` (the name of the exception's
    class), `since` and `until` (when they died; Unix seconds, or a datetime with a time zone;
    `until` is the first moment that is too late), `ids`. A topic may carry the stream prefix. All
    raise EnvelopeError for an empty topic and ValueError for any other argument that is not allowed.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def list(self) -> List[StreamInfo]:
        """Every stream that users publish to, by topic; the runtime's own are left out."""
        return [stream for stream in await self._backend.streams() if not stream.topic.startswith(INTERNAL_PREFIX)]

    async def dlq(
        self,
        topic: str,
        limit: int = 10,
        *,
        agent: str | None = None,
        reason: DeadReason | None = None,
        error_type: str | None = None,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        ids: Sequence[str] | None = None,
    ) -> List[DeadLetter]:
        """The newest dead letters of a topic, of all its agents, newest first; of very large ones fewer."""
        where = _filter(agent=agent, reason=reason, error_type=error_type, since=since, until=until, ids=ids)
        return await self._backend.dead_letters(_topic(topic), limit=_limit(limit), where=where)

    async def replay(
        self,
        topic: str,
        *,
        limit: int = AT_ONCE,
        agent: str | None = None,
        reason: DeadReason | None = None,
        error_type: str | None = None,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        ids: Sequence[str] | None = None,
    ) -> int:
        """Give the oldest dead letters back to the agents in which they died; returns how many.

        Each comes as if it were new, with no tries behind it, to its own agent only. It leaves the
        dead letters in the same write, so a repeated call never delivers one twice. Raises
        StreamFull when the stream has no room for them; then nothing is replayed.
        """
        where = _filter(agent=agent, reason=reason, error_type=error_type, since=since, until=until, ids=ids)
        return await self._backend.replay_dead(_topic(topic), where, limit=_limit(limit))

    async def purge(
        self,
        topic: str,
        *,
        limit: int = AT_ONCE,
        agent: str | None = None,
        reason: DeadReason | None = None,
        error_type: str | None = None,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        ids: Sequence[str] | None = None,
    ) -> int:
        """Delete the oldest dead letters for good; returns how many."""
        where = _filter(agent=agent, reason=reason, error_type=error_type, since=since, until=until, ids=ids)
        return await self._backend.purge_dead(_topic(topic), where, limit=_limit(limit))


def _topic(topic: str) -> str:
    return check_topic(topic.removeprefix(STREAM_PREFIX) if isinstance(topic, str) else topic, internal=True)


def _limit(limit: int) -> int:
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit!r}")
    return limit


def _filter(
    *,
    agent: str | None,
    reason: DeadReason | None,
    error_type: str | None,
    since: float | datetime | None,
    until: float | datetime | None,
    ids: Sequence[str] | None,
) -> DeadFilter:
    allowed = get_args(DeadReason)
    if reason is not None and reason not in allowed:
        raise ValueError(f"reason must be one of {', '.join(allowed)}, not {reason!r}")
    if isinstance(ids, str):
        raise TypeError(f"ids is a list of ids; for one, use ids=[{ids!r}]")
    return DeadFilter(
        agent=agent,
        reason=reason,
        error_type=error_type,
        since=None if since is None else unix_seconds("since", since),
        until=None if until is None else unix_seconds("until", until),
        ids=None if ids is None else tuple(ids),
    )
