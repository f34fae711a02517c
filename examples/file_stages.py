"""The first two stages of the file pipeline, one agent each; what one returns is the next one's event."""

from __future__ import annotations

import hashlib
import mimetypes
import re
import time
from collections import Counter

import msgspec
import trio
from file_reading import read

from omniactors import Agent, EventEnvelope, Reject

WORD = re.compile(r"[^\W\d_]{4,}")


class Uploaded(msgspec.Struct, frozen=True):
    """A file to work on."""

    uri: str


class Scanned(msgspec.Struct, frozen=True):
    """What a file is: `size` in bytes, and the `seconds` that were spent on it so far."""

    uri: str
    kind: str
    size: int
    lines: int
    sha256: str
    seconds: float


class Indexed(msgspec.Struct, frozen=True):
    """The same file, and how often each word stands in it."""

    file: Scanned
    words: dict[str, int]


class Scanner(Agent, topic="file.uploaded", reply_to="file.scanned", concurrency=4):
    """Finds out what a file is, and refuses what is no text."""

    async def handle(self, event: EventEnvelope[Uploaded]) -> object:
        """A `Scanned`, as JSON; reading a file blocks, so a thread does it."""
        return msgspec.to_builtins(await trio.to_thread.run_sync(scan, event.payload.content.uri))


class Indexer(Agent, topic="file.scanned", reply_to="file.indexed", concurrency=4):
    """Counts the words of a file."""

    async def handle(self, event: EventEnvelope[Scanned]) -> object:
        """An `Indexed`, as JSON."""
        return msgspec.to_builtins(await trio.to_thread.run_sync(index, event.payload.content))


def scan(uri: str) -> Scanned:
    """Read a file once; raises Reject when that is of no use."""
    began = time.perf_counter()
    text = read(uri)
    kind = mimetypes.guess_type(uri)[0] or "unknown"
    data = text.encode()
    sha256 = hashlib.sha256(data).hexdigest()
    return Scanned(uri, kind, len(data), len(text.splitlines()), sha256, time.perf_counter() - began)


def index(file: Scanned) -> Indexed:
    """Count the words of the file that was scanned; raises Reject when that is gone."""
    began = time.perf_counter()
    text = read(file.uri)
    if hashlib.sha256(text.encode()).hexdigest() != file.sha256:
        raise Reject("it changed after it was scanned")
    words = Counter(word.lower() for word in WORD.findall(text))
    seconds = file.seconds + time.perf_counter() - began
    return Indexed(msgspec.structs.replace(file, seconds=seconds), dict(words))
