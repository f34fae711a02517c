"""What one can ask about streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniactors.streams.envelope import INTERNAL_PREFIX, check_topic

if TYPE_CHECKING:
    from builtins import list as List  # noqa: N812 -- inside the class, `list` is the operation

    from omniactors.streams.backend import Backend, DeadLetter, StreamInfo

STREAM_PREFIX = "omni-stream:"


class StreamOperations:
    """`omni.streams`: what waits, what is being worked on, what is dead."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def list(self) -> List[StreamInfo]:
        """Every stream that users publish to, by topic; the runtime's own are left out."""
        return [stream for stream in await self._backend.streams() if not stream.topic.startswith(INTERNAL_PREFIX)]

    async def dlq(self, topic: str, limit: int = 10) -> List[DeadLetter]:
        """The newest dead letters of a topic, of all its agents; the topic may carry the stream prefix.

        Raises EnvelopeError for an empty topic and ValueError for a limit below 1.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit!r}")
        name = topic.removeprefix(STREAM_PREFIX) if isinstance(topic, str) else topic
        return await self._backend.dead_letters(check_topic(name, internal=True), limit=limit)
