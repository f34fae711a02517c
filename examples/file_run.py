"""One run of the file pipeline: what became of each file, and the last stage, which takes note of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from file_stages import Indexed  # noqa: TC002 -- the annotation of handle() is read at run time

from omniactors import Agent, DeadLetter, EventEnvelope

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass
class Run:
    """What became of the files below `root`: in the end `published` = `done` + `rejected`, both by URI."""

    root: Path
    run_id: str
    published: int
    done: dict[str, Indexed] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def accounted(self) -> int:
        """How many files have come to an end."""
        return len(self.done.keys() | self.rejected.keys())

    def note_rejected(self, letters: Iterable[DeadLetter]) -> None:
        """Take in the dead letters that are of this run, with their reasons."""
        for letter in letters:
            event = letter.failed_message
            if event is not None and event["correlation_id"] == self.run_id:
                content = event["content"]
                self.rejected[content.get("uri") or content["file"]["uri"]] = letter.error


class Librarian(Agent, topic="file.indexed"):
    """The third stage: collects the files of one run; one that is delivered twice counts once."""

    def __init__(self, run: Run) -> None:
        self.run = run

    async def handle(self, event: EventEnvelope[Indexed]) -> None:
        """Keep it, unless an earlier run, which was killed, had left it over."""
        if event.correlation_id == self.run.run_id:
            self.run.done[event.payload.content.file.uri] = event.payload.content
