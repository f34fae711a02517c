"""A pipeline over real files: file.uploaded -> file.scanned -> file.indexed, and a report at the end.

    python file_pipeline.py [FOLDER] [--limit N] [--report FILE]

Each stage's result is the next stage's event (see file_stages.py). The events are in the embedded
store: after a kill, the next run works off what the last one left. One run at a time in a folder.
"""

from __future__ import annotations

import argparse
import os
import sysconfig
import uuid
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from file_report import write_report
from file_stages import Indexed, Indexer, Scanner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from omniactors import Agent, EventEnvelope, OmniActors, PayloadBase

if TYPE_CHECKING:
    from collections.abc import Iterator

TOPICS = ("file.uploaded", "file.scanned", "file.indexed")


class Librarian(Agent, topic="file.indexed"):
    """Collects the files of one run; a file that is delivered twice is still one."""

    def __init__(self, run_id: str, done: dict[str, Indexed]) -> None:
        self.run_id = run_id
        self.done = done

    async def handle(self, event: EventEnvelope[Indexed]) -> None:
        """Keep it, unless an earlier run that was killed had left it over."""
        if event.correlation_id == self.run_id:
            self.done[event.payload.content.path] = event.payload.content


def text_files(root: Path) -> Iterator[str]:
    """The files below `root` in a fixed order, without hidden ones and bytecode."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        yield from (os.path.join(folder, name) for name in sorted(names) if not name.startswith("."))


async def rejected(omni: OmniActors, run_id: str, limit: int) -> dict[str, str]:
    """Path and reason of each file of the run that ended in the dead letters."""
    letters = [letter for topic in TOPICS for letter in await omni.streams.dlq(topic, limit=limit)]
    events = [(letter.failed_message, letter.error) for letter in letters if letter.failed_message]
    return {event["content"]["path"]: error for event, error in events if event["correlation_id"] == run_id}
